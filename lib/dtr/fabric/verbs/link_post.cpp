// The caller's side: requests are checked and queued; what finds room goes out with one doorbell a rail.
#include <algorithm>
#include <cstring>

#include "dtr/fabric/checks.hpp"
#include "dtr/fabric/verbs/link.hpp"

namespace dtr::inline v0 {
namespace fabric::verbs {

Errc Link::check(const WorkRequest& request) const noexcept {
  if (const Errc code = check_request(request, max_message_, true); code != Errc::ok) return code;
  if (request.is_atomic() && request.local->key().left_of_piece(request.local_offset) < request.bytes()) {
    return Errc::invalid_argument;  // the old value would lie in two pieces, which no device writes
  }
  std::uint32_t lkey = 0;
  const bool memory = request.moves_memory() && request.bytes() > 0;
  return memory && !hub_.registrations.local_key(*request.local, 0, request.local_offset, lkey) ? Errc::not_registered
                                                                                                : Errc::ok;
}

PostResult Link::post(std::span<const WorkRequest> requests, Deadline deadline) noexcept {
  PostResult result;
  const std::int64_t deadline_ns = to_ns(deadline.at());
  {
    const std::lock_guard lock(lock_);
    if (end_code_ != Errc::ok || closing_) {
      result.status.code = end_code_ != Errc::ok ? end_code_ : Errc::closed;
      return result;
    }
    if (state_.load(std::memory_order_relaxed) != ChannelState::open) {
      result.status.code = Errc::again;
      return result;
    }
    bool direct = open_rails_ > 0 && nothing_waits();
    for (const WorkRequest& request : requests) {
      if (direct && launch(request, deadline_ns)) {
        hub_.context.traffic->count(request);
        ++result.accepted;
        continue;
      }
      result.status.code = check(request);
      if (result.status.ok() && result.finished == result.accepted && is_done_already(request)) {
        hub_.context.traffic->count(request);
        ++result.accepted;
        ++result.finished;
        continue;
      }
      if (result.status.ok() && operations_->full()) result.status.code = Errc::again;
      if (!result.status.ok()) {
        if (result.status.code != Errc::again) hub_.context.traffic->count_failure(result.status.code);
        result.status = refusals_.remember(request, result.status, hub_.options.eager_bytes);
        break;
      }
      const std::uint64_t position = operations_->head();
      Operation& operation = operations_->push(request, deadline_ns);
      if (request.opcode == Opcode::send && !keep_message(operation)) {
        operation.told = true;  // the place is given back at once
        operations_->drop_settled();
        result.status.code = Errc::again;
        break;
      }
      if (request.moves_memory() && request.local != nullptr) {
        request.local->begin_use();
        operation.holds = true;
      }
      if (operation.is_held()) {
        queue(held_, position);
        direct = false;
      } else if (direct) {
        direct = go(position);
      }
      hub_.context.traffic->count(request);
      ++result.accepted;
    }
    if (result.accepted == result.finished) return result;
    earliest_ = std::min(earliest_, deadline_ns);
    if (direct) {
      ring();
    } else {
      Endings none = Endings::none();  // the caller may hold locks that a continuation wants: progress tells
      pump(none);
    }
  }
  hub_.call_at(deadline_ns);
  return result;
}

/// Straight to a rail, for nothing waits before it. False: it waits now, or some of it.
bool Link::go(std::uint64_t position) noexcept {
  Endings none = Endings::none();
  if (advance(position, none) != Step::done) return false;
  data_cursor_ = message_cursor_ = position + 1;
  return true;
}

bool Link::is_done_already(const WorkRequest& request) noexcept {
  const bool fenced = (request.flags & WorkRequest::kFence) != 0;
  if ((request.opcode == Opcode::flush || fenced) && operations_->first_untold() != operations_->head()) return false;
  if (request.opcode == Opcode::flush) {
    return std::none_of(rails_.begin(), rails_.end(), [](const auto& rail) { return rail->used; });
  }
  return (request.opcode == Opcode::put || request.opcode == Opcode::get) && request.length == 0;
}

bool Link::keep_message(Operation& operation) noexcept {
  operation.buffer = take_buffer();
  if (operation.buffer == MessagePool::kNone) return false;
  std::byte* at = hub_.pool.data(operation.buffer);
  const MessageHeader header{.type = MessageType::message, .port = operation.request.port};
  std::memcpy(at, &header, sizeof header);
  if (operation.request.length > 0) {
    std::memcpy(at + sizeof header, operation.request.payload, operation.request.length);
  }
  return true;
}

std::uint32_t Link::take_buffer() noexcept {
  const std::uint32_t buffer = hub_.pool.take();
  // Else whoever gives one back calls: looking again before that is in vain.
  if (buffer == MessagePool::kNone && hub_.pool.may_grow()) hub_.call_at(0);
  return buffer;
}

bool Link::is_over(std::uint64_t position) noexcept {
  return position < operations_->tail() || operations_->at(position).told;
}

void Link::queue(FixedQueue<std::uint64_t>& to, std::uint64_t position) noexcept {
  // Of requests that have ended early the positions stay behind. Half of the room is enough for all that are open.
  if (to.full()) to.keep_if([&](std::uint64_t each) { return !is_over(each); });
  to.push(position);
}

}  // namespace fabric::verbs
}  // namespace dtr::inline v0
