#include "dtr/dataset/shard_window.hpp"

#include <algorithm>
#include <new>
#include <string>
#include <utility>

namespace dtr::inline v0 {
namespace dataset {

ShardWindow::ShardWindow(std::vector<ReaderPtr> readers, std::uint64_t shard_size, std::size_t ahead)
    : readers_(std::move(readers)), shard_size_(shard_size), ahead_(ahead) {
  if (ahead_ > 0) thread_ = Thread([this](const std::stop_token&) { read_ahead(); }, {.name = "dtr-shards"});
}

ShardWindow::~ShardWindow() {
  {
    const std::unique_lock lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
}

void ShardWindow::begin(const ShardPlan& plan, std::uint64_t row) {
  {
    const std::unique_lock lock(mutex_);
    left_over_.clear();
    for (const Entry& entry : entries_) {
      if (entry.outcome && *entry.outcome) left_over_.push_back(**entry.outcome);
    }
    entries_.clear();
    plan_ = plan;
    row_ = row;
    ++generation_;
  }
  wake_.notify_all();
}

Result<ShardWindow::Shard> ShardWindow::shard(std::uint64_t id) {
  std::unique_lock lock(mutex_);
  if (ahead_ == 0) {
    if (!entries_.empty() && entries_.front().id == id) return *entries_.front().outcome;
    const Shard known = in_memory(id);
    entries_.clear();  // before the next one takes its memory
    left_over_.clear();
    auto loaded = known != nullptr ? known : load(id);
    if (loaded) entries_.push_back({.id = id, .outcome = loaded});
    return loaded;
  }
  for (;;) {
    while (!entries_.empty() && entries_.front().id != id) {
      entries_.pop_front();
      wake_.notify_all();
    }
    if (!entries_.empty() && entries_.front().outcome) return *entries_.front().outcome;
    if (entries_.empty() && row_ >= plan_->samples()) {
      return fail(Errc::internal, "shard " + std::to_string(id) + " does not come in the plan", "read ahead");
    }
    wake_.wait(lock);
  }
}

void ShardWindow::read_ahead() {
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [this] { return stopping_ || (plan_ && entries_.size() <= ahead_ && row_ < plan_->samples()); });
    if (stopping_) return;
    const auto id = next_of_plan();
    if (!id) continue;
    entries_.push_back({.id = *id});
    Shard known = in_memory(*id);
    // Memory of another epoch goes once the new one fills its own.
    if (known == nullptr && left_over_.size() + entries_.size() > ahead_ + 1) left_over_.clear();
    const std::uint64_t generation = generation_;
    lock.unlock();
    Result<Shard> outcome = known != nullptr ? Result<Shard>(std::move(known)) : load(*id);
    lock.lock();
    if (generation == generation_) {
      // shard() may have given it up meanwhile.
      const auto mine = std::find_if(entries_.begin(), entries_.end(), [&](const Entry& e) { return !e.outcome; });
      if (mine != entries_.end()) mine->outcome = std::move(outcome);
    }
    wake_.notify_all();
  }
}

/// The next shard that is not the one before it; moves row_ behind it.
std::optional<std::uint64_t> ShardWindow::next_of_plan() {
  while (row_ < plan_->samples()) {
    const ShardRange range = plan_->range_at(row_);
    row_ += range.count();
    if (entries_.empty() || entries_.back().id != range.shard_id) return range.shard_id;
  }
  return std::nullopt;
}

ShardWindow::Shard ShardWindow::in_memory(std::uint64_t id) const {
  for (const Shard& shard : left_over_) {
    if (shard->id == id) return shard;
  }
  return nullptr;
}

Result<ShardWindow::Shard> ShardWindow::load(std::uint64_t id) const {
  try {
    auto shard = std::make_shared<LoadedShard>();
    shard->id = id;
    for (const ReaderPtr& reader : readers_) {
      const std::uint64_t first = id * shard_size_;
      const std::uint64_t count = std::min(shard_size_, reader->samples() - first);
      std::vector<std::byte>& bytes = shard->bytes.emplace_back(count * reader->sample_bytes());
      if (auto done = reader->read(first, count, bytes); !done) return fail(std::move(done.error()));
    }
    return Shard(std::move(shard));
  } catch (const std::bad_alloc&) {
    return fail(Errc::resource_exhausted, "no memory for a shard of " + std::to_string(shard_size_) + " samples",
                "read ahead");
  } catch (const std::exception& exception) {
    return fail(Errc::internal, exception.what(), "read ahead");
  }
}

}  // namespace dataset
}  // namespace dtr::inline v0
