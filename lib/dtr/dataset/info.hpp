// What a dataset is: the description that every rank registers identically.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "dtr/base/error.hpp"

namespace dtr::inline v0 {

/// What is dealt to the ranks.
enum class ShardUnit {
  shard,   ///< whole shards, for data in files: a rank opens few of them; only the last round is cut by samples
  sample,  ///< single samples, for sets held in memory: position p of the epoch's order goes to rank p mod world
};

/// What happens to the samples that do not divide evenly among the ranks. Nothing is ever repeated silently.
enum class TailPolicy {
  drop,    ///< left out (fewer than `world` samples, others in each shuffled epoch); equal counts on all ranks
  pad,     ///< ranks that run out get rows without a sample, masked; equal counts on all ranks
  uneven,  ///< dealt as they are: every sample exactly once, counts differ by at most one
};

/// Samples a shard where nothing else is said, as dataset.default_shard_size has it.
inline constexpr std::uint64_t kDefaultShardSize = 10000;

/// Same on every rank. The order of an epoch is a function of id, seed, epoch, total_samples, shard_size and shuffle.
struct DatasetInfo {
  std::string id{};                 ///< unique name; part of the key of the order
  std::string path{};               ///< a file, or a folder whose files are taken in the order of their names
  std::string format{};             ///< "idx", "hdf5", "csv"
  std::uint64_t total_samples = 0;  ///< 0: not known yet; the registry counts
  /// Samples a shard; 0: the whole set is one shard (best mixing, for sets in memory). Unset: what the registry takes,
  /// kDefaultShardSize in a plan without one.
  std::optional<std::uint64_t> shard_size{};
  bool shuffle = false;  ///< false: shards and samples in stored order
  std::uint64_t seed = 0;
  std::map<std::string, std::string> metadata{};  ///< for readers ("dataset" = path inside HDF5 files) and for users
  ShardUnit unit = ShardUnit::shard;
  TailPolicy tail = TailPolicy::drop;
};

/// The largest set that a plan takes: 2^62 samples, so that no sum in it can overflow.
inline constexpr std::uint64_t kMaxSamples = std::uint64_t{1} << 62;

[[nodiscard]] const char* to_string(ShardUnit unit) noexcept;
[[nodiscard]] const char* to_string(TailPolicy tail) noexcept;

/// Whether a plan can be made of it. Errors: invalid_argument (no id, total_samples unknown or beyond kMaxSamples).
[[nodiscard]] Result<void> check_plannable(const DatasetInfo& info);

}  // namespace dtr::inline v0
