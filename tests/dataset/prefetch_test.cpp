#include "dtr/dataset/prefetch.hpp"

#include <atomic>
#include <chrono>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "dataset/files.hpp"
#include "dtr/base/config.hpp"
#include "dtr/dataset/readers/hdf5.hpp"
#include "support/test_support.hpp"

namespace dtr {
namespace {

using testing::scaled;
using testing::TemporaryFolder;
using testing::write_hdf5;
using namespace std::chrono_literals;

/// Sample i is the number i + plus. Counts its reads; can be slow, fail or stand still.
class Numbers final : public SampleReader {
 public:
  explicit Numbers(std::uint64_t samples, std::uint64_t plus = 0, bool random_access = true)
      : SampleReader({.name = "numbers", .samples = samples, .type = DType::u64, .random_access = random_access}),
        plus_(plus) {}

  mutable std::atomic<std::uint64_t> reads{0};
  mutable std::atomic<std::uint64_t> samples_read{0};
  std::atomic<std::uint64_t> fails_at{~std::uint64_t{0}};
  std::atomic<bool> held{false};
  std::atomic<bool> slow{false};

 private:
  Result<void> do_read(std::uint64_t first, std::uint64_t count, std::span<std::byte> out) const override {
    ++reads;
    samples_read += count;
    while (held) std::this_thread::sleep_for(1ms);
    if (slow) std::this_thread::sleep_for(std::chrono::microseconds(first % 7 * 100));
    if (first <= fails_at && fails_at < first + count) return fail(Errc::io_error, "sector gone", "read samples");
    for (std::uint64_t i = 0; i < count; ++i) {
      const std::uint64_t value = first + i + plus_;
      std::memcpy(out.data() + i * 8, &value, 8);
    }
    return {};
  }

