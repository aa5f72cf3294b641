#include "dtr/checkpoint/checkpoint_manager.hpp"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>

#include "dtr/base/config.hpp"
#include "dtr/base/fork_guard.hpp"
#include "dtr/base/log.hpp"
#include "dtr/base/thread.hpp"
#include "dtr/checkpoint/detail/loaded_step.hpp"
#include "dtr/checkpoint/detail/loader.hpp"
#include "dtr/checkpoint/detail/parallel_read.hpp"
#include "dtr/checkpoint/detail/plan.hpp"
#include "dtr/checkpoint/detail/saver.hpp"
#include "dtr/checkpoint/detail/staging_pool.hpp"
#include "dtr/checkpoint/detail/step_reader.hpp"
#include "dtr/checkpoint/detail/store.hpp"
#include "dtr/checkpoint/detail/ticket_state.hpp"
#include "dtr/checkpoint/detail/worker_pool.hpp"

namespace dtr::inline v0 {

namespace {

using checkpoint::SaveJob;
using checkpoint::TicketState;

constexpr int kMostWriters = 256;

CheckpointOptions checked(CheckpointOptions options) {
  const auto refuse = [](const std::string& why) {
    throw Exception(Error{.code = Errc::invalid_argument, .message = why, .operation = "checkpoint"});
  };
  if (options.path.empty()) refuse("no path");
  if (options.writers < 1 || options.writers > kMostWriters) {
    refuse("writers is " + std::to_string(options.writers) + ", must be 1 to " + std::to_string(kMostWriters));
  }
  return options;
}

}  // namespace

Result<CheckpointOptions> CheckpointOptions::from(const Config& config) {
  for (const auto& [key, only] : {std::pair("checkpoint.compression", "none"), std::pair("storage.backend", "local")}) {
    if (config.text(key) == only) continue;
    return fail(Errc::unsupported,
                std::string(key) + " = '" + config.text(key) + "': this version writes with '" + only + "' only",
                "checkpoint");
  }
  CheckpointOptions options;
  options.path = config.text("checkpoint.path");
  options.keep_last_n = static_cast<std::uint64_t>(config.integer("checkpoint.keep_last_n"));
  options.interval_steps = static_cast<std::uint64_t>(config.integer("checkpoint.interval_steps"));
  options.staging_bytes = static_cast<std::uint64_t>(config.integer("checkpoint.staging_bytes"));
  options.writers = static_cast<int>(config.integer("checkpoint.writers"));
  return options;
}

class CheckpointManager::Implementation {
 public:
  Implementation(Group& group, CheckpointOptions options);
  ~Implementation();
  Implementation(const Implementation&) = delete;
  Implementation& operator=(const Implementation&) = delete;

  Result<Ticket> save_async(std::uint64_t step, std::span<const TensorView> tensors);
  Result<Checkpoint> load_latest(const checkpoint::Judge& judge, Deadline deadline);
  Result<Checkpoint> load(std::uint64_t step, Deadline deadline);

  [[nodiscard]] Result<void> guard(const char* operation) const { return fork_guard_.check(operation); }
  [[nodiscard]] const checkpoint::Store& store() const noexcept { return store_; }
  [[nodiscard]] bool due(std::uint64_t step) const noexcept {
    return step > 0 && options_.interval_steps > 0 && step % options_.interval_steps == 0;
  }
  [[nodiscard]] checkpoint::Judge verify_my_share(Deadline deadline) const;

 private:
  struct Queued {
    SaveJob job;
    std::shared_ptr<TicketState> ticket;
  };

  void work(const std::stop_token& stop);
  [[nodiscard]] checkpoint::SaverOptions saver_options();
  [[nodiscard]] Deadline save_deadline() const;
  [[nodiscard]] Result<SaveJob> stage(std::uint64_t step, std::span<const TensorView> tensors);
  Ticket enqueue(SaveJob job);

  ForkGuard fork_guard_;
  Group& group_;
  const CheckpointOptions options_;
  checkpoint::Store store_;  ///< for reading; the saver has its own
  checkpoint::StagingPool staging_;
  std::unique_ptr<checkpoint::WorkerPool> workers_;
  std::unique_ptr<checkpoint::Saver> saver_;

  std::mutex order_;  ///< one save_async at a time: staged in the order in which they are queued
  std::mutex load_order_;
  std::uint64_t loads_ = 0;

  std::mutex mutex_;
  std::condition_variable_any queued_;
  std::condition_variable idle_;
  std::deque<Queued> queue_;
  bool busy_ = false;
  Deadline job_deadline_ = std::chrono::hours(1);  ///< background thread only
  std::atomic<Deadline::Clock::rep> close_at_{Deadline::Clock::time_point::max().time_since_epoch().count()};

