// After fork the child has our memory but none of our threads or peers: its calls end with Errc::forked.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>

#include "dtr/base/error.hpp"

namespace dtr::inline v0 {

/// Remembers the process it was made in. A member of every object that owns threads, descriptors or connections:
/// calls return `check(...)`'s Error in a child, destructors do nothing there. A child that makes its own
/// objects is fine. Costs one relaxed load. Any thread.
class ForkGuard {
 public:
  ForkGuard() noexcept;

  /// True in a child of fork, for an object that the parent made.
  [[nodiscard]] bool in_forked_child() const noexcept { return forks_.load(std::memory_order_relaxed) != generation_; }

  /// Errc::forked naming the operation, in a forked child.
  [[nodiscard]] Result<void> check(std::string operation) const;

 private:
  [[nodiscard]] static std::uint32_t watch_forks() noexcept;
  static void count_fork() noexcept;

  /// Process state by nature: how many forks lie between this process and the one that loaded the library.
  static std::atomic<std::uint32_t> forks_;

  std::uint32_t generation_;
};

}  // namespace dtr::inline v0
