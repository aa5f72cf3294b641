#include "dtr/pushpull/worker.hpp"

#include "dtr/pushpull/worker_machine.hpp"

namespace dtr::inline v0 {

Worker::Worker(Runtime& runtime, WorkerOptions options) : machine_(std::make_unique<Machine>(runtime, options)) {}

Worker::~Worker() = default;

Result<RoundHandle> Worker::push_pull(std::span<const PushPull> tensors) { return machine_->start(tensors); }

Result<void> Worker::wait(RoundHandle round, Deadline deadline) { return machine_->wait(round, deadline); }

Result<void> Worker::cancel(RoundHandle round) { return machine_->cancel(round); }

Result<void> Worker::quiesce(RoundHandle round, Deadline deadline) { return machine_->quiesce(round, deadline); }

Result<std::vector<RoundTrace>> Worker::trace(RoundHandle round) const { return machine_->trace(round); }

Result<void> Worker::forget(ConstTensor memory) { return machine_->registrar().forget(memory.bytes()); }

}  // namespace dtr::inline v0
