#include "dtr/dataset/prefetch.hpp"

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <new>
#include <optional>
#include <string>
#include <utility>

#include "dtr/base/config.hpp"
#include "dtr/base/thread.hpp"
#include "dtr/dataset/gather.hpp"

namespace dtr::inline v0 {

namespace {

constexpr std::uint64_t kLargestBatch = std::uint64_t{1} << 32;

Result<void> check_readers(const std::vector<ReaderPtr>& readers, const DatasetInfo& info) {
  const std::string operation = "load batches of '" + info.id + "'";
  if (readers.empty()) return fail(Errc::invalid_argument, "no reader", operation);
  for (const ReaderPtr& reader : readers) {
    if (reader == nullptr) return fail(Errc::invalid_argument, "a reader is null", operation);
    if (reader->samples() != info.total_samples) {
      return fail(Errc::invalid_argument,
                  "'" + reader->name() + "' has " + std::to_string(reader->samples()) + " samples, the plan is over " +
                      std::to_string(info.total_samples),
                  operation);
    }
  }
  return {};
}

/// One batch in memory.
struct Slot {
  std::vector<std::vector<std::byte>> bytes;  // by reader
  std::vector<std::span<const std::byte>> fields;
  std::vector<std::uint64_t> indices;
  std::vector<std::uint8_t> mask;
  SampleBatch batch;
};

}  // namespace

/// Ring of slots between the reading thread, which fills them in order, and next(), which hands them out in order.
class BatchLoader::Machine {
 public:
  Machine(std::vector<ReaderPtr> readers, ShardPlan plan, LoaderOptions options)
      : readers_(std::move(readers)), options_(options), plan_(std::move(plan)), slots_(options.depth + 1) {
    for (Slot& slot : slots_) {
      slot.bytes.resize(readers_.size());
      slot.fields.resize(readers_.size());
    }
    thread_ = Thread([this](const std::stop_token&) { run(); }, {.name = "dtr-data"});
  }

