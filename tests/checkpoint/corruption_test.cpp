// Broken steps: found out before their bytes are used, passed over with a reason, replaced when saved again.
#include "checkpoint/checkpoint_support.hpp"
#include "dtr/checkpoint/detail/checksum.hpp"
#include "dtr/checkpoint/detail/manifest.hpp"

namespace dtr {
namespace {

using testing::flip_bit;
using testing::numbers;
using testing::patience;
using testing::save_alone;
using testing::step_folder;

/// Two steps, the newer to be broken.
class CorruptionTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(save_alone(store_.path(), 10, kCount));
    ASSERT_TRUE(save_alone(store_.path(), 20, kCount));
  }

  [[nodiscard]] std::filesystem::path newest(const std::string& file) const {
    return step_folder(store_.path(), 20) / file;
  }

  /// Where the data of "w" begins.
  [[nodiscard]] std::uint64_t data_position() const {
    const auto manifest = checkpoint::decode_manifest(testing::read_all(newest("manifest.json")));
    return manifest.value().find("w")->shards.front().position;
  }

  /// All ranks pass over step 20 for a reason with `word` in it and read step 10; steps() and verify() agree.
  void expect_fall_back(const std::string& word, Errc code) {
    testing::as_ranks(3, [&](Group& group) {
      CheckpointManager manager(group, {.path = store_.path().string(), .writers = 1});
      const auto loaded = manager.load_latest(patience());
      ASSERT_TRUE(loaded) << loaded.error().to_string();
      EXPECT_EQ(loaded->step(), 10U);
      ASSERT_EQ(loaded->skipped().size(), 1U);
      EXPECT_TRUE(loaded->skipped()[0].starts_with("step 20: ")) << loaded->skipped()[0];
      EXPECT_NE(loaded->skipped()[0].find(word), std::string::npos) << loaded->skipped()[0];
      EXPECT_EQ(loaded->get<float>("w").value(), numbers(kCount, 10));
      EXPECT_EQ(manager.verify(20, patience()).error().code, code);
      EXPECT_TRUE(manager.verify(10, patience()));
      EXPECT_EQ(manager.load(20, patience()).error().code, code);
    });
  }

  static constexpr std::size_t kCount = 3'000'000;  // three pieces
  testing::TemporaryFolder store_;
};

TEST_F(CorruptionTest, OneFlippedBitOfDataMakesAllRanksFallBack) {
  flip_bit(newest("rank_00000.h5"), data_position() + 5'000'000, 3);
  expect_fall_back("tensor 'w': checksum of bytes", Errc::corrupt);
}

TEST_F(CorruptionTest, OneFlippedBitOfHdf5MetadataMakesAllRanksFallBack) {
  flip_bit(newest("rank_00000.h5"), 20);
  expect_fall_back("checksum of the HDF5 metadata", Errc::corrupt);
}

TEST_F(CorruptionTest, ATruncatedFileMakesAllRanksFallBack) {
  const auto file = newest("rank_00000.h5");
  std::filesystem::resize_file(file, std::filesystem::file_size(file) - 1);
  expect_fall_back("the manifest says", Errc::truncated);
}

TEST_F(CorruptionTest, AnExtendedFileMakesAllRanksFallBack) {
  const auto file = newest("rank_00000.h5");
  std::filesystem::resize_file(file, std::filesystem::file_size(file) + 1);
  expect_fall_back("the manifest says", Errc::truncated);
}

TEST_F(CorruptionTest, AMissingFileMakesAllRanksFallBack) {
  std::filesystem::remove(newest("rank_00000.h5"));
  expect_fall_back("rank_00000.h5: No such file", Errc::not_found);
}

TEST_F(CorruptionTest, AMissingManifestMakesAllRanksFallBack) {
  std::filesystem::remove(newest("manifest.json"));
  expect_fall_back("manifest.json: No such file", Errc::not_found);
}

