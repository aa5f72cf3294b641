#include "dtr/checkpoint/detail/worker_pool.hpp"

#include <algorithm>
#include <exception>
#include <string>

namespace dtr::inline v0 {
namespace checkpoint {

WorkerPool::WorkerPool(int threads) {
  for (int i = 0; i < std::max(threads, 1); ++i) {
    threads_.emplace_back([this](const std::stop_token& stop) { work(stop); },
                          ThreadOptions{.name = "dtr-ckpt-w" + std::to_string(i)});
  }
}

WorkerPool::~WorkerPool() {
  for (auto& thread : threads_) thread.request_stop();
}

Result<void> WorkerPool::run(std::size_t count, const Task& task) {
  std::unique_lock lock(mutex_);
  task_ = &task;
  next_ = 0;
  count_ = count;
  error_.reset();
  wake_.notify_all();
  idle_.wait(lock, [&] { return next_ == count_ && running_ == 0; });
  task_ = nullptr;
  if (error_) return fail(*error_);
  return {};
}

void WorkerPool::work(const std::stop_token& stop) {
  std::unique_lock lock(mutex_);
  while (wake_.wait(lock, stop, [&] { return next_ < count_; })) {
    const std::size_t index = next_++;
    const Task& task = *task_;
    ++running_;
    lock.unlock();
    Result<void> done;
    try {
      done = task(index);
    } catch (const std::exception& error) {
      done = fail(Errc::internal, error.what(), "save");
    }
    lock.lock();
    --running_;
    if (!done) {
      if (!error_) error_ = done.error();
      next_ = count_;
    }
    if (next_ == count_ && running_ == 0) idle_.notify_all();
  }
}

}  // namespace checkpoint
}  // namespace dtr::inline v0
