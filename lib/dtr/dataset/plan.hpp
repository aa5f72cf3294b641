// Which samples a rank reads in an epoch, and in what order: pure arithmetic, no communication.
#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <limits>
#include <memory>
#include <span>

#include "dtr/base/error.hpp"
#include "dtr/dataset/cursor.hpp"
#include "dtr/dataset/info.hpp"

namespace dtr::inline v0 {

/// What ShardPlan::sample says of a padded row.
inline constexpr std::uint64_t kNoSample = std::numeric_limits<std::uint64_t>::max();

/// Samples of one shard, by their place in the shard's order of this epoch: start_sample, start_sample + stride, ...,
/// below end_sample. ShardPlan::sample_in says which stored sample is at such a place; without shuffle it is
/// shard_id * shard_size + place.
struct ShardRange {
  std::uint64_t shard_id = 0;
  std::uint64_t start_sample = 0;
  std::uint64_t end_sample = 0;
  std::uint64_t stride = 1;  ///< 1 with ShardUnit::shard

  [[nodiscard]] std::uint64_t count() const noexcept { return (end_sample - start_sample + stride - 1) / stride; }
  friend bool operator==(const ShardRange&, const ShardRange&) = default;
};

/// One rank's share of one epoch: a function of (info, world, rank, epoch) alone, so any rank can compute any other's.
/// Time and memory to make it do not depend on the number of samples (10^12 are as quick as 10^3); looking up a sample
/// costs about 0.2 us. Counts of ranks differ by at most one before the TailPolicy, which makes them equal (drop, pad)
/// or leaves them (uneven). Immutable and cheap to copy: any thread.
class ShardPlan {
 public:
  /// Throws Exception: invalid_argument (world < 1, rank outside it, what check_plannable says, a cursor that does not
  /// fit the set), resource_exhausted (a cursor whose ranks stopped too far apart, see kMaxRestRanges).
  ShardPlan(const DatasetInfo& info, int world, int rank, std::uint64_t epoch);

  /// The rest of an epoch, from where the cursor stands. On as many ranks as the cursor's last stage it goes on with
  /// exactly the samples that were next; on another number of ranks the rest is dealt again. Either way every sample
  /// comes once an epoch.
  ShardPlan(const DatasetInfo& info, int world, int rank, const EpochCursor& cursor);

  /// The same, for callers that do not want exceptions.
  [[nodiscard]] static Result<ShardPlan> make(const DatasetInfo& info, int world, int rank, const EpochCursor& cursor);

  /// Rows that this rank delivers: equal on all ranks for drop and pad.
  [[nodiscard]] std::uint64_t size() const noexcept { return size_; }
  /// Rows that are samples: the first of size(); fewer only with pad.
  [[nodiscard]] std::uint64_t samples() const noexcept { return samples_; }
  /// Batches until size() is delivered; the last may be smaller. `batch` > 0.
  [[nodiscard]] std::uint64_t batches(std::uint64_t batch) const noexcept {
    return size_ / batch + (size_ % batch != 0 ? 1 : 0);
  }

  /// The index, in stored order, of the sample in a row; kNoSample where the row is padding or row >= size().
  [[nodiscard]] std::uint64_t sample(std::uint64_t row) const noexcept;

  /// What the rank reads from `row` on without leaving the shard; row < samples(), else an empty range.
  [[nodiscard]] ShardRange range_at(std::uint64_t row) const noexcept;

  /// The stored index of a place in a shard's order.
  [[nodiscard]] std::uint64_t sample_in(std::uint64_t shard_id, std::uint64_t place) const noexcept;

  class RangeIterator;
  class Ranges;
  /// All ranges in the rank's order, made one by one: `for (const ShardRange& range : plan.ranges())`.
  [[nodiscard]] Ranges ranges() const noexcept;

  /// For a checkpoint: where the epoch stands when every rank has consumed its first `rows` rows, or all it has. The
  /// same on every rank if `rows` is.
  [[nodiscard]] EpochCursor cursor_after(std::uint64_t rows) const;
  /// The same when the ranks stand at different rows, by rank. With ShardUnit::sample they have to be close.
  [[nodiscard]] EpochCursor cursor_after(std::span<const std::uint64_t> rows) const;

  [[nodiscard]] const DatasetInfo& info() const noexcept;
  [[nodiscard]] std::uint64_t epoch() const noexcept { return cursor_epoch_; }
  [[nodiscard]] int world() const noexcept { return world_; }
  [[nodiscard]] int rank() const noexcept { return rank_; }
  /// Shards of the whole set, and samples in all of them but the last.
  [[nodiscard]] std::uint64_t shards() const noexcept;
  [[nodiscard]] std::uint64_t shard_size() const noexcept;

 private:
  struct State;

  std::shared_ptr<const State> state_;
  std::uint64_t cursor_epoch_;
  int world_;
  int rank_;
  std::uint64_t skipped_ = 0;  // rows of the deal that the cursor has behind it already
  std::uint64_t size_ = 0;
  std::uint64_t samples_ = 0;
  std::uint64_t most_rows_ = 0;  // of any rank
};

class ShardPlan::RangeIterator {
 public:
  using iterator_category = std::input_iterator_tag;
  using value_type = ShardRange;
  using difference_type = std::ptrdiff_t;
  using pointer = const ShardRange*;
  using reference = const ShardRange&;

  RangeIterator(const ShardPlan& plan, std::uint64_t row) noexcept
      : plan_(&plan), row_(row), range_(plan.range_at(row)) {}

  reference operator*() const noexcept { return range_; }
  pointer operator->() const noexcept { return &range_; }
  RangeIterator& operator++() noexcept {
    row_ += range_.count();
    range_ = plan_->range_at(row_);
    return *this;
  }
  RangeIterator operator++(int) noexcept {
    RangeIterator before = *this;
    ++*this;
    return before;
  }
  friend bool operator==(const RangeIterator& a, const RangeIterator& b) noexcept { return a.row_ == b.row_; }

 private:
  const ShardPlan* plan_;
  std::uint64_t row_;
  ShardRange range_;
};

class ShardPlan::Ranges {
 public:
  explicit Ranges(const ShardPlan& plan) noexcept : plan_(plan) {}
  [[nodiscard]] RangeIterator begin() const noexcept { return {plan_, 0}; }
  [[nodiscard]] RangeIterator end() const noexcept { return {plan_, plan_.samples()}; }

 private:
  ShardPlan plan_;  // by value: `make_plan().ranges()` in a loop stays valid
};

inline ShardPlan::Ranges ShardPlan::ranges() const noexcept { return Ranges(*this); }

}  // namespace dtr::inline v0
