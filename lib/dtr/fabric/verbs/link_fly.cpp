// From a piece of a request to a work request in a rail's send queue.
#include <algorithm>
#include <cstddef>
#include <cstring>
#include <utility>

#include "dtr/fabric/checks.hpp"
#include "dtr/fabric/verbs/link.hpp"

namespace dtr::inline v0 {
namespace fabric::verbs {

namespace {

std::uint64_t address_of(const WorkRequest& request, std::uint64_t offset) noexcept {
  return reinterpret_cast<std::uintptr_t>(request.local->data()) + request.local_offset + offset;
}

unsigned inline_flag(const Rail& rail, std::uint32_t bytes) noexcept {
  return bytes <= rail.max_inline ? static_cast<unsigned>(IBV_SEND_INLINE) : 0U;
}

[[gnu::always_inline]] inline void stage_slice(Rail& rail, const Flight& flight, const WorkRequest& request,
                                               std::uint32_t lkey) noexcept {
  const bool get = request.opcode == Opcode::get;
  const unsigned flags = get ? 0U : inline_flag(rail, flight.bytes);
  ibv_send_wr& wr = rail.ring.stage(flight, get ? IBV_WR_RDMA_READ : IBV_WR_RDMA_WRITE,
                                    address_of(request, flight.offset), flight.bytes, lkey, flags);
  wr.wr.rdma = {.remote_addr = request.remote->key.address + request.remote_offset + flight.offset,
                .rkey = request.remote->key.rkey(rail.port, request.remote_offset + flight.offset)};
}

/// Every message says how many credits its sender has given back.
void write_consumed(Rail& rail, std::byte* message) noexcept {
  const auto consumed = static_cast<std::uint32_t>(rail.consumed);
  std::memcpy(message + offsetof(MessageHeader, consumed), &consumed, sizeof consumed);
  rail.returned = rail.consumed;
}

}  // namespace

bool Link::fly(Rail& rail, const Flight& what) noexcept {
  if (!rail.ring.has_room()) return false;
  Flight flight = what;
  Operation& operation = operations_->by_number(flight.subject);
  const WorkRequest& request = operation.request;
  const auto consumes = [&] {
    flight.order = ++rail.ordered;
    ++rail.spent;
  };
  std::uint32_t lkey = 0;
  const bool memory = flight.kind == Flight::Kind::slice || flight.kind == Flight::Kind::atomic ||
                      (flight.kind == Flight::Kind::notify && flight.bytes > 0);
  if (memory && !hub_.registrations.local_key(*request.local, rail.nic, request.local_offset + flight.offset, lkey)) {
    lkey = 0;  // the device will refuse it
  }
  switch (flight.kind) {
    case Flight::Kind::slice:
      stage_slice(rail, flight, request, lkey);
      break;
    case Flight::Kind::notify: {
      consumes();
      ibv_send_wr& wr =
          rail.ring.stage(flight, IBV_WR_RDMA_WRITE_WITH_IMM, flight.bytes > 0 ? address_of(request, 0) : 0,
                          flight.bytes, lkey, inline_flag(rail, flight.bytes));
      wr.imm_data = pack_immediate(request.port, request.value);
      wr.wr.rdma = {};
      if (flight.bytes > 0) {
        wr.wr.rdma = {.remote_addr = request.remote->key.address + request.remote_offset,
                      .rkey = request.remote->key.rkey(rail.port, request.remote_offset)};
      }
      break;
    }
    case Flight::Kind::message:
    case Flight::Kind::request: {
      consumes();
      std::byte* at = hub_.pool.data(operation.buffer);
      write_consumed(rail, at);
      static_cast<void>(rail.ring.stage(flight, IBV_WR_SEND, reinterpret_cast<std::uintptr_t>(at), flight.bytes,
                                        hub_.pool.local_key(operation.buffer, rail.nic),
                                        inline_flag(rail, flight.bytes)));
      break;
    }
    case Flight::Kind::atomic: {
      const bool swap = request.opcode == Opcode::compare_swap;
      ibv_send_wr& wr = rail.ring.stage(flight, swap ? IBV_WR_ATOMIC_CMP_AND_SWP : IBV_WR_ATOMIC_FETCH_AND_ADD,
                                        address_of(request, 0), 8, lkey, 0);
      wr.wr.atomic = {.remote_addr = request.remote->key.address + request.remote_offset,
                      .compare_add = swap ? request.compare : request.operand,
                      .swap = swap ? request.operand : 0,
                      .rkey = request.remote->key.rkey(rail.port, request.remote_offset)};
      break;
    }
    case Flight::Kind::flush: {
      const Nic& nic = nic_of(rail);
      ibv_send_wr& wr = rail.ring.stage(flight, IBV_WR_RDMA_READ, nic.scratch(), 8, nic.scratch_lkey(), 0);
      wr.wr.rdma = {.remote_addr = rail.mailbox, .rkey = rail.mailbox_rkey};
      break;
    }
    case Flight::Kind::nothing:
    case Flight::Kind::result:
    case Flight::Kind::credit:
      return true;  // not of a request
  }
  rail.used = rail.used || flight.kind != Flight::Kind::flush;
  rail.bytes_under_way += flight.bytes;
  ++operation.flights;
  operation.touched = true;
  return true;
}

bool Link::launch(const WorkRequest& request, std::int64_t deadline) noexcept {
  const std::uint64_t bytes = request.length;
  const bool get = request.opcode == Opcode::get;
  if (!get && request.opcode != Opcode::put) return false;
  if (bytes == 0 || bytes > hub_.options.slice_bytes || request.flags != 0 || request.value != 0) return false;
  if (check_memory(request, bytes, get ? Access::read : Access::write) != Errc::ok) return false;
  if (request.local->key().pieces > 1 || request.remote->key.pieces > 1) return false;
  Rail* const rail = data_rail(request);
  if (rail == nullptr || operations_->full()) return false;
  std::uint32_t lkey = 0;
  if (!hub_.registrations.local_key(*request.local, rail->nic, 0, lkey)) return false;

  const Flight flight{.subject = static_cast<std::uint32_t>(operations_->head()),
                      .kind = Flight::Kind::slice,
                      .bytes = static_cast<std::uint32_t>(bytes)};
  Operation& operation = operations_->push(request, deadline);
  operation.started = bytes;
  operation.flights = 1;
  operation.posted = operation.touched = operation.holds = true;
  request.local->begin_use();
  stage_slice(*rail, flight, request, lkey);
  rail->used = true;
  rail->bytes_under_way += bytes;
  data_cursor_ = message_cursor_ = operations_->head();
  return true;
}

bool Link::fly_buffer(Rail* rail, Flight::Kind kind, std::uint32_t buffer) noexcept {
  if (rail == nullptr || !rail->ring.has_room()) return false;
  std::byte* at = hub_.pool.data(buffer);
  write_consumed(*rail, at);
  const std::uint32_t bytes = sizeof(MessageHeader) + (kind == Flight::Kind::result ? sizeof(ResultBody) : 0);
  const Flight flight{.subject = buffer, .kind = kind, .order = ++rail->ordered, .bytes = bytes};
  static_cast<void>(rail->ring.stage(flight, IBV_WR_SEND, reinterpret_cast<std::uintptr_t>(at), bytes,
                                     hub_.pool.local_key(buffer, rail->nic), inline_flag(*rail, bytes)));
  rail->bytes_under_way += bytes;
  return true;
}

bool Link::fly_result(const ResultBody& result) noexcept {
  if (reserve_.empty()) return false;  // earlier ones are still under way
  const std::uint32_t buffer = reserve_.back();
  const MessageHeader header{.type = MessageType::result};
  std::byte* at = hub_.pool.data(buffer);
  std::memcpy(at, &header, sizeof header);
  std::memcpy(at + sizeof header, &result, sizeof result);
  if (!fly_buffer(message_rail(false), Flight::Kind::result, buffer)) return false;
  reserve_.pop_back();
  return true;
}

bool Link::owes_credits(const Rail& rail) const noexcept {
  return rail.consumed - rail.returned >= hub_.options.credits / 2 && rail.usable();
}

void Link::return_credits() noexcept {
  if (!std::exchange(credits_due_, false)) return;
  for (const auto& rail : rails_) {
    if (owes_credits(*rail) && !return_credits(*rail)) credits_due_ = true;
  }
}

bool Link::return_credits(Rail& rail) noexcept {
  if (reserve_.empty()) return false;  // what is under way comes back by itself
  const MessageHeader header{.type = MessageType::credit};
  std::memcpy(hub_.pool.data(reserve_.back()), &header, sizeof header);
  if (!fly_buffer(&rail, Flight::Kind::credit, reserve_.back())) return false;
  reserve_.pop_back();
  return true;
}

void Link::probe(Rail& rail) noexcept {
  if (!rail.ring.has_room()) return;
  const Nic& nic = nic_of(rail);
  ibv_send_wr& wr = rail.ring.stage({}, IBV_WR_RDMA_READ, nic.scratch(), 8, nic.scratch_lkey(), 0);
  wr.wr.rdma = {.remote_addr = rail.mailbox, .rkey = rail.mailbox_rkey};
}

// --- once more, on another queue pair ---

void Link::send_again(const Flight& flight) noexcept {
  switch (flight.kind) {
    case Flight::Kind::slice:
    case Flight::Kind::flush:
    case Flight::Kind::atomic:
      return again_data_.push(flight);
    case Flight::Kind::notify:
    case Flight::Kind::message:
    case Flight::Kind::request:
    case Flight::Kind::result:
      return again_messages_.push(flight);
    case Flight::Kind::credit:  // the next queue pair starts with all credits
    case Flight::Kind::nothing:
      return let_go(flight);
  }
}

bool Link::fly_again(const Flight& flight) noexcept {
  if (flight.kind == Flight::Kind::result) return fly_buffer(message_rail(false), flight.kind, flight.subject);
  Operation& operation = operations_->by_number(flight.subject);
  if (operation.told) {  // cancelled or timed out since
    let_go(flight);
    return true;
  }
  Rail* rail = nullptr;
  if (flight.kind == Flight::Kind::slice || flight.kind == Flight::Kind::flush) {
    rail = data_rail(operation.request);
  } else if (flight.kind == Flight::Kind::atomic) {  // it was never under way
    rail = atomic_rail();
  } else {
    rail = message_rail(true);
  }
  Flight anew = flight;
  anew.order = 0;
  if (rail == nullptr || !fly(*rail, anew)) return false;
  --operation.flights;  // it was counted already
  return true;
}

}  // namespace fabric::verbs
}  // namespace dtr::inline v0
