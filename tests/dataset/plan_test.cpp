#include "dtr/dataset/plan.hpp"

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>

namespace dtr {
namespace {

DatasetInfo set_of(std::uint64_t samples, std::uint64_t shard_size, ShardUnit unit = ShardUnit::shard,
                   TailPolicy tail = TailPolicy::uneven, bool shuffle = true) {
  return {.id = "set",
          .total_samples = samples,
          .shard_size = shard_size,
          .shuffle = shuffle,
          .seed = 7,
          .unit = unit,
          .tail = tail};
}

std::vector<std::uint64_t> rows_of(const ShardPlan& plan) {
  std::vector<std::uint64_t> rows;
  for (std::uint64_t row = 0; row < plan.size(); ++row) rows.push_back(plan.sample(row));
  return rows;
}

std::vector<std::uint64_t> through_ranges(const ShardPlan& plan) {
  std::vector<std::uint64_t> rows;
  for (const ShardRange& range : plan.ranges()) {
    for (std::uint64_t at = range.start_sample; at < range.end_sample; at += range.stride) {
      rows.push_back(plan.sample_in(range.shard_id, at));
    }
  }
  return rows;
}

/// Counts how often every sample comes; EXPECTs exactly once when all ranks' rows are put in.
class Census {
 public:
  explicit Census(std::uint64_t samples) : seen_(samples, 0) {}
  void add(const std::vector<std::uint64_t>& rows) {
    for (const std::uint64_t sample : rows) {
      if (sample == kNoSample) continue;
      ASSERT_LT(sample, seen_.size());
      ++seen_[sample];
    }
  }
  [[nodiscard]] bool each_once() const {
    return std::all_of(seen_.begin(), seen_.end(), [](int count) { return count == 1; });
  }
  [[nodiscard]] std::uint64_t count() const {
    std::uint64_t sum = 0;
    for (const int count : seen_) sum += static_cast<std::uint64_t>(count);
    return sum;
  }
  [[nodiscard]] bool none_twice() const {
    return std::all_of(seen_.begin(), seen_.end(), [](int count) { return count <= 1; });
  }

