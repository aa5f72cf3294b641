// Picks the rows of a batch from a reader in the cheapest way that the reader offers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "dtr/dataset/readers/reader.hpp"

namespace dtr::inline v0 {
namespace dataset {

/// One reader's side of a loader. One thread at a time.
class Gather {
 public:
  /// Shards are read whole if that is no more than `buffer_bytes`, the order is shuffled and the reader has no quick
  /// random access.
  Gather(ReaderPtr reader, std::uint64_t shard_size, bool shuffled, std::size_t buffer_bytes);

  [[nodiscard]] const SampleReader& reader() const noexcept { return *reader_; }

  /// The samples at `indices`, in this order. `out` has their size.
  [[nodiscard]] Result<void> read(std::span<const std::uint64_t> indices, std::span<std::byte> out);

 private:
  [[nodiscard]] Result<void> read_runs(std::span<const std::uint64_t> indices, std::span<std::byte> out) const;
  [[nodiscard]] Result<void> load_shard(std::uint64_t shard);

  ReaderPtr reader_;
  std::uint64_t shard_size_;
  bool buffered_;
  std::uint64_t shard_;  // that is in shard_bytes_
  std::vector<std::byte> shard_bytes_;
};

}  // namespace dataset
}  // namespace dtr::inline v0
