// How what is left of an epoch is dealt to ranks, in positions of the epoch's order. The arithmetic under ShardPlan.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "dtr/dataset/epoch_order.hpp"

namespace dtr::inline v0 {
namespace dataset {

/// What nobody has consumed yet: single ranges, which are what ranks left behind when they stopped, and the
/// untouched end of the line. Fresh epoch: no ranges, everything untouched. Read as one stream, ranges first.
class EpochRest {
 public:
  struct Range {
    std::uint64_t begin = 0;
    std::uint64_t end = 0;
  };
  /// A position, and how many positions of the stream follow it without a gap, itself included.
  struct Stretch {
    std::uint64_t position = 0;
    std::uint64_t count = 0;
  };

  /// `ranges` in any order, disjoint, all below `untouched` <= samples.
  EpochRest(std::vector<Range> ranges, std::uint64_t untouched, std::uint64_t samples);

  [[nodiscard]] std::uint64_t size() const noexcept { return in_ranges() + (samples_ - untouched_); }
  [[nodiscard]] std::uint64_t in_ranges() const noexcept { return ends_.empty() ? 0 : ends_.back(); }
  [[nodiscard]] std::uint64_t untouched() const noexcept { return untouched_; }
  [[nodiscard]] std::uint64_t samples() const noexcept { return samples_; }

  /// The stream's index-th position; index < size(). O(log ranges).
  [[nodiscard]] Stretch at(std::uint64_t index) const noexcept;

 private:
  std::vector<Range> ranges_;        // sorted, neighbours merged
  std::vector<std::uint64_t> ends_;  // of each range, as index in the stream
  std::uint64_t untouched_;
  std::uint64_t samples_;
};

/// One rank's share of the rest, whose counts differ by at most one between ranks. With unit = sample: every
/// world-th position of the stream. With unit = shard, in this order: a part of the ranges; whole slots, every
/// world-th; a part of the last slots, which are cut so that the counts come out even.
/// Refers to `order` and `rest`, which outlive it.
class Deal {
 public:
  /// Positions `position`, `position + stride`, ...: `count` of them, all in one slot.
  struct Stretch {
    std::uint64_t position = 0;
    std::uint64_t count = 0;
    std::uint64_t stride = 1;
  };

  Deal(const EpochOrder& order, const EpochRest& rest, ShardUnit unit, std::uint64_t world, std::uint64_t rank);

  [[nodiscard]] std::uint64_t size() const noexcept { return size_; }

  /// The rank's index-th position and what follows it; index < size(). O(log ranges).
  [[nodiscard]] Stretch at(std::uint64_t index) const noexcept;

  // For unit = shard: whole slots are dealt in rounds, one slot a rank.
  [[nodiscard]] std::uint64_t rounds() const noexcept { return rounds_; }
  /// The rank's index at which a round begins; round == rounds() is where the last part begins.
  [[nodiscard]] std::uint64_t round_begin(std::uint64_t round) const noexcept;
  /// The first round of which the rank has consumed nothing, when it has consumed `consumed` <= size().
  [[nodiscard]] std::uint64_t first_untouched_round(std::uint64_t consumed) const noexcept;
  /// The position at which a round begins, over all ranks.
  [[nodiscard]] std::uint64_t round_position(std::uint64_t round) const noexcept;

 private:
  [[nodiscard]] Stretch within_slot(std::uint64_t position, std::uint64_t count) const noexcept;
  [[nodiscard]] Stretch at_sample(std::uint64_t index) const noexcept;

  const EpochOrder* order_;
  const EpochRest* rest_;
  ShardUnit unit_;
  std::uint64_t world_;
  std::uint64_t rank_;
  std::uint64_t size_ = 0;
  std::uint64_t from_ranges_begin_ = 0;  // in the stream
  std::uint64_t from_ranges_ = 0;
  std::uint64_t first_slot_ = 0;  // of round 0, rank 0
  std::uint64_t rounds_ = 0;
  std::uint64_t short_round_;     // the round in which this rank has the short slot, or kNone
  std::uint64_t last_begin_ = 0;  // position of the last part
};

/// How many ranges rest_after makes at most: it refuses ranks that are further apart than that.
inline constexpr std::uint64_t kMaxRestRanges = std::uint64_t{1} << 20;

/// What is left after `world` ranks, between which `rest` was dealt, consumed consumed[r] samples each (one entry: all
/// the same). A rank that had fewer than that consumed all it had, if it is by one only: that is how counts differ.
/// Errors: invalid_argument (wrong number of entries, more consumed than dealt), resource_exhausted (kMaxRestRanges).
[[nodiscard]] Result<EpochRest> rest_after(const EpochOrder& order, const EpochRest& rest, ShardUnit unit,
                                           std::uint64_t world, std::span<const std::uint64_t> consumed);

}  // namespace dataset
}  // namespace dtr::inline v0
