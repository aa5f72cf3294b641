// Batches of a plan, read ahead by a thread of its own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "dtr/base/deadline.hpp"
#include "dtr/base/error.hpp"
#include "dtr/dataset/cursor.hpp"
#include "dtr/dataset/plan.hpp"
#include "dtr/dataset/readers/reader.hpp"

namespace dtr::inline v0 {

class Config;

struct LoaderOptions {
  std::uint64_t batch = 32;  ///< rows; the last batch of an epoch may have fewer
  std::size_t depth = 2;     ///< batches read ahead, at least 1
  /// Where a reader has no quick random access and the order is shuffled, whole shards are read and picked from, as
  /// long as a shard of one reader is no larger than this. Else samples are read one by one.
  std::size_t shard_buffer_bytes = std::size_t{256} << 20;
  /// Whole shards that a thread of its own reads ahead of the one that is picked from, as many as fit into
  /// shard_buffer_bytes together with that one; 0 = none.
  std::size_t prefetch_shards = 2;

  /// The row dataset.prefetch_shards of the configuration, the rest as above.
  [[nodiscard]] static LoaderOptions from(const Config& config);
};

/// Some rows of a rank. Everything in it lives in the loader, until its next call of next(), begin() or its end.
struct SampleBatch {
  std::uint64_t first_row = 0;               ///< in the plan
  std::size_t rows = 0;                      ///< 0: the epoch is over
  std::size_t samples = 0;                   ///< rows that are samples; the others, at the end, are padding, all zeros
  std::span<const std::uint8_t> mask{};      ///< one a row: 1 = sample, 0 = padding
  std::span<const std::uint64_t> indices{};  ///< one a row: where the sample is stored; kNoSample = padding
  std::span<const std::span<const std::byte>> fields{};  ///< one a reader, rows * sample_bytes() each

  /// The field's elements: `batch.field<float>(0)`. T is what the reader's type() says.
  template <class T>
  [[nodiscard]] std::span<const T> field(std::size_t reader) const noexcept {
    const std::span<const std::byte> bytes = fields[reader];
    return {reinterpret_cast<const T*>(bytes.data()), bytes.size() / sizeof(T)};
  }
};

/// Delivers the rows of a ShardPlan in their order, with the samples of several readers side by side (images, labels).
/// What is delivered depends on plan and readers alone, never on timing. Memory: depth + 1 batches, and where
/// shards are buffered 1 + prefetch_shards of them a reader. One thread at a time calls it; reading happens on threads
/// of its own: one, and one more where shards are read ahead.
class BatchLoader {
 public:
  /// Begins to read at once. All readers have plan.info().total_samples samples. Throws Exception: invalid_argument
  /// (no reader, another number of samples, a batch or depth of 0), resource_exhausted (memory, threads).
  BatchLoader(std::vector<ReaderPtr> readers, ShardPlan plan, LoaderOptions options = {});

  /// Waits for a read that is going on.
  ~BatchLoader();
  BatchLoader(BatchLoader&&) noexcept;
  BatchLoader& operator=(BatchLoader&&) noexcept;

  /// The next batch; rows == 0 when the epoch is over. Errors: timed_out (call again), and those of the readers, which
  /// stay until begin().
  [[nodiscard]] Result<SampleBatch> next(Deadline deadline);

  /// Goes on with another plan (the next epoch) or to another row of one; what was read ahead is dropped.
  /// Errors: invalid_argument (the readers have another number of samples), out_of_range (row > plan.size()).
  [[nodiscard]] Result<void> begin(ShardPlan plan, std::uint64_t row = 0);

  [[nodiscard]] const ShardPlan& plan() const noexcept;

  /// Rows delivered, that of the current batch included: the row at which next() goes on.
  [[nodiscard]] std::uint64_t position() const noexcept;

  /// For a checkpoint: where the epoch stands when all ranks have consumed as many batches as this one was given.
  [[nodiscard]] EpochCursor cursor() const;

 private:
  class Machine;
  std::unique_ptr<Machine> machine_;
};

}  // namespace dtr::inline v0
