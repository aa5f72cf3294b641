// Points in time that bound every wait.
#pragma once

#include <algorithm>
#include <chrono>
#include <compare>

#include "dtr/base/clock.hpp"

namespace dtr::inline v0 {

/// The moment at which a call gives up. Converts from a duration, counted from now: `worker.wait(round, 5s)`.
class Deadline {
 public:
  using Clock = std::chrono::steady_clock;

  template <class Rep, class Period>
  Deadline(std::chrono::duration<Rep, Period> from_now) noexcept  // NOLINT(google-explicit-constructor): reads as `5s`
      : at_(saturated(from_now)) {}

  explicit Deadline(Clock::time_point at) noexcept : at_(at) {}

  /// As from a duration, up to 10 ms later (earlier by as much as the kernel's ticks are late), for a fifth of the
  /// price: for those who make millions a second of many seconds each.
  [[nodiscard]] static Deadline about(std::chrono::milliseconds from_now) noexcept {
    const Clock::time_point next_tick(std::chrono::nanoseconds(last_tick_ns()) + std::chrono::milliseconds(10));
    return Deadline(next_tick + std::min<std::chrono::milliseconds>(from_now, kLongest));
  }

  [[nodiscard]] Clock::time_point at() const noexcept { return at_; }
  [[nodiscard]] bool passed() const noexcept { return Clock::now() >= at_; }

  /// Time left, never negative.
  [[nodiscard]] Clock::duration left() const noexcept {
    const auto now = Clock::now();
    return now >= at_ ? Clock::duration::zero() : at_ - now;
  }

  [[nodiscard]] std::chrono::milliseconds left_ms() const noexcept {
    return std::chrono::ceil<std::chrono::milliseconds>(left());
  }

  friend auto operator<=>(const Deadline&, const Deadline&) = default;  // NOLINT: no pointer here

 private:
  static constexpr auto kLongest = std::chrono::hours(24 * 365);

  template <class Rep, class Period>
  static Clock::time_point saturated(std::chrono::duration<Rep, Period> from_now) noexcept {
    if (from_now >= kLongest) return Clock::now() + kLongest;  // beyond this, time_point would overflow
    return Clock::now() + std::chrono::duration_cast<Clock::duration>(from_now);
  }

  Clock::time_point at_;
};

}  // namespace dtr::inline v0
