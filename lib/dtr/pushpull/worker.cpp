#include "dtr/pushpull/worker.hpp"

#include <chrono>

#include "dtr/pushpull/detail/worker_core.hpp"

namespace dtr::inline v0 {

Worker::Worker(Runtime& runtime, const WorkerOptions& options)
    : core_(std::make_unique<pushpull::WorkerCore>(runtime, options)) {}

Worker::~Worker() = default;

Result<RoundHandle> Worker::push_pull(std::span<const PushPull> tensors, std::optional<Deadline> deadline) {
  return core_->push_pull(tensors, deadline);
}

Result<RoundHandle> Worker::push_pull(std::span<const PushView> pushes, std::span<const std::uint64_t> push_keys,
                                      std::span<const PullView> pulls, std::span<const std::uint64_t> pull_keys,
                                      std::optional<Deadline> deadline) {
  return core_->push_pull(pushes, push_keys, pulls, pull_keys, deadline);
}

Result<void> Worker::wait(RoundHandle handle, Deadline deadline) { return core_->wait(handle, deadline); }
Result<void> Worker::wait(RoundHandle handle) { return core_->wait(handle, std::chrono::seconds(10)); }
Result<bool> Worker::done(RoundHandle handle) { return core_->done(handle); }
Result<void> Worker::cancel(RoundHandle handle) { return core_->cancel(handle); }
Result<void> Worker::quiesce(RoundHandle handle, Deadline deadline, bool force) {
  return core_->quiesce(handle, deadline, force);
}
Result<std::vector<RoundHandle>> Worker::handles(RoundHandle handle) const { return core_->handles(handle); }
Result<std::vector<RoundTrace>> Worker::trace(RoundHandle handle) const { return core_->trace(handle); }
Result<void> Worker::unbind(std::span<const std::uint64_t> keys) { return core_->unbind(keys); }
Result<void> Worker::forget(std::span<const std::byte> memory) { return core_->forget(memory); }

}  // namespace dtr::inline v0
