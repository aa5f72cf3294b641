#include "dtr/messaging/messenger.hpp"

#include "dtr/messaging/detail/core.hpp"

namespace dtr::inline v0 {

Messenger::Messenger(Runtime& runtime, MessengerOptions options)
    : core_(std::make_unique<Core>(runtime, std::move(options))) {}

Messenger::~Messenger() = default;

Result<MessageHandle> Messenger::send(int rank, std::uint64_t tag, std::span<const std::byte> data, Deadline deadline) {
  return core_->send(rank, tag, data, deadline);
}

Result<MessageHandle> Messenger::send(int rank, std::uint64_t tag, std::span<const std::byte> data) {
  return core_->send(rank, tag, data, core_->default_deadline());
}

Result<MessageHandle> Messenger::recv(int rank, std::uint64_t tag, std::span<std::byte> buffer, Deadline deadline,
                                      std::uint64_t mask) {
  return core_->recv(rank, tag, mask, buffer, deadline);
}

Result<MessageHandle> Messenger::recv(int rank, std::uint64_t tag, std::span<std::byte> buffer) {
  return core_->recv(rank, tag, kWholeTag, buffer, core_->default_deadline());
}

bool Messenger::done(MessageHandle handle) const noexcept { return core_->done(handle); }

Result<Message> Messenger::wait(MessageHandle handle) { return core_->wait(handle); }

bool Messenger::cancel(MessageHandle handle) noexcept { return core_->cancel(handle); }

const Thresholds& Messenger::thresholds() const noexcept { return core_->thresholds(); }

}  // namespace dtr::inline v0
