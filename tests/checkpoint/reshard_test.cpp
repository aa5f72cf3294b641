// Saved on N ranks, read on M, in any cut.
#include <random>

#include "checkpoint/checkpoint_support.hpp"
#include "dtr/checkpoint/detail/geometry.hpp"

namespace dtr {
namespace {

using testing::as_ranks;
using testing::patience;
using testing::rows_of;

std::vector<std::int32_t> counting(std::size_t count) {
  std::vector<std::int32_t> values(count);
  std::iota(values.begin(), values.end(), 0);
  return values;
}

/// The elements of a box, picked one by one from the whole tensor.
std::vector<std::int32_t> picked(const std::vector<std::int32_t>& whole, const Shape& shape, const Box& box) {
  std::vector<std::int32_t> part;
  Shape at = box.offset;
  if (checkpoint::volume(box.extent) == 0) return part;
  for (;;) {
    std::uint64_t index = 0;
    for (std::size_t d = 0; d < shape.size(); ++d) index = index * shape[d] + at[d];
    part.push_back(whole[index]);
    std::size_t d = shape.size();
    for (; d > 0; --d) {
      if (++at[d - 1] < box.offset[d - 1] + box.extent[d - 1]) break;
      at[d - 1] = box.offset[d - 1];
    }
    if (d == 0) return part;
  }
}

TEST(ReshardTest, AnyNumberOfRanksReadsWhatAnyOtherSaved) {
  constexpr std::uint64_t kRows = 23;
  constexpr std::uint64_t kColumns = 9;
  const auto whole = counting(kRows * kColumns);
  for (const int writers : {1, 3, 4}) {
    const testing::TemporaryFolder store;
    as_ranks(writers, [&](Group& group) {
      CheckpointManager manager(group, {.path = store.path().string(), .writers = 1});
      const auto mine = rows_of(group.rank(), writers, kRows, kColumns);
      const auto part = picked(whole, {kRows, kColumns}, mine);
      ASSERT_TRUE(manager.save(1, {TensorView::of("t", part, {kRows, kColumns}, mine)}, patience()));
    });
    for (const int readers : {1, 2, 5}) {
      as_ranks(readers, [&](Group& group) {
        CheckpointManager manager(group, {.path = store.path().string(), .writers = 1});
        const auto mine = rows_of(group.rank(), readers, kRows, kColumns);
        std::vector<std::int32_t> part(mine.extent[0] * kColumns, -1);
        const auto loaded = manager.load_latest({TensorTarget::of("t", part, mine)}, patience());
        ASSERT_TRUE(loaded) << loaded.error().to_string();
        EXPECT_EQ(part, picked(whole, {kRows, kColumns}, mine)) << writers << " -> " << readers;
      });
    }
  }
}

TEST(ReshardTest, RandomBoxesOfThreeDimensionsAreReadRight) {
  const testing::TemporaryFolder store;
  const Shape shape{6, 7, 11};
  const auto whole = counting(6 * 7 * 11);
  // Four ranks hold the quarters of the middle and last dimension.
  as_ranks(4, [&](Group& group) {
    CheckpointManager manager(group, {.path = store.path().string(), .writers = 1});
    const bool low = group.rank() % 2 == 0;
    const bool left = group.rank() / 2 == 0;
    const Box mine{.offset = {0, low ? 0U : 3U, left ? 0U : 5U}, .extent = {6, low ? 3U : 4U, left ? 5U : 6U}};
    const auto part = picked(whole, shape, mine);
    ASSERT_TRUE(manager.save(1, {TensorView::of("t", part, shape, mine)}, patience()));
  });
  SoloGroup solo;
  CheckpointManager manager(solo, {.path = store.path().string(), .writers = 1});
  const auto loaded = manager.load_latest(patience());
  ASSERT_TRUE(loaded);
  std::mt19937 random(11);
  for (int round = 0; round < 300; ++round) {
    Box box;
    for (const auto side : shape) {
      box.offset.push_back(random() % side);
      box.extent.push_back(random() % (side - box.offset.back() + 1));
    }
    const auto read = loaded->get<std::int32_t>("t", box);
    ASSERT_TRUE(read) << read.error().to_string();
    ASSERT_EQ(*read, picked(whole, shape, box)) << checkpoint::to_string(box);
  }
}

TEST(ReshardTest, ABoxAcrossPiecesOfALargeShardIsReadRight) {
  const testing::TemporaryFolder store;
  const Shape shape{2000, 3000};  // 24 MB: six pieces
  const auto whole = counting(2000 * 3000);
  SoloGroup solo;
  CheckpointManager manager(solo, {.path = store.path().string()});
  ASSERT_TRUE(manager.save(1, {TensorView::of("t", whole, shape)}, patience()));
  const auto loaded = manager.load_latest(patience());
  ASSERT_TRUE(loaded);
  for (const Box& box : {Box{{0, 2990}, {2000, 10}}, Box{{349, 0}, {2, 3000}}, Box{{100, 1}, {1500, 2999}},
                         Box{{1999, 2999}, {1, 1}}, Box{{0, 0}, {2000, 3000}}}) {
    EXPECT_EQ(loaded->get<std::int32_t>("t", box).value(), picked(whole, shape, box)) << checkpoint::to_string(box);
  }
}

TEST(ReshardTest, ALargeReadIsSharedByThreadsAndEveryByteIsStillVerified) {
  const testing::TemporaryFolder store;
  const Shape shape{3001, 4000};  // 48 MB
  const auto whole = counting(3001 * 4000);
  as_ranks(2, [&](Group& group) {
    CheckpointManager manager(group, {.path = store.path().string()});
    const auto mine = rows_of(group.rank(), 2, 3001, 4000);
    const auto part = picked(whole, shape, mine);
    ASSERT_TRUE(manager.save(1, {TensorView::of("t", part, shape, mine)}, patience()));
  });
  SoloGroup solo;
  CheckpointManager manager(solo, {.path = store.path().string()});
  const auto loaded = manager.load_latest(patience());
  ASSERT_TRUE(loaded);
  for (const Box& box : {Box{}, Box{{7, 1}, {2990, 3998}}, Box{{1400, 0}, {1601, 4000}}}) {
    const auto written_out = checkpoint::whole_or(box, shape);
    EXPECT_EQ(loaded->get<std::int32_t>("t", box).value(), picked(whole, shape, written_out));
  }
  for (const char* file : {"rank_00000.h5", "rank_00001.h5"}) {
    const auto path = testing::step_folder(store.path(), 1) / file;
    const auto size = std::filesystem::file_size(path);
    for (const std::uintmax_t at : {std::uintmax_t{100}, size / 4, size / 2, size - 1}) {
      testing::flip_bit(path, at);
      EXPECT_EQ(manager.verify(1, patience()).error().code, Errc::corrupt) << file << " byte " << at;
      testing::flip_bit(path, at);
    }
  }
  EXPECT_TRUE(manager.verify(1, patience()));
}

TEST(ReshardTest, WhatDoesNotFitIsRefusedWithItsName) {
  const testing::TemporaryFolder store;
  ASSERT_TRUE(testing::save_alone(store.path(), 1, 100));
  SoloGroup solo;
  CheckpointManager manager(solo, {.path = store.path().string()});
  const auto loaded = manager.load_latest(patience());
  ASSERT_TRUE(loaded);
  EXPECT_EQ(loaded->get<float>("v").error().code, Errc::not_found);
  EXPECT_NE(loaded->get<float>("v").error().message.find("'v'"), std::string::npos);
  EXPECT_EQ(loaded->get<double>("w").error().code, Errc::invalid_argument);
  EXPECT_EQ(loaded->get<float>("w", {.offset = {90}, .extent = {11}}).error().code, Errc::out_of_range);
  EXPECT_EQ(loaded->get<float>("w", {.offset = {0, 0}, .extent = {1, 1}}).error().code, Errc::out_of_range);
  EXPECT_EQ(loaded->get<float>("w", {.offset = {UINT64_MAX}, .extent = {2}}).error().code, Errc::out_of_range);
  std::vector<float> wrong(99);
  EXPECT_EQ(loaded->read(TensorTarget::of("w", wrong)).error().code, Errc::invalid_argument);
  // As targets of a load these are the caller's mistake: no older step is tried.
  EXPECT_EQ(manager.load_latest({TensorTarget::of("v", wrong)}, patience()).error().code, Errc::not_found);
  EXPECT_EQ(manager.load_latest({TensorTarget::of("w", wrong)}, patience()).error().code, Errc::invalid_argument);
}

}  // namespace
}  // namespace dtr
