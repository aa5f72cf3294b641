#include "dtr/dataset/placement.hpp"

#include <algorithm>
#include <limits>

#include "dtr/dataset/mix.hpp"
#include "dtr/dataset/permutation.hpp"

namespace dtr::inline v0 {

namespace {

std::uint64_t name_key(std::string_view name) { return dataset::KeyHash("dataset/worker").add(name).value(); }

/// How many shards each worker may take. Who gets one more is chosen by hash, so that it is not always the same names.
std::vector<std::uint64_t> quotas(std::uint64_t key, std::uint64_t shards, std::span<const std::uint64_t> worker_keys) {
  std::vector<std::uint32_t> ranking(worker_keys.size());
  for (std::uint32_t w = 0; w < ranking.size(); ++w) ranking[w] = w;
  std::sort(ranking.begin(), ranking.end(), [&](std::uint32_t a, std::uint32_t b) {
    return dataset::mix64(key ^ worker_keys[a]) >
           dataset::mix64(key ^ worker_keys[b]);  // a bijection of distinct keys: no ties
  });
  std::vector<std::uint64_t> quota(worker_keys.size(), shards / worker_keys.size());
  for (std::uint64_t i = 0; i < shards % worker_keys.size(); ++i) ++quota[ranking[i]];
  return quota;
}

std::string listed(const std::vector<std::string>& names) {
  std::string words;
  for (const std::string& name : names) words += (words.empty() ? "" : ", ") + name;
  return words.empty() ? "nobody" : words;
}

}  // namespace

std::vector<std::uint32_t> place_evenly(std::uint64_t key, std::uint64_t shards,
                                        std::span<const std::uint64_t> worker_keys) {
  std::vector<std::uint64_t> room = quotas(key, shards, worker_keys);
  std::vector<std::uint32_t> placement(shards);
  for (std::uint64_t shard = 0; shard < shards; ++shard) {
    const std::uint64_t shard_key = dataset::mix64(key + shard * dataset::kGoldenRatio64);
    std::uint32_t best = 0;
    std::uint64_t best_score = 0;
    bool found = false;
    for (std::uint32_t w = 0; w < worker_keys.size(); ++w) {
      if (room[w] == 0) continue;
      const std::uint64_t score = dataset::mix64(shard_key ^ worker_keys[w]);
      if (found && score <= best_score) continue;
      best = w;
      best_score = score;
      found = true;
    }
    placement[shard] = best;
    --room[best];
  }
  return placement;
}

ShardManager::ShardManager(std::string dataset_id, std::uint64_t shards)
    : dataset_id_(std::move(dataset_id)), shards_(shards) {
  if (shards > std::numeric_limits<std::uint32_t>::max()) {
    throw Exception({.code = Errc::invalid_argument,
                     .message = std::to_string(shards) + " shards, the most is 2^32 - 1",
                     .operation = "place shards of '" + dataset_id_ + "'"});
  }
}

Result<void> ShardManager::add_worker(std::string_view name) {
  const auto at = std::lower_bound(workers_.begin(), workers_.end(), name);
  if (at != workers_.end() && *at == name) {
    return fail(Errc::already_exists, "worker '" + std::string(name) + "' is there already", "add worker");
  }
  workers_.emplace(at, name);
  place();
  return {};
}

Result<void> ShardManager::remove_worker(std::string_view name) {
  const auto at = std::lower_bound(workers_.begin(), workers_.end(), name);
  if (at == workers_.end() || *at != name) {
    return fail(Errc::not_found, "no worker '" + std::string(name) + "'; there are: " + listed(workers_),
                "remove worker");
  }
  workers_.erase(at);
  place();
  return {};
}

void ShardManager::place() {
  if (workers_.empty()) {
    placement_.clear();
    return;
  }
  std::vector<std::uint64_t> keys;
  for (const std::string& worker : workers_) keys.push_back(name_key(worker));
  placement_ = place_evenly(dataset::KeyHash("dataset/placement").add(dataset_id_).value(), shards_, keys);
}

Result<std::vector<std::uint64_t>> ShardManager::assign_shards(std::uint64_t epoch, std::string_view worker) const {
  const auto at = std::lower_bound(workers_.begin(), workers_.end(), worker);
  if (at == workers_.end() || *at != worker) {
    return fail(Errc::not_found, "no worker '" + std::string(worker) + "'; there are: " + listed(workers_),
                "assign shards");
  }
  const auto index = static_cast<std::uint32_t>(at - workers_.begin());
  std::vector<std::uint64_t> mine;
  for (std::uint64_t shard = 0; shard < shards_; ++shard) {
    if (placement_[shard] == index) mine.push_back(shard);
  }
  const Permutation order(mine.size(),
                          dataset::KeyHash("dataset/placement/epoch").add(dataset_id_).add(epoch).add(worker).value());
  std::vector<std::uint64_t> ordered(mine.size());
  for (std::size_t i = 0; i < mine.size(); ++i) ordered[i] = mine[order(i)];
  return ordered;
}

Result<std::string> ShardManager::worker_of(std::uint64_t shard) const {
  if (shard >= shards_) {
    return fail(Errc::out_of_range, "shard " + std::to_string(shard) + " of " + std::to_string(shards_),
                "find worker of shard");
  }
  if (workers_.empty()) return fail(Errc::not_found, "there are no workers", "find worker of shard");
  return workers_[placement_[shard]];
}

Result<void> ConsistentHash::add_node(std::string_view name) {
  if (nodes().size() == kBuckets) {
    return fail(Errc::resource_exhausted, "there are as many nodes as buckets (65536)", "add node");
  }
  return buckets_.add_worker(name);
}

Result<void> ConsistentHash::remove_node(std::string_view name) { return buckets_.remove_worker(name); }

Result<std::string> ConsistentHash::get_node_for_shard(std::string_view dataset_id, std::uint64_t shard) const {
  const Permutation spread(kBuckets, dataset::KeyHash("dataset/bucket").add(dataset_id).add(shard / kBuckets).value());
  return buckets_.worker_of(spread(shard % kBuckets));
}

}  // namespace dtr::inline v0
