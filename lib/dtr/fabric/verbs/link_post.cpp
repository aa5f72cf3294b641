// From requests to work requests. Two lanes, so that a peer that does not consume messages holds up nothing else.
#include <algorithm>
#include <cstring>

#include "dtr/fabric/checks.hpp"
#include "dtr/fabric/verbs/link.hpp"

namespace dtr::inline v0 {
namespace fabric::verbs {

namespace {

constexpr std::uint32_t kMaxSlice = 4U << 20;  ///< of a rail that is alone

/// Starts only when all earlier ones have finished.
bool is_held(const Operation& operation) noexcept {
  return (operation.request.flags & WorkRequest::kFence) != 0 || operation.request.opcode == Opcode::flush;
}

std::uint64_t address_of(const WorkRequest& request, std::uint64_t offset) noexcept {
  return reinterpret_cast<std::uintptr_t>(request.local->data()) + request.local_offset + offset;
}

}  // namespace

Errc Link::check(const WorkRequest& request) const noexcept {
  if (request.is_atomic() && request.remote != nullptr && request.remote->key.atomic_home == AtomicHome::device) {
    WorkRequest plain = request;  // the rules of an 8-byte put that needs the right to atomics
    if (request.local == nullptr) return Errc::not_registered;
    if (!request.local->contains(request.local_offset, 8)) return Errc::out_of_range;
    const RemoteKey& key = request.remote->key;
    if (plain.remote_offset > key.length || key.length - plain.remote_offset < 8) return Errc::out_of_range;
    if (!allows(key.access, Access::atomic)) return Errc::permission_denied;
    if ((key.address + plain.remote_offset) % 8 != 0) return Errc::invalid_argument;
  } else if (const Errc code = check_request(request, hub_.options.eager_bytes); code != Errc::ok) {
    return code;
  }
  if (request.moves_memory() && request.local != nullptr && request.bytes() > 0) {
    std::uint32_t lkey = 0;
    if (!hub_.registrations.local_key(*request.local, 0, lkey)) return Errc::not_registered;
  }
  return Errc::ok;
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
    for (const WorkRequest& request : requests) {
      result.status.code = check(request);
      if (result.status.ok() && result.finished == result.accepted && is_done_already(request)) {
        ++result.accepted;
        ++result.finished;
        continue;
      }
      if (result.status.ok() && operations_->full()) result.status.code = Errc::again;
      if (!result.status.ok()) break;
      const std::uint64_t position = operations_->head();
      Operation& operation = operations_->push(request, deadline_ns);
      if (request.opcode == Opcode::send && !keep_message(operation)) {
        operation.told = true;  // the place is given back at once
        operation.posted = true;
        operations_->drop_settled();
        result.status.code = Errc::again;
        break;
      }
      if (request.moves_memory() && request.local != nullptr) {
        request.local->begin_use();
        operation.holds = true;
      }
      if (is_held(operation)) held_.push(position);
      ++result.accepted;
    }
    if (result.accepted == result.finished) return result;
    earliest_ = std::min(earliest_, deadline_ns);
    Endings none = Endings::none();  // the caller may hold locks that a continuation wants: progress tells
    pump(none);
  }
  hub_.call_at(deadline_ns);
  return result;
}

bool Link::is_done_already(const WorkRequest& request) noexcept {
  const bool fenced = (request.flags & WorkRequest::kFence) != 0;
  if (request.opcode == Opcode::flush || fenced) {
    if (operations_->first_untold() != operations_->head()) return false;
    if (request.opcode == Opcode::flush) {
      return std::none_of(rails_.begin(), rails_.end(), [](const auto& rail) { return rail->usable() && rail->used; });
    }
  }
  return (request.opcode == Opcode::put || request.opcode == Opcode::get) && request.length == 0;
}

bool Link::keep_message(Operation& operation) noexcept {
  operation.buffer = hub_.pool.take();
  if (operation.buffer == MessagePool::kNone) {
    hub_.call_at(0);  // progress makes more
    return false;
  }
  std::byte* at = hub_.pool.data(operation.buffer);
  const MessageHeader header{.type = MessageType::message, .port = operation.request.port};
  std::memcpy(at, &header, sizeof header);
  if (operation.request.length > 0)
    std::memcpy(at + sizeof header, operation.request.payload, operation.request.length);
  return true;
}

// --- lanes ---

void Link::pump(Endings& endings) noexcept {
  if (open_rails_ == 0) return;
  const Step step = run_lanes(endings);
  ring();
  if (operations_ != nullptr) operations_->drop_settled();
  if (step == Step::full) look_again(0);
}

void Link::ring() noexcept {
  for (const auto& rail : rails_) {
    if (!rail->usable() || !rail->ring.staged()) continue;
    const int error = rail->ring.ring(nic_of(*rail).api(), rail->queue_pair.get());
    if (error == 0) continue;
    // What the device did not take was never under way: it goes again at once, and the queue pair is renewed.
    for (std::uint64_t at = rail->ring.withdrawn(); at != rail->ring.head(); ++at) send_again(rail->ring.at(at));
    rail->ring.withdraw();
    rail->refused = error;
    look_again(0);
  }
}

Link::Step Link::run_lanes(Endings& endings) noexcept {
  while (!results_.empty() && fly_result(results_.front())) results_.pop();
  return_credits();
  while (!again_data_.empty() && fly_again(again_data_.front())) again_data_.pop();
  while (!again_messages_.empty() && fly_again(again_messages_.front())) again_messages_.pop();
  if (operations_ == nullptr) return Step::done;

  // Requests that were told early (cancelled, timed out) may stand in a queue, and their places serve others by now.
  const auto over = [&](std::uint64_t position) {
    return position < operations_->tail() || operations_->at(position).told;
  };
  while (again_messages_.empty() && !late_.empty()) {
    const std::uint64_t position = late_.front();
    if (!over(position)) {
      Operation& operation = operations_->at(position);
      if (advance_notify(operation, static_cast<std::uint32_t>(position)) != Step::done) break;
      operation.notify_late = false;
    }
    late_.pop();
  }
  Step held = Step::done;
  while (!held_.empty() && held == Step::done) {
    const std::uint64_t position = held_.front();
    if (!over(position)) {
      if (position != operations_->first_untold()) break;
      held = advance(position, endings);
      if (held != Step::done) break;
    }
    held_.pop();
  }
  const auto run = [&](std::uint64_t& cursor, bool credits) {
    cursor = std::max(cursor, operations_->tail());
    for (; cursor != operations_->head(); ++cursor) {
      const Operation& operation = operations_->at(cursor);
      if (operation.told || operation.posted || is_held(operation) || rides_credits(operation) != credits) continue;
      if (const Step step = advance(cursor, endings); step != Step::done) return step;
    }
    return Step::done;
  };
  const Step data = again_data_.empty() ? run(data_cursor_, false) : Step::blocked;
  const Step messages = again_messages_.empty() ? run(message_cursor_, true) : Step::blocked;
  const bool full = held == Step::full || data == Step::full || messages == Step::full;
  return full ? Step::full : Step::done;
}

void Link::send_again(const Flight& flight) noexcept {
  switch (flight.kind) {
    case Flight::Kind::slice:
    case Flight::Kind::flush:
    case Flight::Kind::atomic:
      return again_data_.push(flight);
    case Flight::Kind::credit:
      return hub_.pool.give(flight.subject);  // the next queue pair starts with all credits
    case Flight::Kind::nothing:
      return;
    default:
      again_messages_.push(flight);
  }
}

bool Link::rides_credits(const Operation& operation) const noexcept {
  const WorkRequest& request = operation.request;
  if (request.is_atomic()) return request.remote->key.atomic_home == AtomicHome::cpu;
  if (request.opcode == Opcode::put_notify) return request.length <= hub_.options.slice_bytes;
  return request.opcode == Opcode::send;
}

Link::Step Link::advance(std::uint64_t position, Endings& endings) noexcept {
  Operation& operation = operations_->at(position);
  if (operation.told || operation.posted) return Step::done;
  const auto number = static_cast<std::uint32_t>(position);
  Step step = Step::done;
  switch (operation.request.opcode) {
    case Opcode::put:
    case Opcode::get:
      if (operation.request.length == 0) {
        if (!endings.has_room()) return Step::full;
        operation.posted = true;
        tell(operation, {}, endings);
        return Step::done;
      }
      step = advance_data(operation, number);
      break;
    case Opcode::put_notify:
      if (rides_credits(operation)) {
        step = advance_notify(operation, number);
      } else {
        operation.notify_late = true;
        step = advance_data(operation, number);
      }
      break;
    case Opcode::send:
      step = advance_message(operation, number);
      break;
    case Opcode::fetch_add:
    case Opcode::compare_swap:
      step = advance_atomic(operation, number);
      break;
    case Opcode::flush:
      return advance_flush(operation, number, endings);
  }
  if (step == Step::done) operation.posted = true;
  return step;
}

// --- rails ---

Rail* Link::data_rail() noexcept {
  Rail* best = nullptr;
  for (const auto& rail : rails_) {
    if (!rail->usable() || !rail->ring.has_room()) continue;
    if (best == nullptr || rail->bytes_under_way < best->bytes_under_way) best = rail.get();
  }
  return best;
}

Rail* Link::message_rail(bool spends) noexcept {
  // The first one, and none while a lost rail has messages that may have to go again: so they keep their order.
  for (const auto& rail : rails_) {
    if ((rail->state == Rail::State::draining || rail->state == Rail::State::drained) && !rail->ring.empty()) {
      return nullptr;
    }
  }
  for (const auto& rail : rails_) {
    if (!rail->usable()) continue;
    return rail->ring.has_room() && (!spends || rail->credits() > 0) ? rail.get() : nullptr;
  }
  return nullptr;
}

// --- operations ---

Link::Step Link::advance_data(Operation& operation, std::uint32_t number) noexcept {
  const std::uint64_t bytes = operation.request.length;
  while (operation.started < bytes) {
    Rail* rail = data_rail();
    if (rail == nullptr) return Step::blocked;
    const std::uint64_t slice = open_rails_ > 1 ? hub_.options.slice_bytes : kMaxSlice;
    const std::uint64_t most = std::min<std::uint64_t>(slice, nic_of(*rail).max_message());
    const Flight flight{.subject = number,
                        .kind = Flight::Kind::slice,
                        .bytes = static_cast<std::uint32_t>(std::min(bytes - operation.started, most)),
                        .offset = operation.started};
    if (!fly(*rail, flight)) return Step::blocked;
    operation.started += flight.bytes;
  }
  return Step::done;
}

Link::Step Link::advance_notify(Operation& operation, std::uint32_t number) noexcept {
  Rail* rail = message_rail(true);
  if (rail == nullptr) return Step::blocked;
  Flight flight{.subject = number, .kind = Flight::Kind::notify};
  if (!operation.notify_late) flight.bytes = static_cast<std::uint32_t>(operation.request.length);
  return fly(*rail, flight) ? Step::done : Step::blocked;
}

Link::Step Link::advance_message(Operation& operation, std::uint32_t number) noexcept {
  Rail* rail = message_rail(true);
  if (rail == nullptr) return Step::blocked;
  const Flight flight{.subject = number,
                      .kind = Flight::Kind::message,
                      .bytes = static_cast<std::uint32_t>(sizeof(MessageHeader) + operation.request.length)};
  return fly(*rail, flight) ? Step::done : Step::blocked;
}

Link::Step Link::advance_atomic(Operation& operation, std::uint32_t number) noexcept {
  const WorkRequest& request = operation.request;
  if (request.remote->key.atomic_home == AtomicHome::device) {
    // All go through the owner's first NIC: what two NICs do to one word is not atomic.
    for (const auto& rail : rails_) {
      if (rail->port != 0 || !rail->usable() || !rail->ring.has_room()) continue;
      return fly(*rail, {.subject = number, .kind = Flight::Kind::atomic, .bytes = 8}) ? Step::done : Step::blocked;
    }
    return Step::blocked;
  }
  Rail* rail = asked_ < kResults ? message_rail(true) : nullptr;
  if (rail == nullptr) return Step::blocked;
  operation.buffer = hub_.pool.take();
  if (operation.buffer == MessagePool::kNone) {
    look_again(0);
    return Step::blocked;
  }
  const MessageHeader header{.type = MessageType::atomic};
  const RemoteKey& key = request.remote->key;
  const AtomicBody body{.slot = key.slot,
                        .generation = key.generation,
                        .secret = key.secret,
                        .offset = request.remote_offset,
                        .operand = request.operand,
                        .compare = request.opcode == Opcode::compare_swap ? request.compare : 0,
                        .operation = number,
                        .is_swap = request.opcode == Opcode::compare_swap ? 1U : 0U};
  std::byte* at = hub_.pool.data(operation.buffer);
  std::memcpy(at, &header, sizeof header);
  std::memcpy(at + sizeof header, &body, sizeof body);
  const Flight flight{
      .subject = number, .kind = Flight::Kind::request, .bytes = sizeof(MessageHeader) + sizeof(AtomicBody)};
  if (!fly(*rail, flight)) return Step::blocked;
  operation.asking = true;
  ++asked_;
  return Step::done;
}

Link::Step Link::advance_flush(Operation& operation, std::uint32_t number, Endings& endings) noexcept {
  for (const auto& rail : rails_) {
    if (!rail->usable() || !rail->used) continue;
    if (!rail->ring.has_room()) return Step::blocked;
    if (!fly(*rail, {.subject = number, .kind = Flight::Kind::flush, .bytes = 8})) return Step::blocked;
    rail->used = false;
  }
  if (operation.flights == 0) {
    if (!endings.has_room()) return Step::full;
    tell(operation, {}, endings);
  }
  operation.posted = true;
  return Step::done;
}

// --- work requests ---

bool Link::fly(Rail& rail, const Flight& what) noexcept {
  if (!rail.ring.has_room()) return false;
  Flight flight = what;
  Operation& operation = operations_->by_number(flight.subject);
  const WorkRequest& request = operation.request;
  const auto consumes = [&] {
    flight.order = ++rail.ordered;
    ++rail.spent;
  };
  const auto inlined = [&](std::uint32_t bytes) -> unsigned {
    return bytes <= rail.max_inline ? static_cast<unsigned>(IBV_SEND_INLINE) : 0U;
  };
  std::uint32_t lkey = 0;
  const bool memory = flight.kind == Flight::Kind::slice || flight.kind == Flight::Kind::atomic ||
                      (flight.kind == Flight::Kind::notify && flight.bytes > 0);
  if (memory && !hub_.registrations.local_key(*request.local, rail.nic, lkey)) lkey = 0;  // the device will refuse it
  switch (flight.kind) {
    case Flight::Kind::slice: {
      const bool get = request.opcode == Opcode::get;
      const unsigned flags = get ? 0U : inlined(flight.bytes);
      ibv_send_wr& wr = rail.ring.stage(flight, get ? IBV_WR_RDMA_READ : IBV_WR_RDMA_WRITE,
                                        address_of(request, flight.offset), flight.bytes, lkey, flags);
      wr.wr.rdma = {.remote_addr = request.remote->key.address + request.remote_offset + flight.offset,
                    .rkey = request.remote->key.rkeys[rail.port]};
      break;
    }
    case Flight::Kind::notify: {
      consumes();
      ibv_send_wr& wr =
          rail.ring.stage(flight, IBV_WR_RDMA_WRITE_WITH_IMM, flight.bytes > 0 ? address_of(request, 0) : 0,
                          flight.bytes, lkey, inlined(flight.bytes));
      wr.imm_data = pack_immediate(request.port, request.value);
      wr.wr.rdma = {};
      if (flight.bytes > 0) {
        wr.wr.rdma = {.remote_addr = request.remote->key.address + request.remote_offset,
                      .rkey = request.remote->key.rkeys[rail.port]};
      }
      break;
    }
    case Flight::Kind::message:
    case Flight::Kind::request: {
      consumes();
      const auto consumed = static_cast<std::uint32_t>(rail.consumed);
      std::byte* at = hub_.pool.data(operation.buffer);
      std::memcpy(at + offsetof(MessageHeader, consumed), &consumed, sizeof consumed);
      rail.returned = rail.consumed;
      static_cast<void>(rail.ring.stage(flight, IBV_WR_SEND, reinterpret_cast<std::uintptr_t>(at), flight.bytes,
                                        hub_.pool.local_key(operation.buffer, rail.nic), inlined(flight.bytes)));
      break;
    }
    case Flight::Kind::atomic: {
      const bool swap = request.opcode == Opcode::compare_swap;
      ibv_send_wr& wr = rail.ring.stage(flight, swap ? IBV_WR_ATOMIC_CMP_AND_SWP : IBV_WR_ATOMIC_FETCH_AND_ADD,
                                        address_of(request, 0), 8, lkey, 0);
      wr.wr.atomic = {.remote_addr = request.remote->key.address + request.remote_offset,
                      .compare_add = swap ? request.compare : request.operand,
                      .swap = swap ? request.operand : 0,
                      .rkey = request.remote->key.rkeys[rail.port]};
      break;
    }
    case Flight::Kind::flush: {
      const Nic& nic = nic_of(rail);
      const PortAddress& theirs = their_->ports[rail.port];
      ibv_send_wr& wr = rail.ring.stage(flight, IBV_WR_RDMA_READ, nic.scratch(), 8, nic.scratch_lkey(), 0);
      wr.wr.rdma = {.remote_addr = theirs.mailbox, .rkey = theirs.mailbox_rkey};
      break;
    }
    case Flight::Kind::nothing:
    case Flight::Kind::result:
    case Flight::Kind::credit:
      return true;
  }
  rail.used = rail.used || flight.kind != Flight::Kind::flush;
  rail.bytes_under_way += flight.bytes;
  ++operation.flights;
  operation.touched = true;
  return true;
}

bool Link::fly_again(const Flight& flight) noexcept {
  if (flight.kind == Flight::Kind::result) return fly_buffer(flight.subject);
  Operation& operation = operations_->by_number(flight.subject);
  if (operation.told) {  // cancelled or timed out since
    let_go(flight);
    return true;
  }
  Rail* rail = nullptr;
  if (flight.kind == Flight::Kind::slice || flight.kind == Flight::Kind::flush) {
    rail = data_rail();
  } else if (flight.kind == Flight::Kind::atomic) {  // it was never under way
    for (const auto& each : rails_) {
      if (each->port == 0 && each->usable()) rail = each.get();
    }
  } else {
    rail = message_rail(true);
  }
  Flight anew = flight;
  anew.order = 0;
  if (rail == nullptr || !fly(*rail, anew)) return false;
  --operation.flights;  // it was counted already
  return true;
}

bool Link::fly_result(const ResultBody& result) noexcept {
  if (result_buffers_.empty()) return false;  // earlier ones are still under way
  const std::uint32_t buffer = result_buffers_.back();
  const MessageHeader header{.type = MessageType::result};
  std::byte* at = hub_.pool.data(buffer);
  std::memcpy(at, &header, sizeof header);
  std::memcpy(at + sizeof header, &result, sizeof result);
  if (!fly_buffer(buffer)) return false;
  result_buffers_.pop_back();
  return true;
}

bool Link::fly_buffer(std::uint32_t buffer) noexcept {
  Rail* rail = message_rail(false);
  if (rail == nullptr) return false;
  std::byte* at = hub_.pool.data(buffer);
  const auto consumed = static_cast<std::uint32_t>(rail->consumed);
  std::memcpy(at + offsetof(MessageHeader, consumed), &consumed, sizeof consumed);
  rail->returned = rail->consumed;
  constexpr std::uint32_t kBytes = sizeof(MessageHeader) + sizeof(ResultBody);
  const Flight flight{.subject = buffer, .kind = Flight::Kind::result, .order = ++rail->ordered, .bytes = kBytes};
  static_cast<void>(rail->ring.stage(flight, IBV_WR_SEND, reinterpret_cast<std::uintptr_t>(at), kBytes,
                                     hub_.pool.local_key(buffer, rail->nic),
                                     kBytes <= rail->max_inline ? static_cast<unsigned>(IBV_SEND_INLINE) : 0U));
  rail->bytes_under_way += kBytes;
  return true;
}

void Link::return_credits() noexcept {
  for (const auto& rail : rails_) {
    if (!rail->usable() || rail->consumed - rail->returned < rail->credit_limit / 2 || !rail->ring.has_room()) continue;
    const std::uint32_t buffer = hub_.pool.take();
    if (buffer == MessagePool::kNone) {
      look_again(0);
      return;
    }
    const MessageHeader header{.type = MessageType::credit, .consumed = static_cast<std::uint32_t>(rail->consumed)};
    std::byte* at = hub_.pool.data(buffer);
    std::memcpy(at, &header, sizeof header);
    rail->returned = rail->consumed;
    const Flight flight{
        .subject = buffer, .kind = Flight::Kind::credit, .order = ++rail->ordered, .bytes = sizeof header};
    static_cast<void>(
        rail->ring.stage(flight, IBV_WR_SEND, reinterpret_cast<std::uintptr_t>(at), sizeof header,
                         hub_.pool.local_key(buffer, rail->nic),
                         sizeof header <= rail->max_inline ? static_cast<unsigned>(IBV_SEND_INLINE) : 0U));
    rail->bytes_under_way += sizeof header;
  }
}

}  // namespace fabric::verbs
}  // namespace dtr::inline v0
