#include "dtr/base/deadline.hpp"

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

TEST(DeadlineTest, AboutComesNeverEarlyAndTenMillisecondsLateAtMost) {
  for (const auto length : {0ms, 1ms, 10'000ms, 3'600'000ms}) {
    for (int i = 0; i < 1000; ++i) {
      const auto before = Deadline::Clock::now();
      const Deadline deadline = Deadline::about(length);
      const auto after = Deadline::Clock::now();
      ASSERT_GE(deadline.at(), before + length);
      ASSERT_LE(deadline.at(), after + length + 10ms);
    }
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
