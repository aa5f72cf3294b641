// After fork the child has our memory but none of our threads or peers: its calls end with Errc::forked.
#pragma once

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
  [[nodiscard]] bool in_forked_child() const noexcept;

  /// Errc::forked naming the operation, in a forked child.
  [[nodiscard]] Result<void> check(std::string operation) const;

 private:
  std::uint32_t generation_;
};

}  // namespace dtr::inline v0
