#include "dtr/dataset/placement.hpp"

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>

namespace dtr {
namespace {

std::string name(int worker) { return "worker-" + std::to_string(worker); }

ShardManager manager_of(std::uint64_t shards, int workers) {
  ShardManager manager("imagenet", shards);
  for (int w = 0; w < workers; ++w) EXPECT_TRUE(manager.add_worker(name(w)));
  return manager;
}

std::vector<std::string> owners(const ShardManager& manager) {
  std::vector<std::string> owners;
  for (std::uint64_t shard = 0; shard < manager.shards(); ++shard) owners.push_back(manager.worker_of(shard).value());
  return owners;
}

double moved(const std::vector<std::string>& before, const std::vector<std::string>& after) {
  double count = 0;
  for (std::size_t i = 0; i < before.size(); ++i) count += before[i] != after[i] ? 1 : 0;
  return count / static_cast<double>(before.size());
}

TEST(ShardManagerTest, SizesDifferByAtMostOneAndEveryShardHasOneOwner) {
  for (const std::uint64_t shards : {0U, 1U, 5U, 64U, 128U, 1000U}) {
    for (int workers = 1; workers <= 65; workers += 4) {
      const ShardManager manager = manager_of(shards, workers);
      std::set<std::uint64_t> all;
      for (int w = 0; w < workers; ++w) {
        const auto mine = manager.assign_shards(0, name(w)).value();
        ASSERT_GE(mine.size(), shards / static_cast<std::uint64_t>(workers));
        ASSERT_LE(mine.size(), shards / static_cast<std::uint64_t>(workers) + 1);
        for (const std::uint64_t shard : mine) {
          ASSERT_TRUE(all.insert(shard).second);
          ASSERT_EQ(manager.worker_of(shard).value(), name(w));
        }
      }
      ASSERT_EQ(all.size(), shards);
    }
  }
}

TEST(ShardManagerTest, AWorkerThatComesTakesLittleMoreThanItsShare) {
  ShardManager manager = manager_of(10'000, 8);
  const auto before = owners(manager);
  ASSERT_TRUE(manager.add_worker("newcomer"));
  EXPECT_LT(moved(before, owners(manager)), 1.0 / 9 + 0.02);
}

TEST(ShardManagerTest, AWorkerThatLeavesTakesLittleWithIt) {
  ShardManager manager = manager_of(10'000, 64);
  const auto before = owners(manager);
  ASSERT_TRUE(manager.remove_worker(name(31)));
  EXPECT_LT(moved(before, owners(manager)), 1.0 / 64 + 0.02);
}

TEST(ShardManagerTest, FewShardsMoveLittleToo) {
  ShardManager manager = manager_of(128, 8);
  const auto before = owners(manager);
  ASSERT_TRUE(manager.add_worker("newcomer"));
  EXPECT_LT(moved(before, owners(manager)), 1.0 / 9 + 0.1);
}

TEST(ShardManagerTest, PlacementDependsOnTheWorkersNotOnTheirHistory) {
  const ShardManager straight = manager_of(500, 5);
  ShardManager winding("imagenet", 500);
  for (const int w : {3, 9, 1, 4, 0, 2}) ASSERT_TRUE(winding.add_worker(name(w)));
  ASSERT_TRUE(winding.remove_worker(name(9)));
  EXPECT_EQ(owners(straight), owners(winding));
}

TEST(ShardManagerTest, EpochsReorderButKeepTheSet) {
  const ShardManager manager = manager_of(300, 3);
  auto first = manager.assign_shards(0, name(1)).value();
  auto second = manager.assign_shards(1, name(1)).value();
  EXPECT_NE(first, second);
  EXPECT_EQ(first, manager.assign_shards(0, name(1)).value());
  std::sort(first.begin(), first.end());
  std::sort(second.begin(), second.end());
  EXPECT_EQ(first, second);
}

TEST(ShardManagerTest, UnknownAndRepeatedNamesAreNamed) {
  ShardManager manager = manager_of(10, 2);
  EXPECT_EQ(manager.assign_shards(0, "x").error().to_string(),
            "assign shards: not_found: no worker 'x'; there are: worker-0, worker-1");
  EXPECT_EQ(manager.remove_worker("x").error().to_string(),
            "remove worker: not_found: no worker 'x'; there are: worker-0, worker-1");
  EXPECT_EQ(manager.add_worker("worker-1").error().to_string(),
            "add worker: already_exists: worker 'worker-1' is there already");
  EXPECT_EQ(manager.worker_of(10).error().to_string(), "find worker of shard: out_of_range: shard 10 of 10");
  EXPECT_EQ(ShardManager("d", 3).worker_of(0).error().to_string(),
            "find worker of shard: not_found: there are no workers");
  EXPECT_THROW(ShardManager("d", std::uint64_t{1} << 32), Exception);
}

TEST(ShardManagerTest, PlacementIsFrozen) {
  const ShardManager manager = manager_of(12, 3);
  std::string text;
  for (const std::string& owner : owners(manager)) text += owner.back();
  EXPECT_EQ(text, "222020100111");
}

TEST(ConsistentHashTest, BalancesWithinAFewPercentAndMovesLittle) {
  ConsistentHash ring;
  for (int node = 0; node < 64; ++node) ASSERT_TRUE(ring.add_node(name(node)));
  constexpr std::uint64_t kShards = 100'000;
  std::map<std::string, int> load;
  std::vector<std::string> before;
  for (std::uint64_t shard = 0; shard < kShards; ++shard) {
    before.push_back(ring.get_node_for_shard("imagenet", shard).value());
    ++load[before.back()];
  }
  ASSERT_EQ(load.size(), 64U);
  for (const auto& [node, count] : load) EXPECT_NEAR(count, kShards / 64.0, 0.06 * kShards / 64) << node;

  ASSERT_TRUE(ring.remove_node(name(7)));
  double moves = 0;
  for (std::uint64_t shard = 0; shard < kShards; ++shard) {
    moves += ring.get_node_for_shard("imagenet", shard).value() != before[shard] ? 1 : 0;
  }
  EXPECT_LT(moves / kShards, 1.0 / 64 + 0.01);
}

TEST(ConsistentHashTest, AnEmptyRingIsAnError) {
  const ConsistentHash ring;
  EXPECT_EQ(ring.get_node_for_shard("d", 1).error().to_string(),
            "find worker of shard: not_found: there are no workers");
}

}  // namespace
}  // namespace dtr
