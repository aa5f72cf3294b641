#include "dtr/runtime/detail/waiting.hpp"

#include <gtest/gtest.h>

namespace dtr {
namespace {

using namespace std::chrono_literals;

TEST(WaitingTest, CrowdedRanksGiveTheirCoreAwayAtOnceAndTheThreadDoesNotSpin) {
  for (const double ranks : {1.5, 4.0}) {
    const fabric::Waiting made = waiting_for(ranks, -1);
    EXPECT_EQ(made.keeps_core, 0us);
    EXPECT_EQ(made.thread_spin, 0us);
    EXPECT_TRUE(made.thread_yields);
    EXPECT_GT(made.spin, 0us);
  }
}

TEST(WaitingTest, ARankWithACoreOfItsOwnKeepsItForShortWaitsOnly) {
  for (const double ranks : {0.75, 1.0, 1.0 / 3 + 1.0 / 3 + 1.0 / 3}) {
    const fabric::Waiting made = waiting_for(ranks, -1);
    EXPECT_GT(made.keeps_core, 0us);
    EXPECT_LT(made.keeps_core, made.spin);
    EXPECT_GT(made.thread_spin, 0us);
    EXPECT_TRUE(made.thread_yields) << "the application's thread may want it";
  }
}

TEST(WaitingTest, WhereThereAreCoresForAllThreadsNobodyGivesHisAway) {
  const fabric::Waiting made = waiting_for(0.5, -1);
  EXPECT_GT(made.keeps_core, made.spin);
  EXPECT_FALSE(made.thread_yields);
}

TEST(WaitingTest, WhatTheConfigurationSaysGoesForCallersAndThread) {
  for (const double ranks : {0.5, 1.0, 4.0}) {
    const fabric::Waiting made = waiting_for(ranks, 7);
    EXPECT_EQ(made.spin, 7us);
    EXPECT_EQ(made.thread_spin, 7us);
  }
}

}  // namespace
}  // namespace dtr
