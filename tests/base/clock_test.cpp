#include "dtr/base/clock.hpp"

#include <chrono>
#include <ctime>

#include <gtest/gtest.h>
#include <unistd.h>

namespace dtr {
namespace {

TEST(ClockTest, MonotonicIsTheClockOfDeadlines) {
  const auto steady = [] { return std::chrono::steady_clock::now().time_since_epoch().count(); };
  const std::int64_t before = steady();
  const std::int64_t now = monotonic_ns();
  EXPECT_LE(before, now);
  EXPECT_LE(now, steady());
}

TEST(ClockTest, WallIsUtcSince1970) {
  const std::int64_t seconds = ::time(nullptr);
  const std::int64_t now = wall_ns();
  EXPECT_GE(now / 1'000'000'000, seconds - 1);
  EXPECT_LE(now / 1'000'000'000, seconds + 60);
}

TEST(StopwatchTest, RestartReturnsTheTimeSoFarAndStartsAtZero) {
  Stopwatch watch;
  ::usleep(2000);
  const std::int64_t first = watch.restart();
  EXPECT_GE(first, 2'000'000);
  EXPECT_LE(watch.elapsed_ns(), monotonic_ns());
  EXPECT_GE(watch.seconds(), 0.0);
}

}  // namespace
}  // namespace dtr
