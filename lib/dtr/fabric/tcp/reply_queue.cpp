#include "dtr/fabric/tcp/reply_queue.hpp"

#include <new>
#include <utility>

namespace dtr::inline v0 {
namespace fabric::tcp {

ReplyQueue::ReplyQueue(std::size_t greetings, std::uint64_t processed)
    : room_(kReplies + greetings + 1),
      memory_(new std::byte[room_ * sizeof(Reply)]),
      ring_(reinterpret_cast<Reply*>(memory_.get())),
      answered_(processed) {
  static_assert(alignof(Reply) <= __STDCPP_DEFAULT_NEW_ALIGNMENT__);
  leaving_.reserve(Outbox::kMaxPieces);
}

ReplyQueue::~ReplyQueue() {
  while (!empty()) pop();
}

void ReplyQueue::push(const ReplyHeader& header, RegionTable::Use use) noexcept {
  new (ring_ + head_ % room_) Reply{.header = header, .use = std::move(use)};
  ++head_;
}

void ReplyQueue::pop() noexcept {
  std::destroy_at(ring_ + tail_ % room_);
  if (++tail_ == head_) tail_ = head_ = 0;
}

void ReplyQueue::acknowledge(std::uint64_t processed) noexcept {
  if (processed == answered_) return;
  answered_ = processed;
  if (!empty()) {
    Reply& newest = ring_[(head_ - 1) % room_];
    if (newest.header.type == ReplyType::ack) {
      newest.header.sequence = processed - 1;
      return;
    }
  }
  push({.type = ReplyType::ack, .sequence = processed - 1}, {});
}

void ReplyQueue::refuse(std::uint64_t sequence, Errc code) noexcept {
  answered_ = sequence + 1;
  push({.type = ReplyType::refused, .code = static_cast<std::int16_t>(code), .sequence = sequence}, {});
}

void ReplyQueue::result(std::uint64_t sequence, std::uint64_t old_value) noexcept {
  answered_ = sequence + 1;
  push({.type = ReplyType::result, .sequence = sequence, .value = old_value}, {});
}

void ReplyQueue::data(std::uint64_t sequence, std::uint64_t length, RegionTable::Use use) noexcept {
  answered_ = sequence + 1;
  push({.type = ReplyType::data, .sequence = sequence, .value = length}, std::move(use));
}

bool ReplyQueue::fill(Outbox& outbox) noexcept {
  if (empty()) return false;
  while (!empty() && outbox.has_room()) {
    Reply& reply = ring_[tail_ % room_];
    outbox.copy(&reply.header, sizeof reply.header);
    if (const std::uint64_t bytes = payload_bytes(reply.header); bytes > Outbox::kInlineBytes) {
      outbox.refer(reply.use.data(), bytes);
      leaving_.push_back(std::move(reply.use));
    } else if (bytes > 0) {
      outbox.copy(reply.use.data(), bytes);
    }
    pop();
  }
  return true;
}

}  // namespace fabric::tcp
}  // namespace dtr::inline v0
