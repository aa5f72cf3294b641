// The datasets of a job: described identically by all ranks, dealt to them without further talk.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "dtr/base/deadline.hpp"
#include "dtr/base/error.hpp"
#include "dtr/dataset/info.hpp"
#include "dtr/dataset/plan.hpp"
#include "dtr/dataset/readers/reader.hpp"
#include "dtr/runtime/group.hpp"

namespace dtr::inline v0 {

/// Part of a shard that one rank reads, and the files that hold the shard.
struct ShardAssignment {
  std::uint64_t shard_id = 0;
  std::vector<std::string> file_paths{};
  std::uint64_t start_sample = 0;  ///< places in the shard's order of the epoch, see ShardRange
  std::uint64_t end_sample = 0;
  std::uint64_t stride = 1;

  friend bool operator==(const ShardAssignment&, const ShardAssignment&) = default;
};

class Config;
class Runtime;

struct RegistryOptions {
  std::uint64_t default_shard_size = kDefaultShardSize;  ///< for descriptions without one; 0: one shard; on all ranks

  /// The row dataset.default_shard_size of the configuration.
  [[nodiscard]] static RegistryOptions from(const Config& config);
};

/// Datasets by id, dealt to the ranks of `group`. Any thread; registrations in the same order on all ranks.
class DatasetRegistry {
 public:
  /// `group` outlives the registry.
  explicit DatasetRegistry(Group& group, RegistryOptions options = {}) : group_(group), options_(options) {}

  /// All ranks, with what their configuration says.
  explicit DatasetRegistry(Runtime& runtime);

  /// Collective. All ranks pass the same description and see the same files, or all get the same Error. Rank 0 counts
  /// what has to be counted, opening the files: total_samples when it is 0, the files of a folder always. Registering
  /// again what is there already is fine.
  /// Errors: invalid_argument (no id, 0 samples; ranks that differ: names rank and field, and gives both values),
  /// already_exists (the id has another description), corrupt (total_samples is not what the files hold), those of
  /// dataset_files() and of the readers with the rank that met them, timed_out and peer_failed of the group.
  [[nodiscard]] Result<void> register_dataset(DatasetInfo info, Deadline deadline);

  /// What rank reads in an epoch, in its order; any rank may ask for any other. A list as long as the shards of a rank
  /// (plan() gives the same one by one). Errors: not_found (lists the ids there are), invalid_argument (rank).
  [[nodiscard]] Result<std::vector<ShardAssignment>> shard(const std::string& id, int rank, std::uint64_t epoch) const;

  /// The arithmetic behind it. With a cursor: the rest of its epoch.
  [[nodiscard]] Result<ShardPlan> plan(const std::string& id, int rank, std::uint64_t epoch) const;
  [[nodiscard]] Result<ShardPlan> plan(const std::string& id, int rank, const EpochCursor& cursor) const;

  /// The description, total_samples and shard_size filled in. Error: not_found.
  [[nodiscard]] Result<DatasetInfo> info(const std::string& id) const;

  /// A reader over all files of the dataset. Errors: not_found, and those of open_dataset().
  [[nodiscard]] Result<ReaderPtr> open(const std::string& id) const;

  /// Registered ids, sorted.
  [[nodiscard]] std::vector<std::string> ids() const;

 private:
  struct Entry;

  [[nodiscard]] Result<std::shared_ptr<const Entry>> find(const std::string& id) const;

  Group& group_;
  RegistryOptions options_;
  mutable std::mutex mutex_;
  std::map<std::string, std::shared_ptr<const Entry>> entries_;
};

}  // namespace dtr::inline v0
