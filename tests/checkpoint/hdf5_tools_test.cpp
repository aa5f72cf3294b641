// The files are plain HDF5 to others: h5ls and h5dump see names, types and values, by rank and whole.
#include <cstdio>
#include <cstring>

#include "checkpoint/checkpoint_support.hpp"
#include "checkpoint/child_process.hpp"

namespace dtr {
namespace {

using testing::numbers;
using testing::patience;
using testing::rows_of;

/// Runs a command far away from the files; its standard output, or "FAILED" with what it said.
std::string output_of(const std::string& command) {
  std::FILE* pipe = ::popen(("cd / && " + command + " 2>&1").c_str(), "r");
  std::string text;
  char part[4096];
  for (std::size_t got = 0; (got = std::fread(part, 1, sizeof(part), pipe)) > 0;) text.append(part, got);
  const int status = ::pclose(pipe);
  return status == 0 ? text : "FAILED: " + text;
}

class Hdf5ToolsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_FALSE(output_of("command -v h5dump h5ls").starts_with("FAILED")) << "hdf5-tools is not installed";
    testing::as_ranks(3, [&](Group& group) {
      CheckpointManager manager(group, {.path = store_.path().string(), .writers = 1});
      const auto mine = rows_of(group.rank(), 3, kRows, kColumns);
      const std::vector<float> part(
          whole_.begin() + static_cast<std::ptrdiff_t>(mine.offset[0] * kColumns),
          whole_.begin() + static_cast<std::ptrdiff_t>((mine.offset[0] + mine.extent[0]) * kColumns));
      std::vector<TensorView> tensors{TensorView::of("net/weight 100%", part, {kRows, kColumns}, mine)};
      const std::uint16_t one_half = 0x3f00;  // in bf16
      if (group.rank() == 1) {
        tensors.push_back({.name = "net/scale", .dtype = DType::bf16, .data = std::as_bytes(std::span(&one_half, 1))});
      }
      ASSERT_TRUE(manager.save(1, tensors, patience()));
    });
  }

  [[nodiscard]] std::string file(const std::string& name) const {
    return "'" + (testing::step_folder(store_.path(), 1) / name).string() + "'";
  }

  /// The values of a dataset as h5dump writes them in binary.
  [[nodiscard]] std::vector<float> dumped(const std::string& name, const std::string& dataset) const {
    const auto out = (store_ / "dump.bin").string();
    const auto said = output_of("h5dump -d '" + dataset + "' -b LE -o '" + out + "' " + file(name));
    EXPECT_FALSE(said.starts_with("FAILED")) << said;
    const auto bytes = testing::read_all(out);
    std::vector<float> values(bytes.size() / sizeof(float));
    std::memcpy(values.data(), bytes.data(), values.size() * sizeof(float));
    return values;
  }

  static constexpr std::uint64_t kRows = 700;
  static constexpr std::uint64_t kColumns = 1000;
  const std::vector<float> whole_ = numbers(kRows * kColumns, 1);
  testing::TemporaryFolder store_;
};

TEST_F(Hdf5ToolsTest, TheIndexShowsEachTensorWholeWithItsBytes) {
  EXPECT_EQ(dumped("index.h5", "/net/weight 100%"), whole_);
}

TEST_F(Hdf5ToolsTest, TheIndexStillWorksWhenTheFolderHasMoved) {
  const auto moved = store_ / "moved";
  std::filesystem::rename(testing::step_folder(store_.path(), 1), moved);
  std::filesystem::create_directory(testing::step_folder(store_.path(), 1));
  std::filesystem::rename(moved, testing::step_folder(store_.path(), 1) / "deeper");
  EXPECT_EQ(dumped("deeper/index.h5", "/net/weight 100%"), whole_);
}

TEST_F(Hdf5ToolsTest, ARankFileHoldsThatRanksBox) {
  const auto mine = rows_of(1, 3, kRows, kColumns);
  const std::vector<float> part(
      whole_.begin() + static_cast<std::ptrdiff_t>(mine.offset[0] * kColumns),
      whole_.begin() + static_cast<std::ptrdiff_t>((mine.offset[0] + mine.extent[0]) * kColumns));
  EXPECT_EQ(dumped("rank_00001.h5", "/net/weight 100%"), part);
}

TEST_F(Hdf5ToolsTest, H5lsListsNamesAndShapes) {
  const auto listed = output_of("h5ls -r " + file("index.h5"));
  EXPECT_NE(listed.find("Dataset {700, 1000}"), std::string::npos) << listed;
  EXPECT_NE(listed.find("/net/scale"), std::string::npos) << listed;
  const auto rank = output_of("h5ls -r " + file("rank_00001.h5"));
  EXPECT_NE(rank.find("Dataset {233, 1000}"), std::string::npos) << rank;
  EXPECT_NE(rank.find("Dataset {SCALAR}"), std::string::npos) << rank;
}

TEST_F(Hdf5ToolsTest, Bf16HasTheRightValueInOtherTools) {
  for (const auto* name : {"rank_00001.h5", "index.h5"}) {
    const auto said = output_of("h5dump -d /net/scale " + file(name));
    EXPECT_NE(said.find("(0): 0.5"), std::string::npos) << said;
  }
}

TEST_F(Hdf5ToolsTest, TheIndexFollowsWhenTensorsChangeFromStepToStep) {
  const auto& store = store_.path();
  SoloGroup solo;
  CheckpointManager manager(solo, {.path = store.string(), .writers = 1});
  const auto long_one = numbers(500, 2);
  ASSERT_TRUE(manager.save(2, {TensorView::of("w", numbers(300, 2))}, patience()));
  ASSERT_TRUE(manager.save(3, {TensorView::of("w", numbers(300, 3))}, patience()));
  ASSERT_TRUE(manager.save(4, {TensorView::of("w", long_one)}, patience()));
  EXPECT_EQ(dumped("../step_000000003/index.h5", "/w"), numbers(300, 3));
  EXPECT_EQ(dumped("../step_000000004/index.h5", "/w"), long_one);
}

TEST_F(Hdf5ToolsTest, EqualInputGivesEqualFiles) {
  const testing::TemporaryFolder again;
  for (const auto& store : {store_ / "a", again.path()}) ASSERT_TRUE(testing::save_alone(store, 3));
  for (const auto* name : {"rank_00000.h5", "index.h5", "manifest.json"}) {
    EXPECT_EQ(testing::read_all(testing::step_folder(store_ / "a", 3) / name),
              testing::read_all(testing::step_folder(again.path(), 3) / name))
        << name;
  }
}

}  // namespace
}  // namespace dtr
