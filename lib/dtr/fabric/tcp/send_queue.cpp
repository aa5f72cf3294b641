#include "dtr/fabric/tcp/send_queue.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <new>
#include <type_traits>

#include "dtr/fabric/transport.hpp"

namespace dtr::inline v0 {
namespace fabric::tcp {

SendQueue::SendQueue(std::uint32_t depth, std::size_t message_bytes)
    : memory_(new std::byte[depth * sizeof(Slot)]),
      slots_(reinterpret_cast<Slot*>(memory_.get())),
      mask_(depth - 1),
      depth_(depth - 1),
      message_bytes_(message_bytes) {
  static_assert(std::is_trivially_copyable_v<Slot> && alignof(Slot) <= __STDCPP_DEFAULT_NEW_ALIGNMENT__);
}

SendQueue::Slot& SendQueue::append(const WorkRequest& request, std::int64_t deadline_ns, std::uint8_t flags) noexcept {
  if (tail_ == head_) first_ = head_;
  return *new (&at(head_)) Slot{.request = request, .deadline_ns = deadline_ns, .flags = flags};
}

bool SendQueue::push(const WorkRequest& request, std::int64_t deadline_ns) noexcept {
  if (head_ - tail_ >= depth_) return false;
  Slot& slot = append(request, deadline_ns, kOpen);
  if (request.opcode == Opcode::send) {
    if (!copy_message(slot)) return false;
  } else if (request.moves_memory() && request.local != nullptr) {
    request.local->begin_use();
    slot.flags |= kHolds;
  }
  earliest_ = std::min(earliest_, deadline_ns);
  ++head_;
  return true;
}

void SendQueue::push_goodbye() noexcept {
  append(WorkRequest::flush(nullptr), kNever, kOpen | kGoodbye);
  ++head_;
}

bool SendQueue::copy_message(Slot& slot) noexcept {
  const std::uint64_t bytes = slot.request.length;
  if (messages_ == nullptr) messages_.reset(new (std::nothrow) std::byte[message_bytes_]);
  if (messages_ == nullptr) return false;
  std::uint64_t start = messages_head_;
  const std::uint64_t to_end = message_bytes_ - start % message_bytes_;
  if (to_end < bytes) start += to_end;
  const std::uint64_t end = start + ((bytes + 7) & ~std::uint64_t{7});
  if (end - messages_tail_ > message_bytes_) return false;
  std::byte* copy = messages_.get() + start % message_bytes_;
  if (bytes > 0) std::memcpy(copy, slot.request.payload, bytes);
  slot.request.payload = copy;
  slot.request.local_offset = end;  // a message has no local offset; here it says what its end frees
  messages_head_ = end;
  ++messages_open_;
  return true;
}

void SendQueue::free_message(const Slot& slot) noexcept {
  messages_tail_ = slot.request.local_offset;
  if (--messages_open_ == 0) messages_tail_ = messages_head_ = 0;
}

void SendQueue::release(Slot& slot) noexcept {
  if ((slot.flags & kHolds) == 0) return;
  slot.flags &= static_cast<std::uint8_t>(~kHolds);
  slot.request.local->end_use();
}

RequestHeader SendQueue::header_of(const Slot& slot) const noexcept {
  RequestHeader header;
  const WorkRequest& request = slot.request;
  if ((slot.flags & kGoodbye) != 0) {
    header.type = RequestType::goodbye;
    return header;
  }
  if ((slot.flags & kOpen) == 0 || request.opcode == Opcode::flush) return header;  // `nothing`
  header.port = request.port;
  header.value = request.value;
  header.length = request.length;
  header.operand = request.operand;
  switch (request.opcode) {
    case Opcode::put:
      header.type = RequestType::put;
      break;
    case Opcode::put_notify:
      header.type = request.length == 0 ? RequestType::notify : RequestType::put_notify;
      break;
    case Opcode::get:
      header.type = RequestType::get;
      break;
    case Opcode::send:
      header.type = RequestType::send;
      return header;
    case Opcode::fetch_add:
      header.type = RequestType::fetch_add;
      header.length = 8;
      break;
    case Opcode::compare_swap:
      header.type = RequestType::compare_swap;
      break;
    case Opcode::flush:
      return header;
  }
  if (header.type == RequestType::notify) return header;
  const RemoteKey& key = request.remote->key;
  header.slot = key.slot;
  header.generation = key.generation;
  header.secret = key.secret;
  header.offset = request.remote_offset;
  return header;
}

bool SendQueue::fill(Outbox& outbox) noexcept {
  const std::uint64_t before = next_;
  while (next_ != head_ && outbox.has_room()) {
    Slot& slot = at(next_);
    const bool open = (slot.flags & kOpen) != 0;
    // The target works requests off in order, which is all that a fence needs between puts, messages and atomics.
    // An answer that moves data is not over when the target turns to the next request: its bytes may still be read
    // there, and its result is not here yet.
    if (open && (slot.request.flags & WorkRequest::kFence) != 0 && returning_ > 0) break;
    const RequestHeader header = header_of(slot);
    outbox.copy(&header, sizeof header);
    if (const std::uint64_t bytes = payload_bytes(header); bytes > 0) {
      const std::byte* data = slot.request.opcode == Opcode::send
                                  ? slot.request.payload
                                  : slot.request.local->data() + slot.request.local_offset;
      if (bytes <= Outbox::kInlineBytes) {
        outbox.copy(data, bytes);
      } else {
        outbox.refer(data, bytes);
      }
    }
    if (header.type == RequestType::get || is_atomic(header.type)) {
      slot.flags |= kReturns;
      ++returning_;
    }
    ++next_;
  }
  return next_ != before;
}

void SendQueue::flushed() noexcept {
  for (std::uint64_t position = sent_; lingering_ > 0 && position != next_; ++position) {
    Slot& slot = at(position);
    if ((slot.flags & kLingering) == 0 || position == receiving_) continue;
    slot.flags &= static_cast<std::uint8_t>(~kLingering);
    --lingering_;
    release(slot);
  }
  sent_ = next_;
}

bool SendQueue::in_use(std::uint64_t position) const noexcept {
  const Slot& slot = at(position);
  if (position == receiving_) return writing_;
  if (slot.request.opcode != Opcode::put && slot.request.opcode != Opcode::put_notify) return false;
  return position >= sent_ && position < next_ && slot.request.length > Outbox::kInlineBytes;
}

Status SendQueue::end_early(std::uint64_t position, Errc code) noexcept {
  Slot& slot = at(position);
  const Opcode opcode = slot.request.opcode;
  Status status{.code = code};
  status.quiesced = !in_use(position);
  status.fenced = position >= next_ || opcode == Opcode::get || opcode == Opcode::flush;
  slot.flags &= static_cast<std::uint8_t>(~kOpen);
  if ((slot.flags & kGoodbye) == 0) count_failure(code);
  if (status.quiesced) {
    release(slot);
  } else {
    slot.flags |= kLingering;
    ++lingering_;
  }
  return status;
}

void SendQueue::finish_oldest(Status status, Endings& endings) noexcept {
  Slot& slot = at(tail_);
  if ((slot.flags & kOpen) != 0) {
    if (!status.ok()) count_failure(status.code);
    endings.add(slot.request.completion, status);
    if ((slot.flags & kGoodbye) != 0) goodbye_answered_ = true;
  }
  if ((slot.flags & kLingering) != 0) --lingering_;
  if ((slot.flags & kReturns) != 0) --returning_;
  release(slot);
  if (slot.request.opcode == Opcode::send) free_message(slot);
  slot.flags = 0;
  if (tail_ == receiving_) receiving_ = kNobody;
  ++tail_;
  if (sent_ < tail_) sent_ = tail_;
  if (tail_ == head_) earliest_ = kNever;
}

bool SendQueue::locate(std::uint64_t sequence, std::uint64_t& position) const noexcept {
  position = sequence - sequence_offset_;
  return position - tail_ < next_ - tail_;
}

SendQueue::Answer SendQueue::settle_before(std::uint64_t position, Endings& endings) noexcept {
  while (tail_ != position) {
    const Slot& slot = at(tail_);
    if ((slot.flags & kReturns) != 0) return Answer::nonsense;  // these are answered by name
    if (!endings.has_room()) return Answer::full;
    finish_oldest(Status{}, endings);
  }
  return endings.has_room() ? Answer::done : Answer::full;
}

SendQueue::Answer SendQueue::acknowledge(std::uint64_t sequence, Endings& endings) noexcept {
  std::uint64_t position = 0;
  if (sequence - sequence_offset_ == tail_ - 1) return Answer::done;  // told again after a pause
  if (!locate(sequence, position)) return Answer::nonsense;
  return settle_before(position + 1, endings);
}

SendQueue::Answer SendQueue::refuse(std::uint64_t sequence, Errc code, Endings& endings) noexcept {
  std::uint64_t position = 0;
  if (!locate(sequence, position)) return Answer::nonsense;
  if (const Answer before = settle_before(position, endings); before != Answer::done) return before;
  finish_oldest(refused(at(position), code), endings);
  return Answer::done;
}

SendQueue::Answer SendQueue::result(std::uint64_t sequence, std::uint64_t old_value, Endings& endings) noexcept {
  std::uint64_t position = 0;
  if (!locate(sequence, position)) return Answer::nonsense;
  if (const Answer before = settle_before(position, endings); before != Answer::done) return before;
  const Slot& slot = at(position);
  if ((slot.flags & kReturns) == 0 || !slot.request.is_atomic()) return Answer::nonsense;
  if ((slot.flags & kOpen) != 0) {
    std::memcpy(slot.request.local->data() + slot.request.local_offset, &old_value, sizeof old_value);
  }
  finish_oldest(Status{}, endings);
  return Answer::done;
}

SendQueue::Answer SendQueue::begin_data(std::uint64_t sequence, std::uint64_t length, Endings& endings) noexcept {
  std::uint64_t position = 0;
  if (!locate(sequence, position)) return Answer::nonsense;
  if (const Answer before = settle_before(position, endings); before != Answer::done) return before;
  const Slot& slot = at(position);
  if ((slot.flags & kReturns) == 0 || slot.request.opcode != Opcode::get || slot.request.length != length) {
    return Answer::nonsense;
  }
  receiving_ = position;
  return Answer::done;
}

std::byte* SendQueue::data_target() const noexcept {
  if (receiving_ == kNobody) return nullptr;
  const Slot& slot = at(receiving_);
  return (slot.flags & kOpen) != 0 ? slot.request.local->data() + slot.request.local_offset : nullptr;
}

void SendQueue::set_writing(bool writing) noexcept {
  writing_ = writing;
  if (writing || receiving_ == kNobody) return;
  Slot& slot = at(receiving_);
  if ((slot.flags & kLingering) == 0) return;
  slot.flags &= static_cast<std::uint8_t>(~kLingering);
  --lingering_;
  release(slot);
}

void SendQueue::finish_data(Endings& endings) noexcept {
  if (receiving_ == tail_) finish_oldest(Status{}, endings);
}

bool SendQueue::expire(std::int64_t now_ns, Endings& endings) noexcept {
  if (now_ns < earliest_) return true;
  std::int64_t earliest = kNever;
  for (std::uint64_t position = tail_; position != head_; ++position) {
    const Slot& slot = at(position);
    if ((slot.flags & kOpen) == 0) continue;
    if (slot.deadline_ns > now_ns) {
      earliest = std::min(earliest, slot.deadline_ns);
      continue;
    }
    if (!endings.has_room()) return false;
    Completion* const completion = slot.request.completion;
    endings.add(completion, end_early(position, Errc::timed_out));
  }
  earliest_ = earliest;
  return true;
}

std::uint32_t SendQueue::cancel(const Completion& completion, Endings& endings) noexcept {
  Completion* told = nullptr;
  std::array<std::uint32_t, 4> ended{};
  for (std::uint64_t position = tail_; position != head_; ++position) {
    const Slot& slot = at(position);
    if ((slot.flags & kOpen) == 0 || slot.request.completion != &completion) continue;
    told = slot.request.completion;
    const Status status = end_early(position, Errc::cancelled);
    ++ended[(status.quiesced ? 1U : 0U) | (status.fenced ? 2U : 0U)];
  }
  std::uint32_t all = 0;
  for (unsigned kind = 0; kind < ended.size(); ++kind) {
    const Status status{.code = Errc::cancelled, .quiesced = (kind & 1U) != 0, .fenced = (kind & 2U) != 0};
    endings.add(told, status, ended[kind]);
    all += ended[kind];
  }
  return all;
}

void SendQueue::disconnected() noexcept {
  writing_ = false;
  receiving_ = kNobody;
  sent_ = next_;
  for (std::uint64_t position = tail_; lingering_ > 0 && position != next_; ++position) {
    Slot& slot = at(position);
    if ((slot.flags & kLingering) == 0) continue;
    slot.flags &= static_cast<std::uint8_t>(~kLingering);
    --lingering_;
    release(slot);
  }
}

bool SendQueue::end_atomics(Endings& endings) noexcept {
  for (std::uint64_t position = tail_; position != head_; ++position) {
    const Slot& slot = at(position);
    if ((slot.flags & kOpen) == 0 || !slot.request.is_atomic()) continue;
    if (!endings.has_room()) return false;
    Completion* const completion = slot.request.completion;
    endings.add(completion, end_early(position, Errc::cancelled));
  }
  return true;
}

void SendQueue::note_refusal(std::uint64_t sequence, Errc code) noexcept {
  std::uint64_t position = 0;
  if (resumed_ && locate(sequence, position)) at(position).refusal = code;
}

SendQueue::Answer SendQueue::resume(std::uint64_t processed, Endings& endings) noexcept {
  if (!resumed_) {
    sequence_offset_ = processed - tail_;
    resumed_ = true;
    return Answer::done;
  }
  const std::uint64_t reached = processed - sequence_offset_;
  if (reached - tail_ > next_ - tail_) return Answer::nonsense;
  for (std::uint64_t position = tail_; position != reached; ++position) {
    Slot& slot = at(position);
    if ((slot.flags & kOpen) == 0) continue;
    // The answer to a get is lost with its connection; asking again does no harm.
    if (slot.request.opcode == Opcode::get && slot.refusal == Errc::ok) continue;
    if (!endings.has_room()) return Answer::full;
    if (slot.refusal != Errc::ok) count_failure(slot.refusal);
    endings.add(slot.request.completion, refused(slot, slot.refusal));
    if ((slot.flags & kGoodbye) != 0) goodbye_answered_ = true;
    slot.flags &= static_cast<std::uint8_t>(~kOpen);
    release(slot);
  }
  drop_ended();
  sequence_offset_ = processed - tail_;
  return Answer::done;
}

void SendQueue::drop_ended() noexcept {
  std::uint64_t kept = head_;
  for (std::uint64_t position = head_; position != tail_;) {
    Slot& slot = at(--position);
    if ((slot.flags & kOpen) == 0) {
      // The room of its message comes back with the next one that is older or, at the latest, with the last.
      if (slot.request.opcode == Opcode::send && --messages_open_ == 0) messages_tail_ = messages_head_ = 0;
      continue;
    }
    slot.flags &= static_cast<std::uint8_t>(~kReturns);
    if (--kept != position) at(kept) = slot;
  }
  tail_ = sent_ = next_ = kept;
  returning_ = 0;
}

bool SendQueue::fail_all(Errc code, bool target_gone, Endings& endings) noexcept {
  for (std::uint64_t position = tail_; position != head_; ++position) {
    const Slot& slot = at(position);
    if ((slot.flags & kOpen) == 0) continue;
    if (!endings.has_room()) return false;
    Completion* const completion = slot.request.completion;
    Status status = end_early(position, code);
    status.fenced = status.fenced || target_gone;
    endings.add(completion, status);
  }
  drop_ended();
  earliest_ = kNever;
  return true;
}

}  // namespace fabric::tcp
}  // namespace dtr::inline v0
