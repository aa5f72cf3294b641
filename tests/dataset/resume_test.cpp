// Epochs that are interrupted and go on, on the same number of ranks or another.
#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "dtr/dataset/plan.hpp"

namespace dtr {
namespace {

DatasetInfo set_of(std::uint64_t samples, std::uint64_t shard_size, ShardUnit unit, TailPolicy tail) {
  return {.id = "set",
          .total_samples = samples,
          .shard_size = shard_size,
          .shuffle = true,
          .seed = 7,
          .unit = unit,
          .tail = tail};
}

/// Reads the first `rows` rows of every rank (all of them when there are fewer) and counts the samples.
void read(const DatasetInfo& info, int world, const EpochCursor& cursor, const std::vector<std::uint64_t>& rows,
          std::vector<int>& seen) {
  for (int rank = 0; rank < world; ++rank) {
    const ShardPlan plan(info, world, rank, cursor);
    const std::uint64_t count = std::min(rows[static_cast<std::size_t>(rank)], plan.size());
    for (std::uint64_t row = 0; row < count; ++row) {
      const std::uint64_t sample = plan.sample(row);
      if (sample != kNoSample) ++seen.at(sample);
    }
  }
}

bool each_once(const std::vector<int>& seen) {
  return std::all_of(seen.begin(), seen.end(), [](int count) { return count == 1; });
}

TEST(ResumeTest, EverySampleOnceForEveryStopOnEveryNumberOfRanks) {
  for (const ShardUnit unit : {ShardUnit::shard, ShardUnit::sample}) {
    for (const TailPolicy tail : {TailPolicy::uneven, TailPolicy::pad}) {
      const DatasetInfo info = set_of(97, 5, unit, tail);
      for (int before = 1; before <= 6; ++before) {
        const ShardPlan plan(info, before, 0, 3);
        for (std::uint64_t rows = 0; rows <= plan.size(); ++rows) {
          const EpochCursor cursor = plan.cursor_after(rows);
          for (int after = 1; after <= 6; ++after) {
            std::vector<int> seen(97, 0);
            read(info, before, {.epoch = 3}, std::vector<std::uint64_t>(6, rows), seen);
            read(info, after, cursor, std::vector<std::uint64_t>(6, ~std::uint64_t{0}), seen);
            ASSERT_TRUE(each_once(seen)) << to_string(unit) << ' ' << cursor.to_string() << " on " << after;
          }
        }
      }
    }
  }
}

TEST(ResumeTest, EverySampleOnceOverRandomChainsOfStops) {
  std::mt19937_64 random(1);  // raw output only: its stream is fixed by the standard
  for (int chain = 0; chain < 1500; ++chain) {
    const ShardUnit unit = random() % 2 == 0 ? ShardUnit::shard : ShardUnit::sample;
    const std::uint64_t samples = 1 + random() % 3000;
    const DatasetInfo info = set_of(samples, 1 + random() % 60, unit, TailPolicy::uneven);
    std::vector<int> seen(samples, 0);
    EpochCursor cursor{.epoch = random() % 100};
    std::uint64_t left = samples;
    for (int stop = 0; stop < 5; ++stop) {
      const int world = static_cast<int>(1 + random() % 9);
      const bool together = random() % 3 != 0;  // the usual case; else every rank stops where it likes
      const std::uint64_t most = ShardPlan(info, world, 0, cursor).size();
      std::vector<std::uint64_t> rows(static_cast<std::size_t>(world), random() % (most + 1));
      if (!together) {
        for (int rank = 0; rank < world; ++rank) {
          rows[static_cast<std::size_t>(rank)] = random() % (ShardPlan(info, world, rank, cursor).size() + 1);
        }
      }
      read(info, world, cursor, rows, seen);
      const ShardPlan plan(info, world, 0, cursor);
      cursor = together ? plan.cursor_after(rows.front()) : plan.cursor_after(rows);
      const auto parsed = EpochCursor::parse(cursor.to_string());
      ASSERT_TRUE(parsed);
      ASSERT_EQ(*parsed, cursor);
      left = samples - static_cast<std::uint64_t>(std::count(seen.begin(), seen.end(), 1));
    }
    const int world = static_cast<int>(1 + random() % 9);
    std::uint64_t dealt = 0;
    for (int rank = 0; rank < world; ++rank) {
      const std::uint64_t size = ShardPlan(info, world, rank, cursor).size();
      const std::uint64_t fewest = left / static_cast<std::uint64_t>(world);
      dealt += size;
      // A world that goes on keeps its counts, which had been even from the start; so do its rests.
      ASSERT_GE(size, fewest) << cursor.to_string();
      ASSERT_LE(size, fewest + 1) << cursor.to_string();
    }
    ASSERT_EQ(dealt, left) << cursor.to_string();
    read(info, world, cursor, std::vector<std::uint64_t>(9, ~std::uint64_t{0}), seen);
    ASSERT_TRUE(each_once(seen)) << cursor.to_string() << " on " << world;
  }
}

TEST(ResumeTest, TheSameWorldGoesOnWithExactlyTheNextRows) {
  for (const ShardUnit unit : {ShardUnit::shard, ShardUnit::sample}) {
    for (const TailPolicy tail : {TailPolicy::drop, TailPolicy::pad, TailPolicy::uneven}) {
      const DatasetInfo info = set_of(1003, 10, unit, tail);
      for (int rank = 0; rank < 4; ++rank) {
        const ShardPlan whole(info, 4, rank, 2);
        for (const std::uint64_t stop : {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{100}, std::uint64_t{249}}) {
          // Stopped twice: the cursor stays one stage.
          const ShardPlan rest(info, 4, rank,
                               ShardPlan(info, 4, rank, whole.cursor_after(stop / 2)).cursor_after(stop - stop / 2));
          ASSERT_EQ(rest.size(), whole.size() - stop);
          for (std::uint64_t row = 0; row < rest.size(); ++row) ASSERT_EQ(rest.sample(row), whole.sample(stop + row));
        }
      }
    }
  }
}

TEST(ResumeTest, TheRestBeginsWithTheTailsOfOpenShards) {
  // Two ranks stop in the middle of their second shard; one rank goes on. First it reads what the two left open.
  const DatasetInfo info = set_of(100, 10, ShardUnit::shard, TailPolicy::uneven);
  const ShardPlan before(info, 2, 0, 0);
  const ShardPlan other(info, 2, 1, 0);
  const ShardPlan after(info, 1, 0, before.cursor_after(14));
  std::vector<ShardRange> ranges;
  for (const ShardRange& range : after.ranges()) ranges.push_back(range);
  ASSERT_EQ(ranges.size(), 8U);
  EXPECT_EQ(ranges[0], (ShardRange{.shard_id = before.range_at(14).shard_id, .start_sample = 4, .end_sample = 10}));
  EXPECT_EQ(ranges[1], (ShardRange{.shard_id = other.range_at(14).shard_id, .start_sample = 4, .end_sample = 10}));
  for (std::size_t i = 2; i < ranges.size(); ++i) EXPECT_EQ(ranges[i].count(), 10U);
}

TEST(ResumeTest, AnEqualStopLeavesAFewBytesWhateverTheSize) {
  const DatasetInfo info = set_of(1'000'000'000'000, 10'000, ShardUnit::shard, TailPolicy::drop);
  const ShardPlan before(info, 4096, 17, 5);
  const EpochCursor cursor = before.cursor_after(123'456'789);
  EXPECT_EQ(cursor.to_string(), "epoch 5: 4096x123456789");
  std::uint64_t rows = 0;
  for (int rank = 0; rank < 1000; ++rank) {
    const ShardPlan after(info, 1000, rank, cursor);
    rows += after.size();
    EXPECT_LT(after.sample(after.size() - 1), info.total_samples);
  }
  const std::uint64_t left = info.total_samples - 4096ULL * 123'456'789ULL;
  EXPECT_EQ(rows, left / 1000 * 1000);
}

TEST(ResumeTest, CursorsThatDoNotFitAreRefusedInWords) {
  const DatasetInfo info = set_of(100, 10, ShardUnit::shard, TailPolicy::uneven);
  const auto error_of = [&](const EpochCursor& cursor, int world) {
    const auto plan = ShardPlan::make(info, world, 0, cursor);
    return plan ? "no error" : plan.error().to_string();
  };
  EXPECT_EQ(error_of({.stages = {{.world = 4, .consumed = {26}}}}, 2),
            "resume epoch to rank 0: invalid_argument: 26 samples consumed by a rank of 4, but there were only 25 for "
            "each");
  EXPECT_EQ(error_of({.stages = {{.world = 4, .consumed = {26}}}}, 4),
            "plan shards of 'set': invalid_argument: the cursor has 26 samples consumed by each of 4 ranks, but there "
            "were only 25 for each");
  EXPECT_EQ(error_of({.stages = {{.world = 4, .consumed = {1, 2}}}}, 2),
            "resume epoch: invalid_argument: 2 counts of consumed samples for 4 ranks; give one for each, or one for "
            "all");
  EXPECT_EQ(error_of({.stages = {{.world = 0, .consumed = {1}}}}, 2),
            "plan shards of 'set': invalid_argument: the cursor has a stage of 0 ranks");
}

TEST(ResumeTest, RanksThatStopMillionsOfShardsApartAreRefused) {
  const DatasetInfo info = set_of(1'000'000'000'000, 10, ShardUnit::shard, TailPolicy::uneven);
  const auto plan = ShardPlan::make(info, 3, 0, {.stages = {{.world = 2, .consumed = {0, 400'000'000'000}}}});
  ASSERT_FALSE(plan);
  EXPECT_EQ(plan.error().code, Errc::resource_exhausted);
}

TEST(EpochCursorTest, TextThatIsNoCursorIsQuoted) {
  for (const std::string text :
       {"", "epoch", "epoch x", "epoch 1:", "epoch 1: 4", "epoch 1: 4x", "epoch 1: 4x1/2", "epoch 1: 0x1",
        "epoch 1: -2x1", "epoch 1: 4x1,", "epoch 1: 4x1 ", "epoch -1", "epoch 99999999999999999999"}) {
    const auto cursor = EpochCursor::parse(text);
    ASSERT_FALSE(cursor) << text;
    EXPECT_EQ(cursor.error().to_string(), "parse epoch cursor: invalid_argument: '" + text +
                                              "' is no epoch cursor; one looks like 'epoch 3: 4x1200, 2x30'");
  }
}

TEST(EpochCursorTest, TextSurvivesTheRoundTrip) {
  const EpochCursor cursor{.epoch = 3, .stages = {{.world = 4, .consumed = {1200}}, {.world = 2, .consumed = {3, 4}}}};
  EXPECT_EQ(cursor.to_string(), "epoch 3: 4x1200, 2x3/4");
  EXPECT_EQ(EpochCursor::parse(cursor.to_string()).value(), cursor);
  EXPECT_EQ(EpochCursor::parse("epoch 9").value(), EpochCursor{.epoch = 9});
}

}  // namespace
}  // namespace dtr