  std::uint64_t plus_;
};

DatasetInfo set_of(std::uint64_t samples, ShardUnit unit = ShardUnit::shard, TailPolicy tail = TailPolicy::drop,
                   bool shuffle = true) {
  return {.id = "set",
          .total_samples = samples,
          .shard_size = 20,
          .shuffle = shuffle,
          .seed = 5,
          .unit = unit,
          .tail = tail};
}

std::vector<std::uint64_t> expected_rows(const ShardPlan& plan, std::uint64_t from = 0) {
  std::vector<std::uint64_t> rows;
  for (std::uint64_t row = from; row < plan.size(); ++row) rows.push_back(plan.sample(row));
  return rows;
}

/// Reads to the end and checks every batch against its indices.
std::vector<std::uint64_t> drain(BatchLoader& loader) {
  std::vector<std::uint64_t> rows;
  for (;;) {
    const auto batch = loader.next(scaled(20s));
    EXPECT_TRUE(batch) << batch.error().to_string();
    if (!batch || batch->rows == 0) return rows;
    for (std::size_t i = 0; i < batch->rows; ++i) {
      const bool real = i < batch->samples;
      EXPECT_EQ(batch->mask[i], real ? 1 : 0);
      for (std::size_t f = 0; f < batch->fields.size(); ++f) {
        EXPECT_EQ(batch->field<std::uint64_t>(f)[i], real ? batch->indices[i] + f : 0);
      }
      rows.push_back(batch->indices[i]);
    }
  }
}

TEST(BatchLoaderTest, DeliversThePlanInOrderWithAllFields) {
  const auto images = std::make_shared<Numbers>(1003);
  const auto labels = std::make_shared<Numbers>(1003, 1);
  for (const ShardUnit unit : {ShardUnit::shard, ShardUnit::sample}) {
    for (const bool shuffle : {true, false}) {
      const ShardPlan plan(set_of(1003, unit, TailPolicy::uneven, shuffle), 3, 1, 2);
      for (const std::uint64_t batch : {std::uint64_t{1}, std::uint64_t{16}, std::uint64_t{5000}}) {
        BatchLoader loader({images, labels}, plan, {.batch = batch});
        EXPECT_EQ(drain(loader), expected_rows(plan));
        EXPECT_EQ(loader.position(), plan.size());
        EXPECT_EQ(loader.next(1s).value().rows, 0U) << "the end stays the end";
      }
    }
  }
}

TEST(BatchLoaderTest, OrderDoesNotDependOnTiming) {
  const auto slow = std::make_shared<Numbers>(500);
  slow->slow = true;
  const ShardPlan plan(set_of(500), 2, 0, 0);
  for (const std::size_t depth : {std::size_t{1}, std::size_t{7}}) {
    BatchLoader loader({slow}, plan, {.batch = 9, .depth = depth});
    EXPECT_EQ(drain(loader), expected_rows(plan));
  }
}

TEST(BatchLoaderTest, PaddingIsMaskedAndZero) {
  const ShardPlan plan(set_of(10, ShardUnit::shard, TailPolicy::pad), 4, 3, 0);
  ASSERT_LT(plan.samples(), plan.size());
  BatchLoader loader({std::make_shared<Numbers>(10)}, plan, {.batch = 2});
  EXPECT_EQ(drain(loader).back(), kNoSample);
}

TEST(BatchLoaderTest, ReadsAheadByItsDepthAndNoFurther) {
  const auto reader = std::make_shared<Numbers>(1000);
  BatchLoader loader({reader}, ShardPlan(set_of(1000), 1, 0, 0), {.batch = 10, .depth = 3});
  const auto settled = [&](std::uint64_t samples) {
    const Deadline deadline = scaled(10s);
    while (reader->samples_read < samples && !deadline.passed()) std::this_thread::sleep_for(1ms);
    std::this_thread::sleep_for(20ms);  // time to do too much
    return reader->samples_read.load();
  };
  EXPECT_EQ(settled(40), 40U);  // depth, and the slot that a batch in hand will occupy
  ASSERT_TRUE(loader.next(scaled(10s)));
  EXPECT_EQ(settled(40), 40U);
  ASSERT_TRUE(loader.next(scaled(10s)));
  EXPECT_EQ(settled(50), 50U);
}

TEST(BatchLoaderTest, ABatchStaysValidUntilTheNextCall) {
  const auto reader = std::make_shared<Numbers>(1000);
  BatchLoader loader({reader}, ShardPlan(set_of(1000), 1, 0, 0), {.batch = 10, .depth = 1});
  for (int i = 0; i < 20; ++i) {
    const SampleBatch batch = loader.next(scaled(10s)).value();
    std::this_thread::sleep_for(2ms);  // time for the thread to overwrite it
    for (std::size_t row = 0; row < batch.rows; ++row) {
      ASSERT_EQ(batch.field<std::uint64_t>(0)[row], loader.plan().sample(batch.first_row + row));
    }
  }
}

TEST(BatchLoaderTest, ErrorsComeInTheirPlaceAndStay) {
  const auto reader = std::make_shared<Numbers>(100);
  const ShardPlan plan(set_of(100, ShardUnit::shard, TailPolicy::drop, false), 1, 0, 0);
  reader->fails_at = 35;
  BatchLoader loader({reader}, plan, {.batch = 10, .depth = 5});
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(loader.next(scaled(10s)));
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(loader.next(scaled(10s)).error().to_string(), "read samples: io_error: sector gone");
  }
  EXPECT_EQ(loader.position(), 30U);
  reader->fails_at = ~std::uint64_t{0};
  ASSERT_TRUE(loader.begin(plan, loader.position()));
  EXPECT_EQ(drain(loader), expected_rows(plan, 30));
}

TEST(BatchLoaderTest, NextEndsAtItsDeadlineAndLosesNothing) {
  const auto reader = std::make_shared<Numbers>(100);
  reader->held = true;
  const ShardPlan plan(set_of(100), 1, 0, 0);
  BatchLoader loader({reader}, plan, {.batch = 10});
  EXPECT_EQ(loader.next(20ms).error().to_string(), "load batches of 'set': timed_out: row 0 is not read yet");
  reader->held = false;
  EXPECT_EQ(drain(loader), expected_rows(plan));
}

TEST(BatchLoaderTest, BeginGoesToAnyRowAndEpochWhateverIsBeingRead) {
  const auto reader = std::make_shared<Numbers>(200);
  reader->slow = true;
  BatchLoader loader({reader}, ShardPlan(set_of(200), 2, 0, 0), {.batch = 7, .depth = 4});
  for (std::uint64_t epoch = 1; epoch <= 20; ++epoch) {
    const ShardPlan plan(set_of(200), 2, 1, epoch);
    ASSERT_TRUE(loader.begin(plan, epoch * 4));
    if (epoch % 3 == 0) {
      EXPECT_EQ(drain(loader), expected_rows(plan, epoch * 4));
    } else {
      EXPECT_EQ(loader.next(scaled(10s)).value().first_row, epoch * 4);
    }
  }
  EXPECT_EQ(loader.begin(ShardPlan(set_of(200), 2, 1, 0), 101).error().to_string(),
            "load batches of 'set': out_of_range: row 101 of 100");
}

TEST(BatchLoaderTest, ACheckpointedCursorResumesOnAnotherNumberOfRanks) {
  const DatasetInfo info = set_of(1000, ShardUnit::shard, TailPolicy::uneven);
  std::vector<int> seen(1000, 0);
  EpochCursor cursor;
  for (int rank = 0; rank < 3; ++rank) {
    BatchLoader loader({std::make_shared<Numbers>(1000)}, ShardPlan(info, 3, rank, 4), {.batch = 8});
    for (int step = 0; step < 11; ++step) {
      const SampleBatch batch = loader.next(scaled(10s)).value();
      for (const std::uint64_t index : batch.indices) ++seen[index];
    }
    cursor = loader.cursor();
    EXPECT_EQ(cursor.to_string(), "epoch 4: 3x88");
  }
  for (int rank = 0; rank < 5; ++rank) {
    BatchLoader loader({std::make_shared<Numbers>(1000)}, ShardPlan(info, 5, rank, cursor), {.batch = 8});
    for (const std::uint64_t index : drain(loader)) ++seen[index];
  }
  EXPECT_EQ(seen, std::vector<int>(1000, 1));
}

TEST(BatchLoaderTest, WithoutRandomAccessShardsAreReadWholeAndOnce) {
  const auto reader = std::make_shared<Numbers>(400, 0, false);
  const ShardPlan plan(set_of(400), 2, 0, 0);
  BatchLoader loader({reader}, plan, {.batch = 8});
  EXPECT_EQ(drain(loader), expected_rows(plan));
  EXPECT_EQ(reader->reads, 10U);  // its half of the 20 shards
  EXPECT_EQ(reader->samples_read, 200U);
  BatchLoader small({reader}, plan, {.batch = 8, .shard_buffer_bytes = 20 * 8 - 1});
  EXPECT_EQ(drain(small), expected_rows(plan));
  EXPECT_GT(reader->reads, 100U) << "a shard beyond the limit is not buffered";
}

TEST(BatchLoaderTest, WholeShardsAreReadAheadAsOftenAsAskedAndNoFurther) {
  for (const std::size_t ahead : {0U, 1U, 3U}) {
    const auto reader = std::make_shared<Numbers>(400, 0, false);
    const ShardPlan plan(set_of(400), 1, 0, 0);  // 20 shards of 20
    BatchLoader loader({reader}, plan, {.batch = 5, .depth = 1, .prefetch_shards = ahead});
    const auto settled = [&](std::uint64_t shards) {
      const Deadline deadline = scaled(10s);
      while (reader->reads < shards && !deadline.passed()) std::this_thread::sleep_for(1ms);
      std::this_thread::sleep_for(20ms);  // time to do too much
      return reader->reads.load();
    };
    EXPECT_EQ(settled(1 + ahead), 1 + ahead) << "the first two batches are of the first shard";
    for (int batch = 0; batch < 4; ++batch) ASSERT_TRUE(loader.next(scaled(10s)));
    EXPECT_EQ(settled(2 + ahead), 2 + ahead) << "the batch read ahead is of the second shard";
    drain(loader);
    EXPECT_EQ(reader->reads, 20U);
    EXPECT_EQ(reader->samples_read, 400U);
  }
}

TEST(BatchLoaderTest, ShardsReadAheadStayWithinTheBuffer) {
  const auto reader = std::make_shared<Numbers>(400, 0, false);
  BatchLoader loader({reader}, ShardPlan(set_of(400), 1, 0, 0),
                     {.batch = 5, .depth = 1, .shard_buffer_bytes = std::size_t{2} * 20 * 8, .prefetch_shards = 10});
  const Deadline deadline = scaled(10s);
  while (reader->reads < 2 && !deadline.passed()) std::this_thread::sleep_for(1ms);
  std::this_thread::sleep_for(20ms);  // time to do too much
  EXPECT_EQ(reader->reads, 2U);
  EXPECT_EQ(drain(loader), expected_rows(ShardPlan(set_of(400), 1, 0, 0)));
}

TEST(BatchLoaderTest, OrderDoesNotDependOnShardsReadAhead) {
  for (const ShardUnit unit : {ShardUnit::shard, ShardUnit::sample}) {
    EpochCursor cursor{.epoch = 2};
    for (int part = 0; part < 3; ++part) {  // the rest of an epoch has pieces of shards
      const ShardPlan plan(set_of(1003, unit, TailPolicy::pad), 3 - part, 0, cursor);
      for (const std::size_t ahead : {0U, 1U, 7U}) {
        const auto whole = std::make_shared<Numbers>(1003, 0, false);
        const auto quick = std::make_shared<Numbers>(1003, 1);
        whole->slow = true;
        BatchLoader loader({whole, quick}, plan, {.batch = 50, .prefetch_shards = ahead});
        EXPECT_EQ(drain(loader), expected_rows(plan));
        ASSERT_TRUE(loader.begin(plan, plan.size() / 2));
        EXPECT_EQ(drain(loader), expected_rows(plan, plan.size() / 2));
      }
      cursor = plan.cursor_after(plan.size() / 3);
    }
  }
}

TEST(BatchLoaderTest, AShardThatCannotBeReadAheadFailsInItsPlace) {
  const auto reader = std::make_shared<Numbers>(100, 0, false);
  const ShardPlan plan(set_of(100), 1, 0, 0);
  const std::uint64_t third = plan.range_at(45).shard_id * 20;
  reader->fails_at = third;
  BatchLoader loader({reader}, plan, {.batch = 20, .depth = 1});
  for (int batch = 0; batch < 2; ++batch) ASSERT_TRUE(loader.next(scaled(10s))) << batch;
  EXPECT_EQ(loader.next(scaled(10s)).error().to_string(), "read samples: io_error: sector gone");
  reader->fails_at = ~std::uint64_t{0};
  ASSERT_TRUE(loader.begin(plan, loader.position()));
  EXPECT_EQ(drain(loader), expected_rows(plan, 40));
}

TEST(BatchLoaderTest, AnotherEpochUsesTheShardsThatAreInMemory) {
  for (const std::size_t ahead : {0U, 2U}) {
    const auto reader = std::make_shared<Numbers>(20, 0, false);  // one shard
    BatchLoader loader({reader}, ShardPlan(set_of(20), 1, 0, 0), {.batch = 6, .prefetch_shards = ahead});
    for (std::uint64_t epoch = 0; epoch < 5; ++epoch) {
      const ShardPlan plan(set_of(20), 1, 0, epoch);
      if (epoch > 0) {
        ASSERT_TRUE(loader.begin(plan));
      }
      EXPECT_EQ(drain(loader), expected_rows(plan));
    }
    EXPECT_EQ(reader->reads, 1U);
  }
}

TEST(BatchLoaderTest, StopsCleanlyWhileShardsAreReadAhead) {
  const auto reader = std::make_shared<Numbers>(2000, 0, false);
  reader->slow = true;
  for (std::size_t i = 0; i < 30; ++i) {
    BatchLoader loader({reader}, ShardPlan(set_of(2000), 1, 0, i), {.batch = 30, .prefetch_shards = i % 4});
    for (std::size_t taken = 0; taken < i % 3; ++taken) EXPECT_TRUE(loader.next(scaled(10s)));
    if (i % 5 == 0) {
      EXPECT_TRUE(loader.begin(ShardPlan(set_of(2000), 1, 0, i + 1)));
    }
  }
}

TEST(LoaderOptionsTest, ShardsAheadComeFromTheConfiguration) {
  EXPECT_EQ(LoaderOptions::from(Config()).prefetch_shards, 2U);
  const auto config = Config::load({.overrides = {{"dataset.prefetch_shards", "7"}}, .environment = ConfigPairs{}});
  EXPECT_EQ(LoaderOptions::from(config.value()).prefetch_shards, 7U);
}

TEST(BatchLoaderTest, Hdf5RowsArriveThroughTheShardBuffer) {
  const TemporaryFolder folder;
  const std::string path = (folder / "f.h5").string();
  std::vector<std::uint64_t> values(500);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = i;
  write_hdf5(path, "x", H5T_NATIVE_UINT64, {500}, values.data(), 50);
  const ShardPlan plan(set_of(500), 2, 1, 3);
  BatchLoader loader({open_hdf5(path, "x").value()}, plan, {.batch = 32});
  EXPECT_EQ(drain(loader), expected_rows(plan));
}

TEST(BatchLoaderTest, StopsCleanlyAtAnyMoment) {
  const auto reader = std::make_shared<Numbers>(10'000);
  reader->slow = true;
  for (int i = 0; i < 30; ++i) {
    BatchLoader loader({reader}, ShardPlan(set_of(10'000), 1, 0, 0), {.batch = 4, .depth = 3});
    for (int taken = 0; taken < i % 3; ++taken) EXPECT_TRUE(loader.next(scaled(10s)));
    if (i % 5 == 0) {
      BatchLoader moved = std::move(loader);
      EXPECT_TRUE(moved.next(scaled(10s)));
    }
  }
}

TEST(BatchLoaderTest, BadArgumentsAreSaid) {
  const ShardPlan plan(set_of(100), 1, 0, 0);
  const auto error_of = [&](std::vector<ReaderPtr> readers, LoaderOptions options) {
    try {
      const BatchLoader loader(std::move(readers), plan, options);
      return std::string("no error");
    } catch (const Exception& exception) {
      return exception.error().to_string();
    }
  };
  const auto reader = std::make_shared<Numbers>(100);
  EXPECT_EQ(error_of({}, {}), "load batches of 'set': invalid_argument: no reader");
  EXPECT_EQ(error_of({nullptr}, {}), "load batches of 'set': invalid_argument: a reader is null");
  EXPECT_EQ(error_of({reader}, {.batch = 0}), "load batches of 'set': invalid_argument: a batch of 0 rows");
  EXPECT_EQ(error_of({reader}, {.depth = 0}), "load batches of 'set': invalid_argument: a depth of 0 batches");
  EXPECT_EQ(error_of({reader, std::make_shared<Numbers>(99)}, {}),
            "load batches of 'set': invalid_argument: 'numbers' has 99 samples, the plan is over 100");
}

}  // namespace
}  // namespace dtr
