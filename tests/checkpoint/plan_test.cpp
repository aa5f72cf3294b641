// Bad input to a save: refused at the call, named, and known to the other ranks.
#include "dtr/checkpoint/detail/plan.hpp"

#include "checkpoint/checkpoint_support.hpp"
#include "dtr/base/config.hpp"

namespace dtr {
namespace {

using checkpoint::make_plan;
using testing::patience;

const std::vector<float> kSix(6, 1.0F);

Error refusal(TensorView tensor) {
  const auto plan = make_plan(std::span(&tensor, 1), 0, 1);
  EXPECT_FALSE(plan);
  return plan ? Error{} : plan.error();
}

TEST(PlanTest, ABoxThatLeavesTheShapeIsRefused) {
  EXPECT_EQ(refusal(TensorView::of("w", kSix, {4, 3}, {{3, 0}, {2, 3}})).to_string(),
            "save: out_of_range: tensor 'w': box [3:5, 0:3] leaves the shape [4, 3]");
  EXPECT_EQ(refusal(TensorView::of("w", kSix, {4, 3}, {{UINT64_MAX, 0}, {2, 3}})).code, Errc::out_of_range);
  EXPECT_EQ(refusal(TensorView::of("w", kSix, {4, 3}, {{0}, {6}})).code, Errc::out_of_range);
  EXPECT_EQ(refusal(TensorView::of("w", kSix, {4, 3}, {{0, 0}, {2}})).code, Errc::out_of_range);
}

TEST(PlanTest, DataOfTheWrongSizeIsRefused) {
  EXPECT_EQ(refusal(TensorView::of("w", kSix, {7})).to_string(),
            "save: invalid_argument: tensor 'w' has 24 bytes of data, its box [0:7] of f32 has 28");
}

TEST(PlanTest, AShapeBeyondAllFilesIsRefused) {
  EXPECT_EQ(refusal(TensorView::of("w", kSix, {UINT64_MAX, UINT64_MAX})).code, Errc::invalid_argument);
  EXPECT_EQ(refusal(TensorView::of("w", kSix, {UINT64_MAX / 4})).code, Errc::invalid_argument);
  EXPECT_EQ(refusal(TensorView::of("w", kSix, Shape(33, 1))).code, Errc::invalid_argument);
}

TEST(PlanTest, NamesThatNoFileCanHoldAreRefused) {
  for (const std::string name : {"", "/", "/w", "w/", "a//b", "a/./b", "..", "a\nb", "a\x7f", "\xff", "\xc0\x80",
                                 "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xe2\x82"}) {
    EXPECT_EQ(refusal(TensorView::of(name, kSix)).code, Errc::invalid_argument) << name;
  }
  EXPECT_EQ(refusal(TensorView::of(std::string("a\0b", 3), kSix)).code, Errc::invalid_argument);
  EXPECT_EQ(refusal(TensorView::of(std::string(1025, 'x'), kSix)).code, Errc::invalid_argument);
  for (const std::string name : {"w", "a/b/c", "100%", "gewicht_größe", "重み", ".hidden", "a b", "\"quoted\""}) {
    const auto tensor = TensorView::of(name, kSix);
    EXPECT_TRUE(make_plan(std::span(&tensor, 1), 0, 1)) << name;
  }
}

TEST(PlanTest, ANameGivenTwiceIsRefused) {
  const std::vector<TensorView> twice{TensorView::of("w", kSix), TensorView::of("v", kSix), TensorView::of("w", kSix)};
  EXPECT_EQ(make_plan(twice, 0, 1).error().to_string(), "save: already_exists: tensor 'w' is given twice");
}

TEST(PlanTest, ATensorCannotBeAFolderToo) {
  // "a!" sorts between "a" and "a/b".
  const std::vector<TensorView> both{TensorView::of("a/b", kSix), TensorView::of("a", kSix),
                                     TensorView::of("a!", kSix)};
  EXPECT_EQ(make_plan(both, 0, 1).error().message, "'a' is a tensor and also the folder of 'a/b'");
}

TEST(PlanTest, APartOfATensorCannotBeReplicated) {
  auto tensor = TensorView::of("w", kSix, {12}, {{0}, {6}});
  tensor.replicated = true;
  EXPECT_EQ(refusal(tensor).code, Errc::invalid_argument);
}

TEST(PlanTest, EachReplicatedTensorHasOneWriterAndTheBytesAreSpread) {
  std::vector<std::vector<float>> data;
  for (std::size_t i = 1; i <= 20; ++i) data.emplace_back(i * 10);
  std::vector<TensorView> tensors;
  for (const auto& values : data) {
    tensors.push_back(TensorView::of("t" + std::to_string(values.size()), values).same_on_all_ranks());
  }
  std::vector<std::string> written;
  for (int rank = 0; rank < 3; ++rank) {
    const auto plan = make_plan(tensors, rank, 3);
    ASSERT_TRUE(plan);
    EXPECT_EQ(plan->replicated, make_plan(tensors, 0, 3)->replicated);
    std::uint64_t bytes = 0;
    for (const auto& tensor : plan->tensors) {
      written.push_back(tensor.info.name);
      bytes += tensor.bytes;
    }
    EXPECT_NEAR(static_cast<double>(bytes), 2100.0 * 4 / 3, 400) << rank;
  }
  std::sort(written.begin(), written.end());
  EXPECT_EQ(written.size(), 20U);
  EXPECT_EQ(std::unique(written.begin(), written.end()), written.end());
}

TEST(BadInputTest, OneRanksRefusedCallFailsTheTicketsOfTheOthersWithItsReason) {
  const testing::TemporaryFolder store;
  testing::as_ranks(3, [&](Group& group) {
    CheckpointManager manager(group, {.path = store.path().string(), .writers = 1});
    const auto good = manager.save_async(
        1, {TensorView::of("w" + std::to_string(group.rank()), kSix, group.rank() == 1 ? Shape{7} : Shape{6})});
    if (group.rank() == 1) {
      EXPECT_EQ(good.error().code, Errc::invalid_argument);
    } else {
      ASSERT_TRUE(good);
      const auto saved = good->wait(patience());
      ASSERT_FALSE(saved);
      EXPECT_EQ(saved.error().code, Errc::invalid_argument);
      EXPECT_EQ(saved.error().peer, 1);
      EXPECT_NE(saved.error().message.find("rank 1: tensor 'w1'"), std::string::npos) << saved.error().message;
    }
    // The next save is level again.
    ASSERT_TRUE(manager.save(2, {TensorView::of("w" + std::to_string(group.rank()), kSix)}, patience()));
    EXPECT_EQ(manager.load_latest(patience())->step(), 2U);
  });
  EXPECT_TRUE(testing::leftovers(store.path()).empty());
}

TEST(BadInputTest, RanksWhoseTensorsDoNotFitTogetherAllGetTheSameError) {
  const testing::TemporaryFolder store;
  testing::as_ranks(2, [&](Group& group) {
    CheckpointManager manager(group, {.path = store.path().string(), .writers = 1});
    const auto overlap = manager.save(1, {TensorView::of("w", kSix)}, patience());
    ASSERT_FALSE(overlap);
    EXPECT_EQ(overlap.error().to_string(),
              "save: overlap: tensor 'w': box [0:6] of rank 0 overlaps box [0:6] of rank 1");
    const auto hole = manager.save(1, {TensorView::of("w", kSix, {13}, {{group.rank() * 6ULL}, {6}})}, patience());
    ASSERT_FALSE(hole);
    EXPECT_EQ(hole.error().code, Errc::invalid_argument);
    auto mine = TensorView::of("w" + std::to_string(group.rank()), kSix).same_on_all_ranks();
    const auto replicated = manager.save(1, {mine}, patience());
    ASSERT_FALSE(replicated);
    EXPECT_EQ(replicated.error().message, "ranks 0 and 1 name different replicated tensors");
  });
  EXPECT_TRUE(testing::leftovers(store.path()).empty());
}

TEST(BadInputTest, RanksThatSaveDifferentStepsAreNamed) {
  const testing::TemporaryFolder store;
  testing::as_ranks(2, [&](Group& group) {
    CheckpointManager manager(group, {.path = store.path().string(), .writers = 1});
    const std::uint64_t step = group.rank() == 0 ? 10 : 11;
    const auto saved = manager.save(step, {TensorView::of("w" + std::to_string(group.rank()), kSix)}, patience());
    ASSERT_FALSE(saved);
    EXPECT_EQ(saved.error().code, Errc::invalid_argument);
    EXPECT_NE(saved.error().message.find("step 10"), std::string::npos) << saved.error().message;
    EXPECT_NE(saved.error().message.find("step 11"), std::string::npos) << saved.error().message;
    ASSERT_TRUE(manager.save(12, {TensorView::of("w" + std::to_string(group.rank()), kSix)}, patience()));
  });
  EXPECT_TRUE(testing::leftovers(store.path()).empty());
}

TEST(OptionsTest, TheyComeFromTheConfiguration) {
  const auto options = [](ConfigPairs pairs) {
    const auto config = Config::load({.overrides = std::move(pairs), .environment = ConfigPairs{}});
    return CheckpointOptions::from(config.value());
  };
  const auto set = options({{"checkpoint.path", "/x"},
                            {"checkpoint.keep_last_n", "7"},
                            {"checkpoint.interval_steps", "20"},
                            {"checkpoint.writers", "3"}});
  ASSERT_TRUE(set);
  EXPECT_EQ(set->path, "/x");
  EXPECT_EQ(set->keep_last_n, 7U);
  EXPECT_EQ(set->writers, 3);
  EXPECT_EQ(set->staging_bytes, 0U);
  EXPECT_EQ(set->interval_steps, 20U);
  EXPECT_EQ(options({{"checkpoint.compression", "zstd"}}).error().code, Errc::unsupported);
  EXPECT_EQ(options({{"storage.backend", "s3"}, {"storage.bucket", "b"}}).error().to_string(),
            "checkpoint: unsupported: storage.backend = 's3': this version writes with 'local' only");
}

TEST(OptionsTest, AStepIsDueEveryIntervalAndNotAtTheStart) {
  SoloGroup solo;
  const CheckpointManager every_20(solo, {.path = "x", .interval_steps = 20});
  std::vector<std::uint64_t> due;
  for (std::uint64_t step = 0; step <= 45; ++step) {
    if (every_20.due(step)) due.push_back(step);
  }
  EXPECT_EQ(due, (std::vector<std::uint64_t>{20, 40}));
  EXPECT_FALSE(CheckpointManager(solo, {.path = "x", .interval_steps = 0}).due(1000)) << "0 = never";
}

TEST(BadInputTest, OptionsThatCannotWorkThrow) {
  SoloGroup solo;
  EXPECT_THROW(CheckpointManager(solo, {}), Exception);
  EXPECT_THROW(CheckpointManager(solo, {.path = "x", .writers = 0}), Exception);
}

}  // namespace
}  // namespace dtr
