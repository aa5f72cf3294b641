// Time here is a number that the test sets: nothing depends on how fast it runs.
#include "dtr/runtime/detail/silence_table.hpp"

#include <gtest/gtest.h>

namespace dtr {
namespace {

using namespace std::chrono_literals;

constexpr fabric::PeerId kPeer = 3;

class SilenceTableTest : public ::testing::Test {
 protected:
  explicit SilenceTableTest() { table.watch(kPeer, heard, true); }

  /// Moves time on by `step` and looks.
  std::size_t after(SilenceTable::Duration step) {
    now += step;
    silent = table.tick(now, [this](fabric::PeerId) { return heard; });
    return silent.size();
  }

  SilenceTable table{1s, 5s};
  Deadline::Clock::time_point now{1h};
  std::uint64_t heard = 0;
  std::vector<SilenceTable::Silent> silent;
};

TEST_F(SilenceTableTest, WhoIsSilentForTheTimeOutIsFoundAtItsEnd) {
  for (int second = 1; second < 5; ++second) EXPECT_EQ(after(1s), 0U) << second;
  ASSERT_EQ(after(1s), 1U);
  EXPECT_EQ(silent.front().peer, kPeer);
  EXPECT_EQ(silent.front().silence, 5s);
}

TEST_F(SilenceTableTest, AnythingHeardStartsTheCountAgain) {
  for (int second = 0; second < 100; ++second) {
    if (second % 4 == 0) ++heard;
    EXPECT_EQ(after(1s), 0U) << second;
  }
}

TEST_F(SilenceTableTest, TimeInWhichTheWatcherItselfStoodStillIsHeldAgainstNobody) {
  EXPECT_EQ(after(1s), 0U);
  EXPECT_EQ(after(10h), 0U) << "it counts as one interval";
  EXPECT_EQ(after(1s), 0U);
  EXPECT_EQ(after(1s), 0U);
  EXPECT_EQ(after(1s), 1U) << "from there on everybody speaks again or is silent";
}

TEST_F(SilenceTableTest, AWatcherThatWakesUpGivesTheOthersATurnBeforeItJudges) {
  for (int second = 1; second < 5; ++second) EXPECT_EQ(after(1s), 0U);
  EXPECT_EQ(after(1min), 0U) << "the tick of the wake-up itself condemns nobody at the time-out";
  ++heard;
  EXPECT_EQ(after(1s), 0U);
}

TEST_F(SilenceTableTest, AWatcherThatIsAlwaysLateFindsTheSilentInTheEnd) {
  int ticks = 1;
  while (after(10s) == 0 && ticks < 100) ++ticks;
  EXPECT_EQ(ticks, 6);
}

TEST_F(SilenceTableTest, WhoHasPromisedNothingIsNeverSilent) {
  constexpr fabric::PeerId kInline = 4;
  table.forget(kPeer);
  table.watch(kInline, 0, false);
  for (int second = 0; second < 100; ++second) EXPECT_EQ(after(1s), 0U);
  table.promises(kInline);
  for (int second = 1; second < 5; ++second) EXPECT_EQ(after(1s), 0U) << "from its promise on it counts";
  EXPECT_EQ(after(1s), 1U);
}

TEST_F(SilenceTableTest, WatchingTwiceDoesNotStartTheCountAgain) {
  for (int second = 1; second < 5; ++second) EXPECT_EQ(after(1s), 0U);
  table.watch(kPeer, heard, true);
  EXPECT_EQ(after(1s), 1U);
  EXPECT_TRUE(table.forget(kPeer));
  EXPECT_FALSE(table.forget(kPeer));
}

}  // namespace
}  // namespace dtr
