// Requests that have ended and whose completions are still to be told, once no lock is held.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "dtr/fabric/completion.hpp"

namespace dtr::inline v0 {
namespace fabric {

/// Fixed room, on the stack; neighbours with the same completion share an entry. Whoever finds no room tells what is
/// there and comes back.
class Endings {
 public:
  Endings() noexcept : Endings(kRuns) {}
  /// Without room: for who may end nothing now.
  static Endings none() noexcept { return Endings(0); }

  [[nodiscard]] bool has_room() const noexcept { return count_ < room_; }
  [[nodiscard]] bool empty() const noexcept { return count_ == 0; }

  /// Needs has_room().
  void add(Completion* completion, Status status, std::uint32_t requests = 1) noexcept {
    if (completion == nullptr || requests == 0) return;
    if (count_ > 0) {
      Run& last = runs_[count_ - 1];
      if (last.completion == completion && last.status == std::bit_cast<std::uint64_t>(status)) {
        last.requests += requests;
        return;
      }
    }
    runs_[count_++] = {completion, std::bit_cast<std::uint64_t>(status), requests};
  }

  void deliver() noexcept {
    for (std::size_t i = 0; i < count_; ++i) {
      runs_[i].completion->finish(runs_[i].requests, std::bit_cast<Status>(runs_[i].status));
    }
    count_ = 0;
  }

 private:
  static constexpr std::size_t kRuns = 64;
  explicit Endings(std::size_t room) noexcept : room_(room) {}
  struct Run {
    Completion* completion;
    std::uint64_t status;  ///< a Status
    std::uint32_t requests;
  };
  std::array<Run, kRuns> runs_;  ///< left as it is: clearing 1.5 KiB took half of the time of a post
  std::size_t room_;
  std::size_t count_ = 0;
};

}  // namespace fabric
}  // namespace dtr::inline v0