  ~Machine() {
    {
      const std::unique_lock lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
  }

  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;

  Result<SampleBatch> next(Deadline deadline) {
    std::unique_lock lock(mutex_);
    if (row_of(taken_) >= plan_.size()) return SampleBatch{.first_row = plan_.size()};
    const bool there = wake_.wait_until(lock, deadline.at(), [this] { return filled_ > taken_ || error_; });
    if (filled_ > taken_) {
      const SampleBatch batch = slots_[taken_ % slots_.size()].batch;
      ++taken_;
      wake_.notify_all();
      return batch;
    }
    if (there) return fail(*error_);
    return fail(Errc::timed_out, "row " + std::to_string(row_of(taken_)) + " is not read yet",
                "load batches of '" + plan_.info().id + "'");
  }

  Result<void> begin(ShardPlan plan, std::uint64_t row) {
    if (auto checked = check_readers(readers_, plan.info()); !checked) return checked;
    if (row > plan.size()) {
      return fail(Errc::out_of_range, "row " + std::to_string(row) + " of " + std::to_string(plan.size()),
                  "load batches of '" + plan.info().id + "'");
    }
    {
      const std::unique_lock lock(mutex_);
      plan_ = std::move(plan);
      first_row_ = row;
      taken_ = 0;
      filled_ = 0;
      error_.reset();
      ++generation_;  // a batch that is being read belongs to the past
    }
    wake_.notify_all();
    return {};
  }

  // plan_, first_row_ and taken_ change only in calls of the user's thread.
  [[nodiscard]] const ShardPlan& plan() const { return plan_; }
  [[nodiscard]] std::uint64_t position() const { return std::min(row_of(taken_), plan_.size()); }
  [[nodiscard]] EpochCursor cursor() const { return plan_.cursor_after(row_of(taken_)); }

 private:
  [[nodiscard]] std::uint64_t row_of(std::uint64_t batch) const { return first_row_ + batch * options_.batch; }

  [[nodiscard]] bool may_fill() const {
    // The batch that was handed out last is still the user's.
    const std::uint64_t free_before = taken_ == 0 ? slots_.size() : taken_ - 1 + slots_.size();
    return !error_ && filled_ < free_before && row_of(filled_) < plan_.size();
  }

  void run() {
    std::unique_lock lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return stopping_ || may_fill(); });
      if (stopping_) return;
      const std::uint64_t generation = generation_;
      const std::uint64_t row = row_of(filled_);
      const ShardPlan plan = plan_;
      Slot& slot = slots_[filled_ % slots_.size()];
      lock.unlock();
      auto done = fill_safely(slot, plan, row, generation);
      lock.lock();
      if (generation != generation_) continue;
      if (done) {
        ++filled_;
      } else {
        error_ = std::move(done.error());
      }
      wake_.notify_all();
    }
  }

  Result<void> fill_safely(Slot& slot, const ShardPlan& plan, std::uint64_t row, std::uint64_t generation) {
    const std::string operation = "load batches of '" + plan.info().id + "'";
    try {
      return fill(slot, plan, row, generation);
    } catch (const std::bad_alloc&) {
      return fail(Errc::resource_exhausted, "no memory for a batch or a shard", operation);
    } catch (const std::exception& exception) {
      return fail(Errc::internal, exception.what(), operation);
    }
  }

  Result<void> fill(Slot& slot, const ShardPlan& plan, std::uint64_t row, std::uint64_t generation) {
    const std::pair layout{plan.shard_size(), plan.info().shuffle};
    if (!gather_ || gathered_layout_ != layout) {
      gather_.emplace(readers_, layout.first, layout.second, options_.shard_buffer_bytes, options_.prefetch_shards);
      gathered_layout_ = layout;
    }
    // Another epoch of the same set goes on with the shards that are in memory.
    if (gathered_generation_ != generation) gather_->begin(plan, row);
    gathered_generation_ = generation;
    const std::size_t rows = std::min(options_.batch, plan.size() - row);
    const std::size_t samples = row >= plan.samples() ? 0 : std::min<std::uint64_t>(rows, plan.samples() - row);
    slot.indices.assign(rows, kNoSample);
    slot.mask.assign(rows, 0);
    for (std::size_t i = 0; i < samples; ++i) {
      slot.indices[i] = plan.sample(row + i);
      slot.mask[i] = 1;
    }
    std::vector<std::span<std::byte>> filled(readers_.size());
    for (std::size_t reader = 0; reader < readers_.size(); ++reader) {
      std::vector<std::byte>& bytes = slot.bytes[reader];
      const std::size_t sample_bytes = readers_[reader]->sample_bytes();
      bytes.resize(rows * sample_bytes);
      filled[reader] = std::span(bytes).first(samples * sample_bytes);
      std::fill(bytes.begin() + static_cast<std::ptrdiff_t>(filled[reader].size()), bytes.end(), std::byte{0});
      slot.fields[reader] = bytes;
    }
    if (auto done = gather_->read(std::span(slot.indices).first(samples), filled); !done) return done;
    slot.batch = {.first_row = row,
                  .rows = rows,
                  .samples = samples,
                  .mask = slot.mask,
                  .indices = slot.indices,
                  .fields = slot.fields};
    return {};
  }

  const std::vector<ReaderPtr> readers_;
  const LoaderOptions options_;

  std::mutex mutex_;
  std::condition_variable wake_;
  ShardPlan plan_;
  std::uint64_t first_row_ = 0;
  std::uint64_t taken_ = 0;   // batches since begin() that next() gave out
  std::uint64_t filled_ = 0;  // batches since begin() that were read
  std::uint64_t generation_ = 1;
  std::optional<Error> error_;
  bool stopping_ = false;
  std::vector<Slot> slots_;  // contents of a slot: the thread's before it is filled, the user's after

  std::optional<dataset::Gather> gather_;  // the thread's
  std::pair<std::uint64_t, bool> gathered_layout_{};
  std::uint64_t gathered_generation_ = 0;

  Thread thread_;  // last: joined before what it uses goes
};

LoaderOptions LoaderOptions::from(const Config& config) {
  return {.prefetch_shards = static_cast<std::size_t>(config.integer("dataset.prefetch_shards"))};
}

BatchLoader::BatchLoader(std::vector<ReaderPtr> readers, ShardPlan plan, LoaderOptions options) {
  value_or_throw(check_readers(readers, plan.info()));
  const std::string operation = "load batches of '" + plan.info().id + "'";
  if (options.batch == 0 || options.batch > kLargestBatch) {
    throw Exception({.code = Errc::invalid_argument,
                     .message = "a batch of " + std::to_string(options.batch) + " rows",
                     .operation = operation});
  }
  if (options.depth == 0) {
    throw Exception({.code = Errc::invalid_argument, .message = "a depth of 0 batches", .operation = operation});
  }
  machine_ = std::make_unique<Machine>(std::move(readers), std::move(plan), options);
}

BatchLoader::~BatchLoader() = default;
BatchLoader::BatchLoader(BatchLoader&&) noexcept = default;
BatchLoader& BatchLoader::operator=(BatchLoader&&) noexcept = default;

Result<SampleBatch> BatchLoader::next(Deadline deadline) { return machine_->next(deadline); }
Result<void> BatchLoader::begin(ShardPlan plan, std::uint64_t row) { return machine_->begin(std::move(plan), row); }
const ShardPlan& BatchLoader::plan() const noexcept { return machine_->plan(); }
std::uint64_t BatchLoader::position() const noexcept { return machine_->position(); }
EpochCursor BatchLoader::cursor() const { return machine_->cursor(); }

}  // namespace dtr::inline v0