TEST_F(CorruptionTest, AFlippedBitOfTheManifestMakesAllRanksFallBack) {
  flip_bit(newest("manifest.json"), 200);
  expect_fall_back("manifest.json: its checksum does not match", Errc::corrupt);
}

TEST_F(CorruptionTest, AnEmptyManifestMakesAllRanksFallBack) {
  testing::write_all(newest("manifest.json"), "");
  expect_fall_back("does not begin like a manifest", Errc::corrupt);
}

TEST_F(CorruptionTest, AManifestOfAnotherStepMakesAllRanksFallBack) {
  std::filesystem::copy_file(step_folder(store_.path(), 10) / "manifest.json", newest("manifest.json"),
                             std::filesystem::copy_options::overwrite_existing);
  expect_fall_back("is about step 10", Errc::corrupt);
}

TEST_F(CorruptionTest, AnIndexThatIsGoneDoesNotMatter) {
  std::filesystem::remove(newest("index.h5"));
  SoloGroup solo;
  CheckpointManager manager(solo, {.path = store_.path().string()});
  EXPECT_EQ(manager.load_latest(patience())->step(), 20U);
}

TEST_F(CorruptionTest, TheTargetedLoadFallsBackWithTheOlderBytesInPlace) {
  flip_bit(newest("rank_00000.h5"), data_position() + 5'000'000, 3);
  testing::as_ranks(2, [&](Group& group) {
    CheckpointManager manager(group, {.path = store_.path().string(), .writers = 1});
    // Only rank 1 reads what is broken; rank 0 has to fall back with it.
    const Box mine = group.rank() == 0 ? Box{{0}, {100}} : Box{{1'200'000}, {200'000}};
    std::vector<float> part(mine.extent[0]);
    const auto loaded = manager.load_latest({TensorTarget::of("w", part, mine)}, patience());
    ASSERT_TRUE(loaded) << loaded.error().to_string();
    EXPECT_EQ(loaded->step(), 10U);
    const auto whole = numbers(kCount, 10);
    EXPECT_TRUE(std::equal(part.begin(), part.end(), whole.begin() + static_cast<std::ptrdiff_t>(mine.offset[0])));
  });
}

TEST_F(CorruptionTest, APartialReadOfTheIntactPartStillWorks) {
  SoloGroup solo;
  CheckpointManager manager(solo, {.path = store_.path().string()});
  const auto loaded = manager.load_latest(patience());
  ASSERT_TRUE(loaded);
  flip_bit(newest("rank_00000.h5"), data_position() + 5'000'000, 3);
  EXPECT_TRUE(loaded->get<float>("w", {{0}, {1000}}));
  EXPECT_EQ(loaded->get<float>("w").error().code, Errc::corrupt);
}

TEST_F(CorruptionTest, ABrokenStepIsReplacedWhenItIsSavedAgain) {
  flip_bit(newest("rank_00000.h5"), data_position(), 3);
  EXPECT_EQ(save_alone(store_.path(), 10, kCount).error().code, Errc::already_exists);
  const auto again = save_alone(store_.path(), 20, kCount);
  ASSERT_TRUE(again) << again.error().to_string();
  SoloGroup solo;
  CheckpointManager manager(solo, {.path = store_.path().string()});
  EXPECT_EQ(manager.load_latest(patience())->step(), 20U);
  EXPECT_TRUE(testing::leftovers(store_.path()).empty());
}

TEST_F(CorruptionTest, AStepOfALaterFormatIsPassedOverButNeverReplaced) {
  auto text = testing::read_all(newest("manifest.json"));
  const auto at = text.find("\"version\":1");
  ASSERT_NE(at, std::string::npos);
  text.replace(at, 11, "\"version\":9");
  const auto body = std::string_view(text).substr(text.find('\n') + 1);
  text.replace(text.find("xxh3:") + 5, 16, checkpoint::to_hex(checkpoint::checksum(body)));
  testing::write_all(newest("manifest.json"), text);
  expect_fall_back("format version 9", Errc::unsupported);
  EXPECT_EQ(save_alone(store_.path(), 20, kCount).error().code, Errc::unsupported);
  EXPECT_EQ(testing::read_all(newest("manifest.json")), text);
}

TEST_F(CorruptionTest, NoIntactStepIsCorruptAndGivesAllReasons) {
  flip_bit(step_folder(store_.path(), 10) / "manifest.json", 100);
  std::filesystem::remove(newest("rank_00000.h5"));
  SoloGroup solo;
  CheckpointManager manager(solo, {.path = store_.path().string()});
  const auto loaded = manager.load_latest(patience());
  ASSERT_FALSE(loaded);
  EXPECT_EQ(loaded.error().code, Errc::corrupt);
  EXPECT_NE(loaded.error().message.find("step 20: "), std::string::npos);
  EXPECT_NE(loaded.error().message.find("step 10: "), std::string::npos);
  EXPECT_EQ(manager.latest().error().code, Errc::not_found);
}

TEST(LoadTest, AnEmptyOrAbsentStoreIsNotFoundOnAllRanks) {
  const testing::TemporaryFolder store;
  for (const auto& path : {store.path(), store / "absent"}) {
    testing::as_ranks(2, [&](Group& group) {
      CheckpointManager manager(group, {.path = path.string(), .writers = 1});
      EXPECT_EQ(manager.load_latest(patience()).error().code, Errc::not_found);
      EXPECT_EQ(manager.load(3, patience()).error().code, Errc::not_found);
      EXPECT_TRUE(manager.steps().value().empty());
    });
    EXPECT_FALSE(std::filesystem::exists(store / "absent")) << "loading makes no folder";
  }
}

TEST(LoadTest, StrangeEntriesInTheStoreAreLeftAlone) {
  const testing::TemporaryFolder store;
  ASSERT_TRUE(save_alone(store.path(), 1));
  std::filesystem::create_directory(store / "step_notes");
  testing::write_all(store / "step_000000099", "a file, not a folder");
  testing::write_all(store / "README", "mine");
  SoloGroup solo;
  CheckpointManager manager(solo, {.path = store.path().string(), .keep_last_n = 1});
  EXPECT_EQ(manager.steps().value(), std::vector<std::uint64_t>{1});
  const auto loaded = manager.load_latest(patience());
  ASSERT_TRUE(loaded) << loaded.error().to_string();
  EXPECT_EQ(loaded->step(), 1U);
  ASSERT_TRUE(manager.save(2, {TensorView::of("w", numbers(10, 2))}, patience()));
  EXPECT_TRUE(std::filesystem::exists(store / "step_notes"));
  EXPECT_TRUE(std::filesystem::exists(store / "README"));
}

TEST(LoadTest, ARankThatDoesNotComeIsNamedAtTheDeadlineAndTheNextLoadIsLevel) {
  const testing::TemporaryFolder store;
  ASSERT_TRUE(save_alone(store.path(), 1));
  auto groups = testing::ThreadGroup::make(2);
  CheckpointManager first(*groups[0], {.path = store.path().string(), .writers = 1});
  CheckpointManager second(*groups[1], {.path = store.path().string(), .writers = 1});
  const auto alone = first.load_latest(testing::scaled(std::chrono::milliseconds(50)));
  ASSERT_FALSE(alone);
  EXPECT_EQ(alone.error().code, Errc::timed_out);
  EXPECT_NE(alone.error().message.find("rank 1"), std::string::npos) << alone.error().message;
  EXPECT_EQ(second.load_latest(testing::scaled(std::chrono::milliseconds(50))).error().code, Errc::timed_out);
  std::thread other([&] { EXPECT_TRUE(second.load_latest(patience())); });
  EXPECT_TRUE(first.load_latest(patience()));
  other.join();
}

}  // namespace
}  // namespace dtr
