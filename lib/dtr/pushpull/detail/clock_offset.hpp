// How far another rank's clock is ahead of ours, from the stamps of ordinary rounds. No messages of its own.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

namespace dtr::inline v0 {
namespace pushpull {

/// A message takes some time: what we sent at `a` they saw at `b` of their clock, so their lead is at most b - a; what
/// they sent at `c` we saw at `d`, so it is at least c - d. The tightest pair of all rounds bounds it; with time
/// the bounds part again, for clocks drift.
class ClockOffset {
 public:
  static constexpr double kDrift = 50e-6;  ///< quartz against quartz, both at their worst

  /// All in ns; `now` by our clock.
  void add(std::int64_t sent_here, std::int64_t seen_there, std::int64_t sent_there, std::int64_t seen_here) noexcept {
    const auto widened = static_cast<std::int64_t>(static_cast<double>(std::max<std::int64_t>(0, seen_here - last_)) *
                                                   (known_ ? kDrift : 0));
    const std::int64_t upper = seen_there - sent_here;
    const std::int64_t lower = sent_there - seen_here;
    upper_ = known_ ? std::min(upper_ + widened, upper) : upper;
    lower_ = known_ ? std::max(lower_ - widened, lower) : lower;
    if (lower_ > upper_) {  // a clock was stepped: start again
      upper_ = upper;
      lower_ = lower;
    }
    last_ = seen_here;
    known_ = true;
  }

  [[nodiscard]] bool known() const noexcept { return known_; }
  /// ns to take from their stamps to have ours.
  [[nodiscard]] std::int64_t lead() const noexcept { return lower_ + (upper_ - lower_) / 2; }
  /// The lead is off by at most this.
  [[nodiscard]] std::int64_t error() const noexcept {
    return known_ ? (upper_ - lower_ + 1) / 2 : std::numeric_limits<std::int64_t>::max();
  }

 private:
  bool known_ = false;
  std::int64_t upper_ = 0;
  std::int64_t lower_ = 0;
  std::int64_t last_ = 0;
};

}  // namespace pushpull
}  // namespace dtr::inline v0
