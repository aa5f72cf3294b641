// Which step to load: the newest that every rank finds intact. Each candidate is judged by all ranks together.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "dtr/base/deadline.hpp"
#include "dtr/checkpoint/detail/loaded_step.hpp"
#include "dtr/checkpoint/detail/store.hpp"
#include "dtr/checkpoint/detail/word.hpp"
#include "dtr/runtime/group.hpp"

namespace dtr::inline v0 {
namespace checkpoint {

/// How a rank judges a step whose manifest is sound. Damage makes all ranks go on to the next older step; any other
/// Error ends the load, and so does one that is `final`.
struct Judgement {
  Result<void> result{};
  bool final = false;
};
using Judge = std::function<Judgement(const LoadedStep& step)>;

class Loader {
 public:
  Loader(Group& group, const Store& store, Deadline deadline) : group_(group), store_(store), deadline_(deadline) {}

  /// `number` counts the loads of this manager: a load that timed out leaves the next one level.
  [[nodiscard]] Result<LoadedStep> newest(std::uint64_t number, const Judge& judge);
  [[nodiscard]] Result<LoadedStep> exactly(std::uint64_t step, std::uint64_t number, const Judge& judge);

 private:
  struct Verdict {
    Result<LoadedStep> step;
    bool may_fall_back;
  };
  [[nodiscard]] Result<std::vector<std::uint64_t>> agree_on_candidates();
  [[nodiscard]] Verdict judge_together(std::uint64_t step, const Judge& judge);
  [[nodiscard]] std::string topic(const std::string& round) const;

  Group& group_;
  const Store& store_;
  Deadline deadline_;
  std::uint64_t number_ = 0;
};

}  // namespace checkpoint
}  // namespace dtr::inline v0
