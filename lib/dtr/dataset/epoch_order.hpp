// The order of one epoch: a line of positions that does not know how many ranks will share it.
#pragma once

#include <cstdint>

#include "dtr/dataset/info.hpp"
#include "dtr/dataset/permutation.hpp"

namespace dtr::inline v0 {
namespace dataset {

/// Every sample of the set has one position in [0, samples()). The line is cut into slots; slot q holds one shard,
/// chosen by a permutation keyed by (id, seed, epoch); inside the slot its samples are permuted by (id, seed, epoch,
/// shard). All slots have shard_size() positions but the one with the set's last shard, which may have fewer.
/// Everything is O(1) in time and memory. Immutable: any thread.
class EpochOrder {
 public:
  /// A position as slot and offset inside the slot.
  struct Place {
    std::uint64_t slot = 0;
    std::uint64_t offset = 0;
  };

  /// `info` has passed check_plannable.
  EpochOrder(const DatasetInfo& info, std::uint64_t epoch);

  [[nodiscard]] std::uint64_t samples() const noexcept { return samples_; }
  [[nodiscard]] std::uint64_t shards() const noexcept { return shards_; }
  [[nodiscard]] std::uint64_t shard_size() const noexcept { return shard_size_; }
  [[nodiscard]] std::uint64_t epoch() const noexcept { return epoch_; }

  /// The sample at a position below samples(), as its index in stored order.
  [[nodiscard]] std::uint64_t sample(std::uint64_t position) const noexcept;

  /// The sample that is the offset-th of a shard in this epoch.
  [[nodiscard]] std::uint64_t sample_in(std::uint64_t shard, std::uint64_t offset) const noexcept;

  [[nodiscard]] std::uint64_t shard_in(std::uint64_t slot) const noexcept;
  [[nodiscard]] std::uint64_t shard_length(std::uint64_t shard) const noexcept;

  [[nodiscard]] Place place(std::uint64_t position) const noexcept;
  /// First position of a slot; samples() for the slot after the last.
  [[nodiscard]] std::uint64_t slot_begin(std::uint64_t slot) const noexcept;
  [[nodiscard]] std::uint64_t slot_length(std::uint64_t slot) const noexcept {
    return slot_begin(slot + 1) - slot_begin(slot);
  }

  /// The slot with the last shard, and by how many samples that is shorter than the others (0: it is not).
  [[nodiscard]] std::uint64_t short_slot() const noexcept { return short_slot_; }
  [[nodiscard]] std::uint64_t missing() const noexcept { return missing_; }

 private:
  std::uint64_t samples_;
  std::uint64_t shard_size_;
  std::uint64_t shards_;
  std::uint64_t missing_;
  std::uint64_t epoch_;
  std::uint64_t key_of_samples_;
  bool shuffle_;
  Permutation shard_order_;
  std::uint64_t short_slot_;
};

}  // namespace dataset
}  // namespace dtr::inline v0
