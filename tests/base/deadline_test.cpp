#include "dtr/base/deadline.hpp"

#include <thread>

#include <gtest/gtest.h>

namespace dtr {
namespace {

using namespace std::chrono_literals;

TEST(DeadlineTest, IsCountedFromNow) {
  for (const auto length : {0ms, 1ms, 10'000ms, 3'600'000ms}) {
    const auto before = Deadline::Clock::now();
    const Deadline deadline(length);
    const auto after = Deadline::Clock::now();
    EXPECT_GE(deadline.at(), before + length);
    EXPECT_LE(deadline.at(), after + length);
  }
}

TEST(DeadlineTest, AboutComesTenMillisecondsLateAtMostAndEarlyOnlyWhereTicksAreLate) {
  constexpr int kTimes = 50;
  for (const auto length : {0ms, 1ms, 10'000ms, 3'600'000ms}) {
    int early = 0;
    for (int i = 0; i < kTimes; ++i) {
      const auto before = Deadline::Clock::now();
      const Deadline deadline = Deadline::about(length);
      const auto after = Deadline::Clock::now();
      early += deadline.at() < before + length ? 1 : 0;
      ASSERT_LE(deadline.at(), after + length + 10ms);
      std::this_thread::sleep_for(1ms);
    }
    EXPECT_LT(early, kTimes / 2);  // a virtual CPU that does not run has no ticks
  }
}

TEST(DeadlineTest, BeyondAllBoundsIsAYear) {
  for (const Deadline deadline :
       {Deadline(std::chrono::hours::max()), Deadline::about(std::chrono::milliseconds::max())}) {
    EXPECT_FALSE(deadline.passed());
    EXPECT_GE(deadline.left(), std::chrono::hours(24 * 365 - 1));
    EXPECT_LE(deadline.left(), std::chrono::hours(24 * 365 + 1));
  }
}

}  // namespace
}  // namespace dtr
