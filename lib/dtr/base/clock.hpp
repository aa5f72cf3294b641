// Time in nanoseconds: monotonic for durations, wall for what people and other hosts compare.
#pragma once

#include <cstdint>

#include <time.h>

namespace dtr::inline v0 {

/// CLOCK_MONOTONIC in ns: same for all processes of a host, never steps back, starts at boot. The clock of Deadline.
[[nodiscard]] inline std::int64_t monotonic_ns() noexcept {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return std::int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

/// As monotonic_ns, at the kernel's last tick, as a rule up to 10 ms ago: for a fifth of the price.
[[nodiscard]] inline std::int64_t last_tick_ns() noexcept {
  timespec tick{};
  ::clock_gettime(CLOCK_MONOTONIC_COARSE, &tick);
  return std::int64_t{tick.tv_sec} * 1'000'000'000 + tick.tv_nsec;
}

/// ns since 1970-01-01 UTC. Steps when somebody sets the clock: for labels and alignment, not for durations.
[[nodiscard]] inline std::int64_t wall_ns() noexcept {
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME, &now);
  return std::int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

/// Runs from construction or restart().
class Stopwatch {
 public:
  [[nodiscard]] std::int64_t elapsed_ns() const noexcept { return monotonic_ns() - start_ns_; }
  [[nodiscard]] double seconds() const noexcept { return static_cast<double>(elapsed_ns()) * 1e-9; }

  /// Starts again and returns the ns until now.
  std::int64_t restart() noexcept {
    const std::int64_t now = monotonic_ns();
    const std::int64_t elapsed = now - start_ns_;
    start_ns_ = now;
    return elapsed;
  }

 private:
  std::int64_t start_ns_ = monotonic_ns();
};

}  // namespace dtr::inline v0