 private:
  std::vector<int> seen_;
};

std::string error_of(const DatasetInfo& info, int world, int rank, const EpochCursor& cursor = {}) {
  const Result<ShardPlan> plan = ShardPlan::make(info, world, rank, cursor);
  return plan ? "no error" : plan.error().to_string();
}

TEST(ShardPlanTest, EverySampleExactlyOnceAndCountsDifferByAtMostOne) {
  for (const ShardUnit unit : {ShardUnit::shard, ShardUnit::sample}) {
    for (std::uint64_t samples = 1; samples <= 200; ++samples) {
      for (const std::uint64_t shard_size : {std::uint64_t{1}, std::uint64_t{7}, std::uint64_t{10}, std::uint64_t{0}}) {
        for (int world = 1; world <= 12; ++world) {
          Census census(samples);
          for (int rank = 0; rank < world; ++rank) {
            const ShardPlan plan(set_of(samples, shard_size, unit), world, rank, samples);
            const std::uint64_t fewest = samples / static_cast<std::uint64_t>(world);
            ASSERT_GE(plan.size(), fewest);
            ASSERT_LE(plan.size(), fewest + 1);
            const auto rows = rows_of(plan);
            ASSERT_EQ(rows, through_ranges(plan));
            census.add(rows);
          }
          ASSERT_TRUE(census.each_once()) << to_string(unit) << " " << samples << "/" << shard_size << "/" << world;
        }
      }
    }
  }
}

TEST(ShardPlanTest, DropAndPadGiveAllRanksTheSameCountAndNothingTwice) {
  for (const ShardUnit unit : {ShardUnit::shard, ShardUnit::sample}) {
    for (std::uint64_t samples = 1; samples <= 60; ++samples) {
      for (int world = 1; world <= 12; ++world) {
        const auto ranks = static_cast<std::uint64_t>(world);
        Census dropped(samples);
        Census padded(samples);
        for (int rank = 0; rank < world; ++rank) {
          const ShardPlan drop(set_of(samples, 7, unit, TailPolicy::drop), world, rank, 3);
          ASSERT_EQ(drop.size(), samples / ranks);
          ASSERT_EQ(drop.samples(), drop.size());
          dropped.add(rows_of(drop));
          const ShardPlan pad(set_of(samples, 7, unit, TailPolicy::pad), world, rank, 3);
          ASSERT_EQ(pad.size(), (samples + ranks - 1) / ranks);
          const auto rows = rows_of(pad);
          ASSERT_EQ(static_cast<std::uint64_t>(std::count(rows.begin(), rows.end(), kNoSample)),
                    pad.size() - pad.samples());
          padded.add(rows);
        }
        ASSERT_TRUE(dropped.none_twice());
        ASSERT_EQ(dropped.count(), samples / ranks * ranks);
        ASSERT_TRUE(padded.each_once());
      }
    }
  }
}

TEST(ShardPlanTest, WholeShardsGoRoundTheRanksInThePermutedOrder) {
  const DatasetInfo info = set_of(1000, 10);
  const ShardPlan alone(info, 1, 0, 5);
  std::vector<std::uint64_t> order;
  for (const ShardRange& range : alone.ranges()) order.push_back(range.shard_id);
  ASSERT_EQ(std::set<std::uint64_t>(order.begin(), order.end()).size(), 100U);
  for (int rank = 0; rank < 4; ++rank) {
    std::size_t slot = static_cast<std::size_t>(rank);
    const ShardPlan plan(info, 4, rank, 5);
    for (const ShardRange& range : plan.ranges()) {
      EXPECT_EQ(range, (ShardRange{.shard_id = order[slot], .start_sample = 0, .end_sample = 10}));
      slot += 4;
    }
    EXPECT_EQ(slot, 100U + static_cast<std::size_t>(rank));
  }
}

TEST(ShardPlanTest, OnlyTheLastRoundIsCutInsideShards) {
  // 10 shards of 10 on 4 ranks: two whole rounds, and two shards cut into four times five samples.
  for (int rank = 0; rank < 4; ++rank) {
    const ShardPlan plan(set_of(100, 10), 4, rank, 0);
    std::vector<std::uint64_t> lengths;
    for (const ShardRange& range : plan.ranges()) lengths.push_back(range.count());
    EXPECT_EQ(lengths, (std::vector<std::uint64_t>{10, 10, 5}));
  }
}

TEST(ShardPlanTest, UnitSampleDealsPositionsRoundTheRanks) {
  const DatasetInfo info = set_of(103, 10, ShardUnit::sample);
  const auto line = rows_of(ShardPlan(info, 1, 0, 2));
  for (int rank = 0; rank < 5; ++rank) {
    const auto rows = rows_of(ShardPlan(info, 5, rank, 2));
    for (std::size_t i = 0; i < rows.size(); ++i) {
      ASSERT_EQ(rows[i], line[i * 5 + static_cast<std::size_t>(rank)]);
    }
  }
}

TEST(ShardPlanTest, WithoutShuffleTheLineIsTheStoredOrder) {
  const auto rows = rows_of(ShardPlan(set_of(95, 10, ShardUnit::shard, TailPolicy::uneven, false), 1, 0, 9));
  for (std::size_t i = 0; i < rows.size(); ++i) ASSERT_EQ(rows[i], i);
}

TEST(ShardPlanTest, EpochsSeedsAndIdsOrderDifferently) {
  DatasetInfo info = set_of(500, 50);
  const auto first = rows_of(ShardPlan(info, 1, 0, 0));
  EXPECT_EQ(first, rows_of(ShardPlan(info, 1, 0, 0)));
  EXPECT_NE(first, rows_of(ShardPlan(info, 1, 0, 1)));
  info.seed = 8;
  EXPECT_NE(first, rows_of(ShardPlan(info, 1, 0, 0)));
  info.seed = 7;
  info.id = "other";
  EXPECT_NE(first, rows_of(ShardPlan(info, 1, 0, 0)));
}

TEST(ShardPlanTest, ShuffledSamplesStayInTheirShard) {
  const ShardPlan plan(set_of(95, 10), 3, 1, 4);
  for (const ShardRange& range : plan.ranges()) {
    for (std::uint64_t at = range.start_sample; at < range.end_sample; ++at) {
      EXPECT_EQ(plan.sample_in(range.shard_id, at) / 10, range.shard_id);
    }
  }
}

// If this fails, resumed and repeated runs change: see PermutationTest.StreamIsFrozen.
TEST(ShardPlanTest, OrderIsFrozen) {
  const ShardPlan by_shard(set_of(23, 5), 2, 1, 3);
  EXPECT_EQ(rows_of(by_shard), (std::vector<std::uint64_t>{5, 6, 8, 7, 9, 19, 15, 17, 18, 16, 4}));
  const ShardPlan by_sample(set_of(23, 5, ShardUnit::sample), 2, 1, 3);
  EXPECT_EQ(rows_of(by_sample), (std::vector<std::uint64_t>{22, 5, 8, 9, 11, 14, 19, 17, 16, 0, 3}));
  const ShardPlan huge(set_of(1'000'000'000'000, 10'000), 1024, 1000, 12);
  EXPECT_EQ(huge.sample(0), 715774606826U);
  EXPECT_EQ(huge.sample(huge.size() - 1), 418474320248U);
}

TEST(ShardPlanTest, ATrillionSamplesAreAsEasyAsAThousand) {
  // Any rank and epoch is computed at once; nothing in the plan grows with the set.
  const DatasetInfo info = set_of(1'000'000'000'007, 10'000);
  std::uint64_t sum = 0;
  for (int rank = 0; rank < 1000; ++rank) {
    const ShardPlan plan(info, 1000, rank, static_cast<std::uint64_t>(rank));
    sum += plan.size();
    EXPECT_LT(plan.sample(plan.size() / 2), info.total_samples);
    EXPECT_LT(plan.sample(plan.size() - 1), info.total_samples);
    EXPECT_EQ(plan.range_at(plan.size() - 1).count(), 1U);
  }
  EXPECT_EQ(sum, info.total_samples);
}

TEST(ShardPlanTest, TheLargestSetDoesNotOverflow) {
  for (const ShardUnit unit : {ShardUnit::shard, ShardUnit::sample}) {
    for (const std::uint64_t shard_size : {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{12345}, kMaxSamples}) {
      std::uint64_t sum = 0;
      for (int rank = 0; rank < 7; ++rank) {
        const ShardPlan plan(set_of(kMaxSamples, shard_size, unit), 7, rank, 1);
        sum += plan.size();
        for (const std::uint64_t row : {std::uint64_t{0}, plan.size() / 2, plan.size() - 1}) {
          EXPECT_LT(plan.sample(row), kMaxSamples);
        }
      }
      EXPECT_EQ(sum, kMaxSamples);
    }
  }
}

TEST(ShardPlanTest, BadArgumentsAreNamed) {
  EXPECT_EQ(error_of(set_of(10, 5), 0, 0), "plan shards of 'set': invalid_argument: a world of 0 ranks");
  EXPECT_EQ(error_of(set_of(10, 5), 4, 4), "plan shards of 'set': invalid_argument: rank 4 in a world of 4");
  EXPECT_EQ(error_of(set_of(10, 5), 4, -1), "plan shards of 'set': invalid_argument: rank -1 in a world of 4");
  EXPECT_EQ(error_of(set_of(0, 5), 1, 0),
            "plan shards of 'set': invalid_argument: total_samples is 0; register the dataset to have them counted, or "
            "set it from the reader");
  EXPECT_EQ(error_of(set_of(kMaxSamples + 1, 5), 1, 0),
            "plan shards of 'set': invalid_argument: 4611686018427387905 samples, the most is 2^62");
  EXPECT_EQ(error_of({.total_samples = 5}, 1, 0), "plan shards: invalid_argument: the dataset has no id");
  EXPECT_THROW(ShardPlan(set_of(10, 5), 0, 0, 0), Exception);
}

TEST(ShardPlanTest, RowsBeyondTheEndAreNoSamples) {
  const ShardPlan plan(set_of(10, 5), 2, 0, 0);
  EXPECT_EQ(plan.sample(5), kNoSample);
  EXPECT_EQ(plan.range_at(5).count(), 0U);
}

}  // namespace
}  // namespace dtr
