#include "dtr/runtime/detail/relay_tree.hpp"

#include <random>
#include <set>
#include <vector>

#include <gtest/gtest.h>

namespace dtr {
namespace {

using Dead = std::set<std::uint32_t>;

auto tree(std::uint32_t count, std::uint32_t width, const Dead& dead) {
  return RelayTree(count, width, [&dead](std::uint32_t place) { return !dead.contains(place); });
}

TEST(RelayTreeTest, AWordOfAnyOfTenThousandReachesTheTopInThreeHopsOverNeighboursOnly) {
  const Dead nobody;
  const auto all = tree(10'000, 64, nobody);
  for (std::uint32_t place = 0; place < 10'000; ++place) {
    int hops = 0;
    for (std::uint32_t at = place; at != 0; ++hops) {
      const std::uint32_t next = all.next(at, 0);
      ASSERT_EQ(next, all.above(at));
      at = next;
    }
    EXPECT_LE(hops, 3);
  }
}

TEST(RelayTreeTest, WordsComeFromEveryLivingPlaceToEveryOtherPastTheDead) {
  std::mt19937 random(11);
  for (int round = 0; round < 100; ++round) {
    const auto count = 2 + static_cast<std::uint32_t>(random() % 40);
    Dead dead;
    for (unsigned i = 0; i < count / 4; ++i) dead.insert(static_cast<std::uint32_t>(random() % count));
    const auto all = tree(count, 1 + static_cast<std::uint32_t>(random() % 5), dead);
    for (std::uint32_t from = 0; from < count; ++from) {
      for (std::uint32_t to = 0; to < count; ++to) {
        if (dead.contains(from) || dead.contains(to)) continue;
        std::uint32_t hops = 0;
        for (std::uint32_t at = from; at != to; ++hops) {
          at = all.next(at, to);
          ASSERT_FALSE(dead.contains(at));
          ASSERT_LT(hops, count) << "from " << from << " to " << to << " of " << count << " goes in circles";
        }
      }
    }
  }
}

TEST(RelayTreeTest, WhatAllShallHearComesToEveryLivingPlaceOnce) {
  std::mt19937 random(3);
  for (int round = 0; round < 100; ++round) {
    const auto count = 1 + static_cast<std::uint32_t>(random() % 60);
    Dead dead;
    for (unsigned i = 0; i < count / 3; ++i) dead.insert(static_cast<std::uint32_t>(random() % count));
    dead.erase(0);
    const auto all = tree(count, 1 + static_cast<std::uint32_t>(random() % 5), dead);
    std::vector<std::uint32_t> told{0};
    std::set<std::uint32_t> once{0};
    for (std::size_t i = 0; i < told.size(); ++i) {
      all.for_each_below(told[i], [&](std::uint32_t place) {
        EXPECT_TRUE(once.insert(place).second) << place << " hears twice";
        told.push_back(place);
      });
    }
    EXPECT_EQ(told.size(), count - dead.size());
  }
}

}  // namespace
}  // namespace dtr
