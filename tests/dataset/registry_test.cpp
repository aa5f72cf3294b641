#include "dtr/dataset/registry.hpp"

#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "dataset/files.hpp"
#include "dtr/bootstrap/local.hpp"
#include "dtr/runtime/runtime.hpp"
#include "support/test_support.hpp"
#include "support/thread_group.hpp"

namespace dtr {
namespace {

using testing::counting;
using testing::idx_header;
using testing::scaled;
using testing::TemporaryFolder;
using testing::ThreadGroup;
using testing::write_file;
using namespace std::chrono_literals;

/// What every rank gets when each registers its own description.
std::vector<std::string> register_all(const std::vector<DatasetInfo>& infos) {
  const auto groups = ThreadGroup::make(static_cast<int>(infos.size()));
  std::vector<std::string> results(infos.size());
  std::vector<std::thread> threads;
  for (std::size_t rank = 0; rank < infos.size(); ++rank) {
    threads.emplace_back([&, rank] {
      DatasetRegistry registry(*groups[rank]);
      const auto done = registry.register_dataset(infos[rank], scaled(10s));
      results[rank] = done ? "ok" : done.error().to_string();
    });
  }
  for (std::thread& thread : threads) thread.join();
  return results;
}

class RegistryTest : public ::testing::Test {
 protected:
  RegistryTest() { write_file(file(), idx_header(0x08, {100, 2}) + counting(200)); }

  [[nodiscard]] std::string file() const { return (folder_ / "set.idx").string(); }
  [[nodiscard]] DatasetInfo info() const {
    return {.id = "set", .path = file(), .format = "idx", .shard_size = 10, .shuffle = true, .seed = 3};
  }

