#include "dtr/dataset/deal.hpp"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

namespace dtr::inline v0 {
namespace dataset {

namespace {

constexpr std::uint64_t kNone = std::numeric_limits<std::uint64_t>::max();

/// How many of `total` things rank gets when the counts differ by at most one, and how many the ranks before it get.
struct Share {
  std::uint64_t count;
  std::uint64_t before;
};

constexpr Share share(std::uint64_t total, std::uint64_t world, std::uint64_t rank) noexcept {
  const std::uint64_t each = total / world;
  const std::uint64_t extra = total % world;
  return {each + (rank < extra ? 1 : 0), rank * each + std::min(rank, extra)};
}

constexpr std::uint64_t divide_up(std::uint64_t a, std::uint64_t b) noexcept { return a / b + (a % b != 0 ? 1 : 0); }

}  // namespace

EpochRest::EpochRest(std::vector<Range> ranges, std::uint64_t untouched, std::uint64_t samples)
    : untouched_(untouched), samples_(samples) {
  std::sort(ranges.begin(), ranges.end(), [](const Range& a, const Range& b) { return a.begin < b.begin; });
  for (const Range& range : ranges) {
    if (range.begin == range.end) continue;
    if (!ranges_.empty() && ranges_.back().end == range.begin) {
      ranges_.back().end = range.end;
    } else {
      ranges_.push_back(range);
    }
  }
  ends_.reserve(ranges_.size());
  std::uint64_t end = 0;
  for (const Range& range : ranges_) ends_.push_back(end += range.end - range.begin);
}

EpochRest::Stretch EpochRest::at(std::uint64_t index) const noexcept {
  if (index >= in_ranges()) {
    const std::uint64_t position = untouched_ + (index - in_ranges());
    return {position, samples_ - position};
  }
  const auto end = std::upper_bound(ends_.begin(), ends_.end(), index);
  const std::uint64_t count = *end - index;
  return {ranges_[static_cast<std::size_t>(end - ends_.begin())].end - count, count};
}

Deal::Deal(const EpochOrder& order, const EpochRest& rest, ShardUnit unit, std::uint64_t world, std::uint64_t rank)
    : order_(&order), rest_(&rest), unit_(unit), world_(world), rank_(rank), short_round_(kNone) {
  size_ = share(rest.size(), world, rank).count;
  if (unit == ShardUnit::sample) return;

  const Share ranges = share(rest.in_ranges(), world, rank);
  from_ranges_begin_ = ranges.before;
  from_ranges_ = ranges.count;

  // As many whole rounds as fit into the smallest count, whichever rank meets the short slot.
  const std::uint64_t fewest = rest.size() / world;
  const std::uint64_t most_from_ranges = divide_up(rest.in_ranges(), world);
  rounds_ = fewest > most_from_ranges ? (fewest - most_from_ranges) / order.shard_size() : 0;
  first_slot_ = rest.untouched() == rest.samples() ? order.shards() : order.place(rest.untouched()).slot;

  const std::uint64_t last_slot = first_slot_ + rounds_ * world;
  const bool short_in_rounds =
      order.missing() != 0 && order.short_slot() >= first_slot_ && order.short_slot() < last_slot;
  const std::uint64_t short_rank = short_in_rounds ? (order.short_slot() - first_slot_) % world : kNone;
  if (short_rank == rank) short_round_ = (order.short_slot() - first_slot_) / world;

  // The last part begins where those of the ranks before end: they got their counts, less what came from elsewhere.
  last_begin_ = order.slot_begin(last_slot) + share(rest.size(), world, rank).before - ranges.before -
                rank * rounds_ * order.shard_size() + (short_rank < rank ? order.missing() : 0);
}

std::uint64_t Deal::round_begin(std::uint64_t round) const noexcept {
  return from_ranges_ + round * order_->shard_size() - (round > short_round_ ? order_->missing() : 0);
}

std::uint64_t Deal::first_untouched_round(std::uint64_t consumed) const noexcept {
  if (consumed <= from_ranges_) return 0;
  if (consumed >= round_begin(rounds_)) return rounds_;
  std::uint64_t even = consumed - from_ranges_;
  if (short_round_ != kNone && consumed > round_begin(short_round_ + 1)) even += order_->missing();
  // Exactly at the end of the short slot nothing of the next round is touched, and rounding up says so by itself.
  return divide_up(even, order_->shard_size());
}

std::uint64_t Deal::round_position(std::uint64_t round) const noexcept {
  return order_->slot_begin(first_slot_ + round * world_);
}

Deal::Stretch Deal::within_slot(std::uint64_t position, std::uint64_t count) const noexcept {
  const std::uint64_t slot_end = order_->slot_begin(order_->place(position).slot + 1);
  return {position, std::min(count, slot_end - position), 1};
}

Deal::Stretch Deal::at_sample(std::uint64_t index) const noexcept {
  const EpochRest::Stretch stretch = rest_->at(rank_ + index * world_);
  const Stretch one_slot = within_slot(stretch.position, stretch.count);
  return {stretch.position, divide_up(one_slot.count, world_), world_};
}

Deal::Stretch Deal::at(std::uint64_t index) const noexcept {
  if (unit_ == ShardUnit::sample) return at_sample(index);
  if (index < from_ranges_) {
    const EpochRest::Stretch stretch = rest_->at(from_ranges_begin_ + index);
    return within_slot(stretch.position, std::min(stretch.count, from_ranges_ - index));
  }
  const std::uint64_t whole_end = round_begin(rounds_);
  if (index < whole_end) {
    std::uint64_t even = index - from_ranges_;
    if (short_round_ != kNone && index >= round_begin(short_round_ + 1)) even += order_->missing();
    const std::uint64_t slot = first_slot_ + even / order_->shard_size() * world_ + rank_;
    return within_slot(order_->slot_begin(slot) + even % order_->shard_size(), order_->shard_size());
  }
  return within_slot(last_begin_ + (index - whole_end), size_ - index);
}

namespace {

/// Adds the positions that a rank has from index `from` to index `to`.
void add_ranges(const Deal& deal, std::uint64_t from, std::uint64_t to, std::vector<EpochRest::Range>& ranges) {
  while (from < to) {
    const Deal::Stretch stretch = deal.at(from);
    const std::uint64_t count = std::min(stretch.count, to - from);
    if (stretch.stride == 1) {
      ranges.push_back({stretch.position, stretch.position + count});
    } else {
      for (std::uint64_t i = 0; i < count; ++i) {
        const std::uint64_t position = stretch.position + i * stretch.stride;
        ranges.push_back({position, position + 1});
      }
    }
    from += count;
  }
}

tl::unexpected<Error> too_far_apart() {
  return fail(Errc::resource_exhausted,
              "the ranks stopped too far from each other: what they left behind has more than 2^20 pieces",
              "resume epoch");
}

/// A stage whose ranks stopped: each one's deal, made when asked for, and how much of it was consumed.
struct Stage {
  const EpochOrder& order;
  const EpochRest& rest;
  ShardUnit unit;
  std::uint64_t world;
  std::vector<std::uint64_t> consumed;

