#include "dtr/dataset/epoch_order.hpp"

#include <algorithm>

#include "dtr/dataset/mix.hpp"

namespace dtr::inline v0 {
namespace dataset {

namespace {

std::uint64_t epoch_key(std::string_view purpose, const DatasetInfo& info, std::uint64_t epoch) {
  return KeyHash(purpose).add(info.id).add(info.seed).add(epoch).value();
}

std::uint64_t shard_size_of(const DatasetInfo& info) {
  const std::uint64_t wanted = info.shard_size.value_or(kDefaultShardSize);
  return wanted == 0 ? info.total_samples : std::min(wanted, info.total_samples);
}

}  // namespace

EpochOrder::EpochOrder(const DatasetInfo& info, std::uint64_t epoch)
    : samples_(info.total_samples),
      shard_size_(shard_size_of(info)),
      shards_(samples_ / shard_size_ + (samples_ % shard_size_ != 0 ? 1 : 0)),
      missing_(samples_ % shard_size_ == 0 ? 0 : shard_size_ - samples_ % shard_size_),
      epoch_(epoch),
      key_of_samples_(epoch_key("dataset/samples", info, epoch)),
      shuffle_(info.shuffle),
      shard_order_(shards_, epoch_key("dataset/shards", info, epoch)),
      short_slot_(shuffle_ ? shard_order_.index_of(shards_ - 1) : shards_ - 1) {}

std::uint64_t EpochOrder::shard_in(std::uint64_t slot) const noexcept { return shuffle_ ? shard_order_(slot) : slot; }

std::uint64_t EpochOrder::shard_length(std::uint64_t shard) const noexcept {
  return shard + 1 == shards_ ? shard_size_ - missing_ : shard_size_;
}

std::uint64_t EpochOrder::sample_in(std::uint64_t shard, std::uint64_t offset) const noexcept {
  const std::uint64_t first = shard * shard_size_;
  if (!shuffle_) return first + offset;
  const std::uint64_t key = KeyHash("dataset/shard").add(key_of_samples_).add(shard).value();
  return first + Permutation(shard_length(shard), key)(offset);
}

std::uint64_t EpochOrder::sample(std::uint64_t position) const noexcept {
  const Place at = place(position);
  return sample_in(shard_in(at.slot), at.offset);
}

EpochOrder::Place EpochOrder::place(std::uint64_t position) const noexcept {
  // Behind the short slot everything lies as if that one were full and the positions were larger by what it misses.
  const std::uint64_t behind_short = slot_begin(short_slot_ + 1);
  const std::uint64_t even = position < behind_short ? position : position + missing_;
  return {even / shard_size_, even % shard_size_};
}

std::uint64_t EpochOrder::slot_begin(std::uint64_t slot) const noexcept {
  return slot * shard_size_ - (slot > short_slot_ ? missing_ : 0);
}

}  // namespace dataset
}  // namespace dtr::inline v0
