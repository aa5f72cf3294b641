#include "dtr/dataset/plan.hpp"

#include <algorithm>
#include <string>
#include <vector>

#include "dtr/dataset/deal.hpp"
#include "dtr/dataset/epoch_order.hpp"

namespace dtr::inline v0 {

namespace {

/// A damaged cursor must not cost gigabytes.
constexpr int kMostRanksInCursor = 1 << 22;

std::string operation_on(const DatasetInfo& info) { return "plan shards of '" + info.id + "'"; }

void check_rank(const DatasetInfo& info, int world, int rank) {
  if (world < 1) {
    throw Exception({.code = Errc::invalid_argument,
                     .message = "a world of " + std::to_string(world) + " ranks",
                     .operation = operation_on(info)});
  }
  if (rank < 0 || rank >= world) {
    throw Exception({.code = Errc::invalid_argument,
                     .message = "rank " + std::to_string(rank) + " in a world of " + std::to_string(world),
                     .operation = operation_on(info)});
  }
}

/// What the stages leave. A plan on as many ranks as the last stage continues it instead: then that stage is skipped
/// over, not dealt again, and the rows come as if nothing had happened.
dataset::EpochRest rest_of(const DatasetInfo& info, const dataset::EpochOrder& order,
                           std::span<const EpochCursor::Stage> stages) {
  dataset::EpochRest rest({}, 0, order.samples());
  for (const EpochCursor::Stage& stage : stages) {
    if (stage.world < 1 || stage.world > kMostRanksInCursor) {
      throw Exception({.code = Errc::invalid_argument,
                       .message = "the cursor has a stage of " + std::to_string(stage.world) + " ranks",
                       .operation = operation_on(info)});
    }
    rest = value_or_throw(
        dataset::rest_after(order, rest, info.unit, static_cast<std::uint64_t>(stage.world), stage.consumed));
  }
  return rest;
}

bool continues(const EpochCursor& cursor, int world) {
  return !cursor.stages.empty() && cursor.stages.back().world == world && cursor.stages.back().consumed.size() == 1;
}

}  // namespace

/// The deal points into its neighbours, so the three stay where they are made.
struct ShardPlan::State {
  State(const DatasetInfo& set, const dataset::EpochOrder& epoch_order, std::span<const EpochCursor::Stage> stages,
        int world, int rank)
      : info(set),
        done(stages.begin(), stages.end()),
        order(epoch_order),
        rest(rest_of(set, order, stages)),
        deal(order, rest, info.unit, static_cast<std::uint64_t>(world), static_cast<std::uint64_t>(rank)) {}
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  DatasetInfo info;
  std::vector<EpochCursor::Stage> done;
  dataset::EpochOrder order;
  dataset::EpochRest rest;
  dataset::Deal deal;
};

ShardPlan::ShardPlan(const DatasetInfo& info, int world, int rank, std::uint64_t epoch)
    : ShardPlan(info, world, rank, EpochCursor{.epoch = epoch}) {}

ShardPlan::ShardPlan(const DatasetInfo& info, int world, int rank, const EpochCursor& cursor)
    : cursor_epoch_(cursor.epoch), world_(world), rank_(rank) {
  value_or_throw(check_plannable(info));
  check_rank(info, world, rank);

  const dataset::EpochOrder order(info, cursor.epoch);
  const bool same_world = continues(cursor, world);
  std::span<const EpochCursor::Stage> stages = cursor.stages;
  if (same_world) stages = stages.first(stages.size() - 1);
  state_ = std::make_shared<const State>(info, order, stages, world, rank);

  const auto ranks = static_cast<std::uint64_t>(world);
  const std::uint64_t fewest = state_->rest.size() / ranks;
  const std::uint64_t most = fewest + (state_->rest.size() % ranks != 0 ? 1 : 0);
  const std::uint64_t dealt = state_->deal.size();
  if (same_world) {
    skipped_ = cursor.stages.back().consumed[0];
    if (skipped_ > most) {
      throw Exception({.code = Errc::invalid_argument,
                       .message = "the cursor has " + std::to_string(skipped_) + " samples consumed by each of " +
                                  std::to_string(world) + " ranks, but there were only " + std::to_string(most) +
                                  " for each",
                       .operation = operation_on(info)});
    }
  }
  const std::uint64_t total = info.tail == TailPolicy::drop ? fewest : info.tail == TailPolicy::pad ? most : dealt;
  size_ = total - std::min(total, skipped_);
  const std::uint64_t longest = info.tail == TailPolicy::drop ? fewest : most;
  most_rows_ = longest - std::min(longest, skipped_);
  samples_ = std::min(dealt - std::min(dealt, skipped_), size_);
}

Result<ShardPlan> ShardPlan::make(const DatasetInfo& info, int world, int rank, const EpochCursor& cursor) {
  try {
    return ShardPlan(info, world, rank, cursor);
  } catch (const Exception& exception) {
    return fail(exception.error());
  }
}

std::uint64_t ShardPlan::sample(std::uint64_t row) const noexcept {
  if (row >= samples_) return kNoSample;
  return state_->order.sample(state_->deal.at(skipped_ + row).position);
}

ShardRange ShardPlan::range_at(std::uint64_t row) const noexcept {
  if (row >= samples_) return {};
  const dataset::Deal::Stretch stretch = state_->deal.at(skipped_ + row);
  const dataset::EpochOrder::Place place = state_->order.place(stretch.position);
  const std::uint64_t count = std::min(stretch.count, samples_ - row);
  return {.shard_id = state_->order.shard_in(place.slot),
          .start_sample = place.offset,
          .end_sample = place.offset + (count - 1) * stretch.stride + 1,
          .stride = stretch.stride};
}

std::uint64_t ShardPlan::sample_in(std::uint64_t shard_id, std::uint64_t place) const noexcept {
  return state_->order.sample_in(shard_id, place);
}

EpochCursor ShardPlan::cursor_after(std::uint64_t rows) const { return cursor_after(std::span(&rows, 1)); }

EpochCursor ShardPlan::cursor_after(std::span<const std::uint64_t> rows) const {
  EpochCursor cursor{.epoch = cursor_epoch_, .stages = state_->done};
  EpochCursor::Stage stage{.world = world_};
  for (const std::uint64_t count : rows) stage.consumed.push_back(skipped_ + std::min(count, most_rows_));
  const auto differs = [&](std::uint64_t count) { return count != stage.consumed.front(); };
  if (std::none_of(stage.consumed.begin(), stage.consumed.end(), differs)) stage.consumed.resize(1);
  cursor.stages.push_back(std::move(stage));
  return cursor;
}

const DatasetInfo& ShardPlan::info() const noexcept { return state_->info; }
std::uint64_t ShardPlan::shards() const noexcept { return state_->order.shards(); }
std::uint64_t ShardPlan::shard_size() const noexcept { return state_->order.shard_size(); }

}  // namespace dtr::inline v0
