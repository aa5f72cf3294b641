// What services need from the ranks they work with: who am I, how many are we, and everybody's word on a topic.
#pragma once

#include <cstddef>
#include <span>
#include <string_view>
#include <vector>

#include "dtr/base/deadline.hpp"
#include "dtr/base/error.hpp"

namespace dtr::inline v0 {

using Bytes = std::vector<std::byte>;

/// A set of ranks that can agree on small things over libdtr's own control path (never MPI).
class Group {
 public:
  virtual ~Group() = default;

  [[nodiscard]] virtual int rank() const noexcept = 0;
  [[nodiscard]] virtual int size() const noexcept = 0;

  /// Everybody's contribution, by rank. Collective: every member calls it, and the n-th call with a topic meets
  /// everybody's n-th call with that topic. Any thread; calls with different topics run side by side.
  /// Errors: timed_out (names the ranks that did not come), peer_failed, peer_left.
  [[nodiscard]] virtual Result<std::vector<Bytes>> allgather(std::string_view topic, std::span<const std::byte> mine,
                                                             Deadline deadline) = 0;
};

/// The group of one: for programs and tools that run alone.
class SoloGroup final : public Group {
 public:
  [[nodiscard]] int rank() const noexcept override { return 0; }
  [[nodiscard]] int size() const noexcept override { return 1; }
  [[nodiscard]] Result<std::vector<Bytes>> allgather(std::string_view, std::span<const std::byte> mine,
                                                     Deadline) override {
    return std::vector<Bytes>{Bytes(mine.begin(), mine.end())};
  }
};

}  // namespace dtr::inline v0
