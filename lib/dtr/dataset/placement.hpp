// Which worker keeps which shard when workers come and go: for caches and node-local copies, where moving costs.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dtr/base/error.hpp"

namespace dtr::inline v0 {

/// Rendezvous hashing with equal quotas: shard after shard goes to that worker, among those with room left, whose hash
/// with the shard is highest. Sizes differ by at most one. A function of the set of workers, not of its history: all
/// processes that know the same workers agree, and a worker that leaves and returns gets its shards back. When a
/// worker comes or goes, little more moves than has to (measured: 1000 shards, 8 -> 9 workers 12.5 %, of which 11 %
/// have to; the fewer shards a worker has, the more). O(shards x workers).
/// Returns for each shard the index of its worker; `worker_keys` are distinct hashes and not empty.
[[nodiscard]] std::vector<std::uint32_t> place_evenly(std::uint64_t key, std::uint64_t shards,
                                                      std::span<const std::uint64_t> worker_keys);

/// The shards of one dataset on named workers. One thread at a time.
class ShardManager {
 public:
  /// Throws Exception: invalid_argument (more than 2^32 shards: the placement is a table).
  ShardManager(std::string dataset_id, std::uint64_t shards);

  /// Error: already_exists.
  [[nodiscard]] Result<void> add_worker(std::string_view name);
  /// Error: not_found, listing who is there.
  [[nodiscard]] Result<void> remove_worker(std::string_view name);
  [[nodiscard]] const std::vector<std::string>& workers() const noexcept { return workers_; }  ///< sorted by name
  [[nodiscard]] std::uint64_t shards() const noexcept { return shards_; }

  /// The worker's shards: the same set in every epoch, in another order. Error: not_found.
  [[nodiscard]] Result<std::vector<std::uint64_t>> assign_shards(std::uint64_t epoch, std::string_view worker) const;

  /// Who has a shard. Errors: out_of_range, not_found (no workers).
  [[nodiscard]] Result<std::string> worker_of(std::uint64_t shard) const;

 private:
  void place();

  std::string dataset_id_;
  std::uint64_t shards_;
  std::vector<std::string> workers_;
  std::vector<std::uint32_t> placement_;  // shard -> index in workers_; empty without workers
};

/// The same for any number of datasets whose number of shards need not be known: shards fall into 65536 buckets, of
/// which every node keeps an equal number. The first 65536 shards of a dataset fall into different buckets, but which
/// nodes those are is chance: where an exact balance matters, use ShardManager. One thread at a time.
class ConsistentHash {
 public:
  static constexpr std::uint64_t kBuckets = 65536;

  /// Errors: already_exists, resource_exhausted (more nodes than buckets).
  [[nodiscard]] Result<void> add_node(std::string_view name);
  /// Error: not_found, listing who is there.
  [[nodiscard]] Result<void> remove_node(std::string_view name);
  [[nodiscard]] const std::vector<std::string>& nodes() const noexcept { return buckets_.workers(); }

  /// Error: not_found (no nodes).
  [[nodiscard]] Result<std::string> get_node_for_shard(std::string_view dataset_id, std::uint64_t shard) const;

 private:
  ShardManager buckets_{"dataset/buckets", kBuckets};
};

}  // namespace dtr::inline v0
