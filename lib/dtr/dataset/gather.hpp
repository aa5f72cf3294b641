// Picks the rows of a batch from the readers in the cheapest way that each of them offers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "dtr/dataset/plan.hpp"
#include "dtr/dataset/readers/reader.hpp"

namespace dtr::inline v0 {
namespace dataset {

class ShardWindow;

/// The readers' side of a loader. One thread at a time.
class Gather {
 public:
  /// Shards of a reader are read whole if one is no more than `buffer_bytes`, the order is shuffled and the reader has
  /// no quick random access; up to `ahead` more of them in advance, as long as all of a reader's fit into buffer_bytes.
  Gather(const std::vector<ReaderPtr>& readers, std::uint64_t shard_size, bool shuffled, std::size_t buffer_bytes,
         std::size_t ahead);
  ~Gather();
  Gather(const Gather&) = delete;
  Gather& operator=(const Gather&) = delete;

  /// The next read() begins at this row of the plan. Before the first read(), and wherever the order jumps.
  void begin(const ShardPlan& plan, std::uint64_t row);

  /// The samples at `indices`, in this order, from each reader. out[reader] has their size.
  [[nodiscard]] Result<void> read(std::span<const std::uint64_t> indices, std::span<const std::span<std::byte>> out);

 private:
  [[nodiscard]] Result<void> pick(std::span<const std::uint64_t> indices, std::span<const std::span<std::byte>> out);

  std::uint64_t shard_size_;
  std::vector<ReaderPtr> readers_;
  std::vector<std::size_t> whole_;       // readers whose shards are read whole
  std::vector<std::size_t> piecewise_;   // the others
  std::unique_ptr<ShardWindow> window_;  // null: no reader's shards are read whole
};

}  // namespace dataset
}  // namespace dtr::inline v0
