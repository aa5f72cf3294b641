#include "dtr/runtime/detail/watch_tree.hpp"

#include <random>
#include <set>

#include <gtest/gtest.h>

namespace dtr {
namespace {

using fabric::PeerId;

struct Job {
  PeerId size = 0;
  PeerId width = 0;
  std::set<PeerId> dead{};

  [[nodiscard]] std::vector<PeerId> neighbours(PeerId self) const {
    return WatchTree(self, size, width, [this](PeerId rank) { return !dead.contains(rank); }).neighbours();
  }
};

/// Every edge is known at both ends, and over the edges everybody hears from everybody.
void expect_agreed_and_connected(const Job& job) {
  std::set<PeerId> reached;
  std::vector<PeerId> next;
  for (PeerId rank = 0; rank < job.size; ++rank) {
    if (job.dead.contains(rank)) continue;
    if (next.empty() && reached.empty()) {
      next.push_back(rank);
      reached.insert(rank);
    }
    for (const PeerId other : job.neighbours(rank)) {
      ASSERT_FALSE(job.dead.contains(other));
      ASSERT_NE(other, rank);
      const auto theirs = job.neighbours(other);
      ASSERT_TRUE(std::binary_search(theirs.begin(), theirs.end(), rank)) << rank << " watches " << other;
    }
  }
  while (!next.empty()) {
    const PeerId rank = next.back();
    next.pop_back();
    for (const PeerId other : job.neighbours(rank)) {
      if (reached.insert(other).second) next.push_back(other);
    }
  }
  EXPECT_EQ(reached.size(), job.size - job.dead.size());
}

TEST(WatchTreeTest, ARankOfTenThousandHasAtMostWidthPlusOneEdges) {
  const Job job{.size = 10'000, .width = 64};
  for (PeerId rank = 0; rank < job.size; ++rank) EXPECT_LE(job.neighbours(rank).size(), job.width + 1);
}

TEST(WatchTreeTest, EdgesAreAgreedOnAndReachAllWhoeverIsDead) {
  std::mt19937 random(7);
  for (int round = 0; round < 200; ++round) {
    Job job{.size = 1 + static_cast<PeerId>(random() % 40), .width = 1 + static_cast<PeerId>(random() % 5)};
    const auto deaths = random() % job.size;
    for (unsigned i = 0; i < deaths; ++i) job.dead.insert(static_cast<PeerId>(random() % job.size));
    ASSERT_NO_FATAL_FAILURE(expect_agreed_and_connected(job)) << job.size << " ranks, width " << job.width;
  }
}

TEST(WatchTreeTest, WithoutTheTopTheLowestRankTakesItsPlace) {
  const Job job{.size = 7, .width = 2, .dead = {0, 1}};
  EXPECT_EQ(job.neighbours(2), (std::vector<PeerId>{3, 4, 5, 6}));
  EXPECT_EQ(job.neighbours(3), (std::vector<PeerId>{2}));
}

TEST(WatchTreeTest, TheLastOneHasNobody) {
  EXPECT_TRUE((Job{.size = 1, .width = 64}).neighbours(0).empty());
  EXPECT_TRUE((Job{.size = 3, .width = 64, .dead = {0, 1}}).neighbours(2).empty());
}

}  // namespace
}  // namespace dtr