  [[nodiscard]] Deal deal(std::uint64_t rank) const { return {order, rest, unit, world, rank}; }
};

Result<EpochRest> rest_of_samples(const Stage& stage) {
  const EpochRest& rest = stage.rest;
  const std::uint64_t furthest = *std::max_element(stage.consumed.begin(), stage.consumed.end());
  std::uint64_t behind = 0;
  std::vector<EpochRest::Range> ranges;
  for (std::uint64_t rank = 0; rank < stage.world; ++rank) {
    const Deal deal = stage.deal(rank);
    const std::uint64_t end = std::min(furthest, deal.size());
    behind += end - stage.consumed[rank];
    if (behind > kMaxRestRanges) return too_far_apart();
    add_ranges(deal, stage.consumed[rank], end, ranges);
  }
  // Behind the furthest rank, the stream is as it was.
  std::uint64_t index = std::min(furthest * stage.world, rest.size());
  while (index < rest.in_ranges()) {
    const EpochRest::Stretch stretch = rest.at(index);
    ranges.push_back({stretch.position, stretch.position + stretch.count});
    index += stretch.count;
  }
  return EpochRest(std::move(ranges), rest.untouched() + (index - rest.in_ranges()), rest.samples());
}

Result<EpochRest> rest_of_shards(const Stage& stage) {
  // From this round on no slot is open; if anybody is in the last part already, that is behind all rounds.
  std::uint64_t round = 0;
  bool in_last_part = false;
  for (std::uint64_t rank = 0; rank < stage.world; ++rank) {
    const Deal deal = stage.deal(rank);
    round = std::max(round, deal.first_untouched_round(stage.consumed[rank]));
    in_last_part = in_last_part || stage.consumed[rank] > deal.round_begin(deal.rounds());
  }
  if (in_last_part) round = stage.deal(0).rounds();

  std::uint64_t behind = 0;
  std::vector<EpochRest::Range> ranges;
  for (std::uint64_t rank = 0; rank < stage.world; ++rank) {
    const Deal deal = stage.deal(rank);
    behind += round - deal.first_untouched_round(stage.consumed[rank]);
    if (behind > kMaxRestRanges) return too_far_apart();
    add_ranges(deal, stage.consumed[rank], in_last_part ? deal.size() : deal.round_begin(round), ranges);
  }
  const std::uint64_t untouched = in_last_part ? stage.rest.samples() : stage.deal(0).round_position(round);
  return EpochRest(std::move(ranges), untouched, stage.rest.samples());
}

}  // namespace

Result<EpochRest> rest_after(const EpochOrder& order, const EpochRest& rest, ShardUnit unit, std::uint64_t world,
                             std::span<const std::uint64_t> consumed) {
  if (consumed.size() != 1 && consumed.size() != world) {
    return fail(Errc::invalid_argument,
                std::to_string(consumed.size()) + " counts of consumed samples for " + std::to_string(world) +
                    " ranks; give one for each, or one for all",
                "resume epoch");
  }
  Stage stage{order, rest, unit, world, {}};
  stage.consumed.reserve(world);
  const std::uint64_t most = divide_up(rest.size(), world);
  for (std::uint64_t rank = 0; rank < world; ++rank) {
    const std::uint64_t count = consumed.size() == 1 ? consumed[0] : consumed[rank];
    if (count > most) {
      return fail(Errc::invalid_argument,
                  std::to_string(count) + " samples consumed by a rank of " + std::to_string(world) +
                      ", but there were only " + std::to_string(most) + " for each",
                  "resume epoch", static_cast<int>(rank));
    }
    stage.consumed.push_back(std::min(count, stage.deal(rank).size()));
  }
  return unit == ShardUnit::sample ? rest_of_samples(stage) : rest_of_shards(stage);
}

}  // namespace dataset
}  // namespace dtr::inline v0