  Thread thread_;  ///< last: it uses all of the above
};

CheckpointManager::Implementation::Implementation(Group& group, CheckpointOptions options)
    : group_(group), options_(checked(std::move(options))), store_(options_.path) {
  value_or_throw(staging_.reserve(options_.staging_bytes));
  workers_ = std::make_unique<checkpoint::WorkerPool>(options_.writers);
  saver_ = std::make_unique<checkpoint::Saver>(group_, store_.path(), *workers_, saver_options());
  thread_ = Thread([this](const std::stop_token& stop) { work(stop); }, ThreadOptions{.name = "dtr-ckpt"});
}

CheckpointManager::Implementation::~Implementation() {
  {
    std::unique_lock lock(mutex_);
    const Deadline limit = options_.close_timeout;
    close_at_ = limit.at().time_since_epoch().count();
    idle_.wait_until(lock, limit.at(), [&] { return queue_.empty() && !busy_; });
  }
  thread_.request_stop();
  thread_.join();
  for (auto& left : queue_) {
    left.ticket->decide(fail(Errc::cancelled, "the checkpoint manager was closed before this save began", "save"));
    left.job.staging.give_back();
  }
}

checkpoint::SaverOptions CheckpointManager::Implementation::saver_options() {
  checkpoint::SaverOptions options;
  options.keep_last_n = options_.keep_last_n;
  options.direct_io = options_.direct_io;
  options.deadline = [this] { return save_deadline(); };
  if (options_.progress) {
    options.progress = [this](std::uint64_t step, std::string_view stage, std::uint64_t written, std::uint64_t total) {
      options_.progress({.step = step, .stage = stage, .bytes_written = written, .bytes_total = total});
    };
  }
  return options;
}

Deadline CheckpointManager::Implementation::save_deadline() const {
  const Deadline::Clock::time_point close_at{Deadline::Clock::duration(close_at_.load())};
  return Deadline(std::min(job_deadline_.at(), close_at));
}

void CheckpointManager::Implementation::work(const std::stop_token& stop) {
  for (;;) {
    Queued next;
    {
      std::unique_lock lock(mutex_);
      busy_ = false;
      if (queue_.empty()) idle_.notify_all();
      queued_.wait(lock, stop, [&] { return !queue_.empty(); });
      if (stop.stop_requested()) return;
      next = std::move(queue_.front());
      queue_.pop_front();
      busy_ = true;
    }
    const auto begun = Deadline::Clock::now();
    job_deadline_ = Deadline(options_.save_timeout);
    auto outcome = saver_->save(next.job);
    const auto seconds = std::chrono::duration<double>(Deadline::Clock::now() - begun).count();
    if (outcome) {
      DTR_LOG_INFO("checkpoint: step ", next.job.step, " saved, ", next.job.plan.staging_bytes,
                   " bytes from this rank, ", seconds, " s");
    } else {
      DTR_LOG_WARN("checkpoint: step ", next.job.step, " not saved: ", outcome.error().to_string());
    }
    next.job.staging.give_back();
    next.ticket->decide(std::move(outcome));
    saver_->tidy();  // nobody waits for the deletion of old steps: it takes long on large file systems
  }
}

Result<SaveJob> CheckpointManager::Implementation::stage(std::uint64_t step, std::span<const TensorView> tensors) {
  auto plan = checkpoint::make_plan(tensors, group_.rank(), group_.size());
  if (!plan) return fail(plan.error());
  SaveJob job{.step = step, .plan = std::move(*plan), .staging = {}, .error = {}};
  if (job.plan.staging_bytes == 0) return job;
  auto memory = staging_.acquire(job.plan.staging_bytes, options_.staging_timeout);
  if (!memory) return fail(memory.error());
  job.staging = std::move(*memory);
  for (const auto& tensor : job.plan.tensors) {
    if (tensor.bytes == 0) continue;
    std::memcpy(job.staging.span().data() + tensor.staging, tensors[tensor.source].data.data(), tensor.bytes);
  }
  return job;
}

Ticket CheckpointManager::Implementation::enqueue(SaveJob job) {
  auto ticket = std::make_shared<TicketState>(job.step);
  {
    const std::lock_guard lock(mutex_);
    queue_.push_back({.job = std::move(job), .ticket = ticket});
  }
  queued_.notify_all();
  return Ticket(std::move(ticket));
}

Result<Ticket> CheckpointManager::Implementation::save_async(std::uint64_t step, std::span<const TensorView> tensors) {
  const std::lock_guard in_order(order_);
  auto job = stage(step, tensors);
  if (job) return enqueue(std::move(*job));
  // The other ranks wait for this one: they get its word, with the reason.
  SaveJob refused;
  refused.step = step;
  refused.error = job.error();
  enqueue(std::move(refused));
  return fail(job.error());
}

checkpoint::Judge CheckpointManager::Implementation::verify_my_share(Deadline deadline) const {
  return [this, deadline](const checkpoint::LoadedStep& step) -> checkpoint::Judgement {
    return {.result = checkpoint::verify_share(step.folder, step.manifest, group_.rank(), group_.size(), deadline)};
  };
}

Result<Checkpoint> CheckpointManager::Implementation::load_latest(const checkpoint::Judge& judge, Deadline deadline) {
  const std::lock_guard in_order(load_order_);
  auto loaded = checkpoint::Loader(group_, store_, deadline).newest(++loads_, judge);
  if (!loaded) return fail(loaded.error());
  return Checkpoint(std::make_shared<const checkpoint::LoadedStep>(std::move(*loaded)));
}

Result<Checkpoint> CheckpointManager::Implementation::load(std::uint64_t step, Deadline deadline) {
  const std::lock_guard in_order(load_order_);
  auto loaded = checkpoint::Loader(group_, store_, deadline).exactly(step, ++loads_, verify_my_share(deadline));
  if (!loaded) return fail(loaded.error());
  return Checkpoint(std::make_shared<const checkpoint::LoadedStep>(std::move(*loaded)));
}

CheckpointManager::CheckpointManager(Group& group, CheckpointOptions options)
    : self_(std::make_unique<Implementation>(group, std::move(options))) {}

CheckpointManager::~CheckpointManager() {
  // In a child of fork the threads are not there, and a mutex may be held by one of them: leave it all alone.
  if (!self_->guard("close")) static_cast<void>(self_.release());
}

bool CheckpointManager::due(std::uint64_t step) const noexcept { return self_->due(step); }

Result<Ticket> CheckpointManager::save_async(std::uint64_t step, std::span<const TensorView> tensors) {
  if (auto here = self_->guard("save"); !here) return fail(here.error());
  return self_->save_async(step, tensors);
}

Result<Ticket> CheckpointManager::save_async(std::uint64_t step, std::initializer_list<TensorView> tensors) {
  return save_async(step, std::span(tensors.begin(), tensors.size()));
}

Result<void> CheckpointManager::save(std::uint64_t step, std::span<const TensorView> tensors, Deadline deadline) {
  const auto ticket = save_async(step, tensors);
  if (!ticket) return fail(ticket.error());
  return ticket->wait(deadline);
}

Result<void> CheckpointManager::save(std::uint64_t step, std::initializer_list<TensorView> tensors, Deadline deadline) {
  return save(step, std::span(tensors.begin(), tensors.size()), deadline);
}

Result<Checkpoint> CheckpointManager::load_latest(Deadline deadline) {
  if (auto here = self_->guard("load"); !here) return fail(here.error());
  return self_->load_latest(self_->verify_my_share(deadline), deadline);
}

Result<Checkpoint> CheckpointManager::load_latest(std::span<const TensorTarget> targets, Deadline deadline) {
  if (auto here = self_->guard("load"); !here) return fail(here.error());
  const auto judge = [&](const checkpoint::LoadedStep& step) -> checkpoint::Judgement {
    // What the caller got wrong would be wrong with an older step as well.
    if (auto fits = step.check(targets); !fits) return {.result = fits, .final = true};
    auto sizes = checkpoint::StepReader(step.folder, step.manifest).check_sizes();
    return {.result = sizes ? step.read(targets, deadline) : sizes};
  };
  return self_->load_latest(judge, deadline);
}

Result<Checkpoint> CheckpointManager::load_latest(std::initializer_list<TensorTarget> targets, Deadline deadline) {
  return load_latest(std::span(targets.begin(), targets.size()), deadline);
}

Result<Checkpoint> CheckpointManager::load(std::uint64_t step, Deadline deadline) {
  if (auto here = self_->guard("load"); !here) return fail(here.error());
  return self_->load(step, deadline);
}

Result<std::vector<std::uint64_t>> CheckpointManager::steps() const { return self_->store().complete(); }

Result<std::uint64_t> CheckpointManager::latest() const {
  const auto all = steps();
  if (!all) return fail(all.error());
  if (all->empty()) return fail(Errc::not_found, "no checkpoint in " + self_->store().path(), "latest");
  return all->back();
}

Result<void> CheckpointManager::verify(std::uint64_t step, Deadline deadline) const {
  return checkpoint::verify_step(self_->store().step_path(step), step, deadline);
}

}  // namespace dtr::inline v0
