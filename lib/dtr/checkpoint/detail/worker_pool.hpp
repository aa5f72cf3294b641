// A few threads that share out the pieces of one job.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <functional>
#include <mutex>
#include <optional>
#include <vector>

#include "dtr/base/error.hpp"
#include "dtr/base/thread.hpp"

namespace dtr::inline v0 {
namespace checkpoint {

class WorkerPool {
 public:
  using Task = std::function<Result<void>(std::size_t)>;

  /// Throws Exception if the threads cannot be started.
  explicit WorkerPool(int threads);
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  /// task(0) ... task(count - 1), each once, on the threads; returns when none runs any more. After the first Error
  /// no further task begins, and that Error is the result. One caller at a time.
  [[nodiscard]] Result<void> run(std::size_t count, const Task& task);

 private:
  void work(const std::stop_token& stop);

  std::mutex mutex_;
  std::condition_variable_any wake_;
  std::condition_variable idle_;
  const Task* task_ = nullptr;
  std::size_t next_ = 0;
  std::size_t count_ = 0;
  int running_ = 0;
  std::optional<Error> error_;
  std::vector<Thread> threads_;  ///< last: they use all of the above
};

}  // namespace checkpoint
}  // namespace dtr::inline v0
