#include "checkpoint/checkpoint_support.hpp"

namespace dtr {
namespace {

using testing::as_ranks;
using testing::numbers;
using testing::patience;
using testing::rows_of;

class RoundTripTest : public ::testing::TestWithParam<int> {};

TEST_P(RoundTripTest, EveryRankReadsBackWhatItSaved) {
  const testing::TemporaryFolder store;
  constexpr std::uint64_t kRows = 37;
  constexpr std::uint64_t kColumns = 50001;  // 7.4 MB: more than one piece, not a multiple of a page
  const auto whole = numbers(kRows * kColumns, 7);
  as_ranks(GetParam(), [&](Group& group) {
    CheckpointManager manager(group, {.path = store.path().string()});
    const auto mine = rows_of(group.rank(), group.size(), kRows, kColumns);
    const std::vector<float> part(
        whole.begin() + static_cast<std::ptrdiff_t>(mine.offset[0] * kColumns),
        whole.begin() + static_cast<std::ptrdiff_t>((mine.offset[0] + mine.extent[0]) * kColumns));
    const std::vector<std::uint64_t> cursor{static_cast<std::uint64_t>(group.rank()), 123456789012345};
    const std::string cursor_name = "cursor/" + std::to_string(group.rank());
    const auto saved = manager.save(
        7, {TensorView::of("layers/0/weight", part, {kRows, kColumns}, mine), TensorView::of(cursor_name, cursor)},
        patience());
    ASSERT_TRUE(saved) << saved.error().to_string();

    const auto loaded = manager.load_latest(patience());
    ASSERT_TRUE(loaded) << loaded.error().to_string();
    EXPECT_EQ(loaded->step(), 7U);
    EXPECT_EQ(loaded->world(), group.size());
    EXPECT_TRUE(loaded->skipped().empty());
    EXPECT_EQ(loaded->get<float>("layers/0/weight").value(), whole);
    EXPECT_EQ(loaded->get<float>("layers/0/weight", mine).value(), part);
    EXPECT_EQ(loaded->get<std::uint64_t>(cursor_name).value(), cursor);
  });
}

INSTANTIATE_TEST_SUITE_P(Ranks, RoundTripTest, ::testing::Values(1, 2, 3, 4),
                         [](const auto& ranks) { return std::to_string(ranks.param); });

TEST(RoundTripTest, EveryDtypeAndShapeSurvives) {
  const testing::TemporaryFolder store;
  SoloGroup solo;
  CheckpointManager manager(solo, {.path = store.path().string(), .writers = 1});
  std::vector<std::byte> bytes(6 * 8);
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i * 37 + 5);
  std::vector<TensorView> tensors;
  for (const auto dtype : {DType::f64, DType::f32, DType::f16, DType::bf16, DType::i64, DType::i32, DType::i16,
                           DType::i8, DType::u64, DType::u32, DType::u16, DType::u8}) {
    const std::string name(to_string(dtype));
    const std::span<const std::byte> data(bytes);
    tensors.push_back({.name = name + "/scalar", .dtype = dtype, .data = data.first(size_of(dtype))});
    tensors.push_back(
        {.name = name + "/cube", .dtype = dtype, .global_shape = {1, 2, 3}, .data = data.first(6 * size_of(dtype))});
    tensors.push_back({.name = name + "/nothing", .dtype = dtype, .global_shape = {4, 0}});
  }
  ASSERT_TRUE(manager.save(0, tensors, patience()));
  const auto loaded = manager.load_latest(patience());
  ASSERT_TRUE(loaded) << loaded.error().to_string();
  ASSERT_EQ(loaded->tensors().size(), tensors.size());
  for (const auto& tensor : tensors) {
    const auto info = loaded->find(tensor.name);
    ASSERT_TRUE(info);
    EXPECT_EQ(info->dtype, tensor.dtype);
    EXPECT_EQ(info->global_shape, tensor.global_shape);
    std::vector<std::byte> back(tensor.data.size());
    const auto read = loaded->read(TensorTarget::of(tensor.name, back));
    ASSERT_TRUE(read) << read.error().to_string();
    EXPECT_TRUE(std::equal(back.begin(), back.end(), tensor.data.begin())) << tensor.name;
  }
}

TEST(RoundTripTest, MemoryMayChangeAsSoonAsSaveAsyncReturns) {
  const testing::TemporaryFolder store;
  SoloGroup solo;
  CheckpointManager manager(solo, {.path = store.path().string()});
  auto values = numbers(1 << 20, 1);
  const auto original = values;
  const auto ticket = manager.save_async(1, {TensorView::of("w", values)});
  std::fill(values.begin(), values.end(), -1.0F);
  ASSERT_TRUE(ticket);
  ASSERT_TRUE(ticket->wait(patience()));
  EXPECT_EQ(manager.load(1, patience())->get<float>("w").value(), original);
}

TEST(RoundTripTest, ReplicatedTensorsAreWrittenOnceAndReadEverywhere) {
  const testing::TemporaryFolder store;
  const auto weights = numbers(100000, 3);
  const auto bias = numbers(70000, 4);
  as_ranks(3, [&](Group& group) {
    CheckpointManager manager(group, {.path = store.path().string()});
    const auto saved = manager.save(
        3, {TensorView::of("w", weights).same_on_all_ranks(), TensorView::of("b", bias).same_on_all_ranks()},
        patience());
    ASSERT_TRUE(saved) << saved.error().to_string();
    EXPECT_EQ(manager.load(3, patience())->get<float>("b").value(), bias);
  });
  // Two tensors, two owners, the third rank has nothing to write.
  const auto folder = testing::step_folder(store.path(), 3);
  EXPECT_TRUE(std::filesystem::exists(folder / "rank_00000.h5"));
  EXPECT_TRUE(std::filesystem::exists(folder / "rank_00001.h5"));
  EXPECT_FALSE(std::filesystem::exists(folder / "rank_00002.h5"));
}

TEST(RoundTripTest, RanksWithoutTensorsTakePart) {
  const testing::TemporaryFolder store;
  const auto weights = numbers(1000, 3);
  as_ranks(3, [&](Group& group) {
    CheckpointManager manager(group, {.path = store.path().string()});
    std::vector<TensorView> mine;
    if (group.rank() == 1) mine.push_back(TensorView::of("w", weights));
    ASSERT_TRUE(manager.save(3, mine, patience()));
    EXPECT_EQ(manager.load_latest(patience())->get<float>("w").value(), weights);
  });
}

TEST(RoundTripTest, AStepWithoutAnyTensorIsAStep) {
  const testing::TemporaryFolder store;
  SoloGroup solo;
  CheckpointManager manager(solo, {.path = store.path().string()});
  const auto saved = manager.save(5, std::span<const TensorView>(), patience());
  ASSERT_TRUE(saved) << saved.error().to_string();
  EXPECT_EQ(manager.load_latest(patience())->step(), 5U);
}

TEST(RoundTripTest, ManySavesInARowKeepTheirOwnBytes) {
  const testing::TemporaryFolder store;
  as_ranks(2, [&](Group& group) {
    CheckpointManager manager(group, {.path = store.path().string(), .keep_last_n = 0, .staging_bytes = 16 << 20});
    std::vector<Ticket> tickets;
    for (std::uint64_t step = 1; step <= 8; ++step) {
      const auto values = numbers(300000, step * 10 + static_cast<std::uint64_t>(group.rank()));
      const auto ticket = manager.save_async(step, {TensorView::of("w" + std::to_string(group.rank()), values)});
      ASSERT_TRUE(ticket) << ticket.error().to_string();
      tickets.push_back(*ticket);
    }
    for (const auto& ticket : tickets) {
      const auto saved = ticket.wait(patience());
      ASSERT_TRUE(saved) << saved.error().to_string();
    }
    for (std::uint64_t step = 1; step <= 8; ++step) {
      for (std::uint64_t rank = 0; rank < 2; ++rank) {
        EXPECT_EQ(manager.load(step, patience())->get<float>("w" + std::to_string(rank)).value(),
                  numbers(300000, step * 10 + rank));
      }
    }
  });
}

TEST(RoundTripTest, TheDestructorFinishesTheSaveInFlight) {
  const testing::TemporaryFolder store;
  SoloGroup solo;
  const auto values = numbers(1 << 20, 1);
  {
    CheckpointManager manager(solo, {.path = store.path().string()});
    ASSERT_TRUE(manager.save_async(9, {TensorView::of("w", values)}));
  }
  CheckpointManager reader(solo, {.path = store.path().string()});
  EXPECT_EQ(reader.load_latest(patience())->get<float>("w").value(), values);
}

TEST(RoundTripTest, NoDescriptorStaysOpen) {
  const testing::TemporaryFolder store;
  ASSERT_TRUE(testing::save_alone(store.path(), 1));
  const auto before = testing::open_descriptors();
  for (std::uint64_t step = 2; step < 6; ++step) ASSERT_TRUE(testing::save_alone(store.path(), step));
  EXPECT_EQ(testing::open_descriptors(), before);
}

}  // namespace
}  // namespace dtr