  TemporaryFolder folder_;
};

TEST_F(RegistryTest, EqualDescriptionsAgree) {
  EXPECT_EQ(register_all({info(), info(), info()}), (std::vector<std::string>(3, "ok")));
}

TEST_F(RegistryTest, TheRankThatDiffersIsNamedWithFieldAndValues) {
  const auto differing = [&](auto change) {
    std::vector<DatasetInfo> infos(4, info());
    change(infos[2]);
    const auto results = register_all(infos);
    for (const std::string& result : results) EXPECT_EQ(result, results[0]);
    return results[0];
  };
  const std::string start = "register dataset 'set' to rank 2: invalid_argument: rank 2 has ";
  EXPECT_EQ(differing([](DatasetInfo& i) { i.seed = 4; }), start + "seed '4', rank 0 has '3'");
  EXPECT_EQ(differing([](DatasetInfo& i) { i.shard_size = 11; }), start + "shard_size '11', rank 0 has '10'");
  EXPECT_EQ(differing([](DatasetInfo& i) { i.total_samples = 100; }), start + "total_samples '100', rank 0 has '0'");
  EXPECT_EQ(differing([](DatasetInfo& i) { i.shuffle = false; }), start + "shuffle 'false', rank 0 has 'true'");
  EXPECT_EQ(differing([](DatasetInfo& i) { i.unit = ShardUnit::sample; }), start + "unit 'sample', rank 0 has 'shard'");
  EXPECT_EQ(differing([](DatasetInfo& i) { i.tail = TailPolicy::pad; }), start + "tail 'pad', rank 0 has 'drop'");
  EXPECT_EQ(differing([](DatasetInfo& i) { i.format = "csv"; }), start + "format 'csv', rank 0 has 'idx'");
  EXPECT_EQ(differing([](DatasetInfo& i) { i.metadata = {{"a", "b"}}; }), start + "metadata 'a=b', rank 0 has ''");
}

TEST_F(RegistryTest, AShardSizeThatIsNotGivenComesFromTheConfigurationAndIsAgreedOn) {
  DatasetInfo bare = info();
  bare.shard_size.reset();
  EXPECT_EQ(ShardPlan({.id = "set", .total_samples = 25000}, 1, 0, 0).shards(), 3U) << "10000 where nothing is said";

  RuntimeOptions alone;
  alone.bootstrap = std::move(local_bootstraps(1).front());
  alone.config.overrides = {{"dataset.default_shard_size", "25"}};
  Runtime rt(std::move(alone));
  DatasetRegistry registry(rt);
  ASSERT_TRUE(registry.register_dataset(bare, scaled(10s)));
  EXPECT_EQ(registry.info("set").value().shard_size, 25U);
  EXPECT_EQ(registry.shard("set", 0, 0).value().size(), 4U);
  EXPECT_TRUE(registry.register_dataset(bare, scaled(10s))) << "again the same";

  const auto groups = ThreadGroup::make(2);
  DatasetRegistry other(*groups[1], {.default_shard_size = 0});
  std::string theirs;
  std::thread second([&] { theirs = other.register_dataset(bare, scaled(10s)).error().message; });
  DatasetRegistry first(*groups[0], {.default_shard_size = 50});
  const auto mine = first.register_dataset(bare, scaled(10s));
  second.join();
  ASSERT_FALSE(mine);
  EXPECT_EQ(mine.error().message, theirs);
  EXPECT_NE(theirs.find("shard_size '0', rank 0 has '50'"), std::string::npos) << theirs;
}

TEST_F(RegistryTest, RankZeroCanBeTheOneThatDiffers) {
  std::vector<DatasetInfo> infos(3, info());
  infos[0].seed = 9;
  EXPECT_EQ(register_all(infos)[2],
            "register dataset 'set' to rank 0: invalid_argument: rank 0 has seed '9', rank 1 has '3'");
}

TEST_F(RegistryTest, AProblemOfOneRankIsEverybodysErrorAtOnce) {
  std::vector<DatasetInfo> infos(3, info());
  infos[1].path = (folder_ / "none").string();
  for (const std::string& result : register_all(infos)) {
    EXPECT_TRUE(
        result.ends_with(" to rank 1: not_found: on rank 1: there is no file or folder '" + infos[1].path + "'"))
        << result;
  }
  write_file(file(), "rubbish");
  for (const std::string& result : register_all({info(), info()})) {
    EXPECT_EQ(result, "register dataset 'set' to rank 0: corrupt: on rank 0: '" + file() +
                          "' is no idx file: it begins with 72 75 62 62");
  }
}

TEST_F(RegistryTest, AMissingRankEndsAtTheDeadline) {
  const auto groups = ThreadGroup::make(2);
  DatasetRegistry registry(*groups[0]);
  const auto done = registry.register_dataset(info(), 50ms);
  ASSERT_FALSE(done);
  EXPECT_EQ(done.error().code, Errc::timed_out);
}

TEST_F(RegistryTest, SamplesAreCountedAndFilesFound) {
  SoloGroup solo;
  DatasetRegistry registry(solo);
  ASSERT_TRUE(registry.register_dataset(info(), 10s));
  EXPECT_EQ(registry.info("set").value().total_samples, 100U);
  const auto shards = registry.shard("set", 0, 0).value();
  ASSERT_EQ(shards.size(), 10U);
  for (const ShardAssignment& shard : shards) {
    EXPECT_EQ(shard.file_paths, std::vector<std::string>{file()});
    EXPECT_EQ(shard.end_sample - shard.start_sample, 10U);
  }
  EXPECT_EQ(registry.open("set").value()->samples(), 100U);
}

TEST_F(RegistryTest, ShardsNameTheFilesThatHoldThem) {
  const TemporaryFolder parts;
  const std::vector<std::pair<std::string, std::uint32_t>> sizes{{"a", 7}, {"b", 0}, {"c", 10}, {"d", 8}};
  for (const auto& [name, count] : sizes) write_file(parts / name, idx_header(0x08, {count}) + counting(count));
  SoloGroup solo;
  DatasetRegistry registry(solo);
  ASSERT_TRUE(registry.register_dataset(
      {.id = "parts", .path = parts.path().string(), .format = "idx", .shard_size = 10}, 10s));
  const auto shards = registry.shard("parts", 0, 0).value();
  const auto path = [&](const std::string& name) { return (parts / name).string(); };
  ASSERT_EQ(shards.size(), 3U);
  EXPECT_EQ(shards[0].file_paths, (std::vector<std::string>{path("a"), path("c")}));
  EXPECT_EQ(shards[1].file_paths, (std::vector<std::string>{path("c"), path("d")}));
  EXPECT_EQ(shards[2].file_paths, (std::vector<std::string>{path("d")}));
  EXPECT_EQ(shards[2].end_sample, 5U);
}

TEST_F(RegistryTest, ATotalThatTheFilesOfAFolderDoNotHoldIsRefused) {
  const TemporaryFolder parts;
  for (const std::string name : {"a", "b"}) write_file(parts / name, idx_header(0x08, {5}) + counting(5));
  const DatasetInfo wrong{.id = "parts", .path = parts.path().string(), .format = "idx", .total_samples = 11};
  EXPECT_EQ(register_all({wrong, wrong})[1], "register dataset 'parts' to rank 0: corrupt: on rank 0: '" + wrong.path +
                                                 "' has 10 samples, total_samples says 11");
}

TEST_F(RegistryTest, AnyRankMayAskForAnyOther) {
  const auto groups = ThreadGroup::make(2);
  std::vector<std::unique_ptr<DatasetRegistry>> registries;
  std::vector<std::thread> threads;
  for (const auto& group : groups) registries.push_back(std::make_unique<DatasetRegistry>(*group));
  for (auto& registry : registries) {
    threads.emplace_back([&] { EXPECT_TRUE(registry->register_dataset(info(), scaled(10s))); });
  }
  for (std::thread& thread : threads) thread.join();
  for (int rank = 0; rank < 2; ++rank) {
    EXPECT_EQ(registries[0]->shard("set", rank, 5).value(), registries[1]->shard("set", rank, 5).value());
  }
  EXPECT_NE(registries[0]->shard("set", 0, 5).value(), registries[0]->shard("set", 1, 5).value());
}

TEST_F(RegistryTest, BadRequestsAreSaid) {
  SoloGroup solo;
  DatasetRegistry registry(solo);
  EXPECT_EQ(registry.shard("x", 0, 0).error().to_string(),
            "look up dataset: not_found: no dataset 'x'; registered: none");
  ASSERT_TRUE(registry.register_dataset(info(), 10s));
  ASSERT_TRUE(registry.register_dataset(info(), 10s)) << "the same again is fine";
  EXPECT_EQ(registry.shard("x", 0, 0).error().to_string(),
            "look up dataset: not_found: no dataset 'x'; registered: set");
  EXPECT_EQ(registry.shard("set", 1, 0).error().to_string(),
            "plan shards of 'set': invalid_argument: rank 1 in a world of 1");
  DatasetInfo other = info();
  other.seed = 99;
  EXPECT_EQ(registry.register_dataset(other, 10s).error().to_string(),
            "register dataset 'set': already_exists: the id is registered with another description");
  other = info();
  other.id = "";
  EXPECT_EQ(registry.register_dataset(other, 10s).error().to_string(),
            "register dataset '' to rank 0: invalid_argument: on rank 0: the dataset has no id");
  write_file(folder_ / "empty", idx_header(0x08, {0, 2}));
  other = {.id = "empty", .path = (folder_ / "empty").string(), .format = "idx"};
  EXPECT_EQ(registry.register_dataset(other, 10s).error().to_string(),
            "register dataset 'empty' to rank 0: invalid_argument: on rank 0: '" + other.path + "' has no samples");
  EXPECT_EQ(registry.ids(), std::vector<std::string>{"set"});
}

}  // namespace
}  // namespace dtr
