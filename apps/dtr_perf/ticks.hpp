// A clock for what takes nanoseconds. clock_gettime costs some 60 ns on virtual machines, more than a whole put.
#pragma once

#include <cstdint>

#include "dtr/base/clock.hpp"

namespace dtr::perf {

/// Counts up at a constant rate, on x86-64 that of the time stamp counter, elsewhere nanoseconds.
inline std::uint64_t ticks() noexcept {
#if defined(__x86_64__)
  return __builtin_ia32_rdtsc();
#else
  return static_cast<std::uint64_t>(monotonic_ns());
#endif
}

/// Learns the length of a tick between its construction and the call.
class TickLength {
 public:
  [[nodiscard]] double ns() const noexcept {
    const std::uint64_t passed = ticks() - start_ticks_;
    return passed == 0 ? 1.0 : static_cast<double>(monotonic_ns() - start_ns_) / static_cast<double>(passed);
  }

 private:
  std::int64_t start_ns_ = monotonic_ns();
  std::uint64_t start_ticks_ = ticks();
};

}  // namespace dtr::perf
