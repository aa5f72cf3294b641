// From completions to ends.
#include <algorithm>
#include <cstring>

#include "dtr/base/log.hpp"
#include "dtr/fabric/checks.hpp"
#include "dtr/fabric/verbs/link.hpp"

namespace dtr::inline v0 {
namespace fabric::verbs {

// --- sent ---

void Link::on_sent(Rail& rail, const ibv_wc& completion) noexcept {
  const bool good = completion.status == IBV_WC_SUCCESS;
  // All before this one have ended well, and this one as the status says. What comes back from a queue pair in error
  // stays where it is until both ends are known to be drained.
  const bool first_error = !good && rail.state == Rail::State::open;
  const std::uint64_t until = completion.wr_id + (good ? 1 : 0);
  bool more = good || first_error;
  while (more) {
    Endings endings;
    {
      const std::lock_guard lock(lock_);
      while (rail.ring.done() < until && rail.ring.done() < rail.ring.head() && endings.has_room()) {
        const Flight flight = rail.ring.at(rail.ring.done());
        rail.ring.retire();
        rail.bytes_under_way -= flight.bytes;
        landed(flight, endings);
      }
      more = rail.ring.done() < until && rail.ring.done() < rail.ring.head();
      if (!more && good) pump(endings);
    }
    endings.deliver();
  }
  rail.flushed = std::max(rail.flushed, completion.wr_id + 1);
  if (good) {
    unreachable_since_ = kNever;
    return;
  }
  if (!first_error) return;
  if (completion.status == IBV_WC_REM_ACCESS_ERR || completion.status == IBV_WC_REM_INV_REQ_ERR ||
      completion.status == IBV_WC_LOC_PROT_ERR || completion.status == IBV_WC_REM_OP_ERR) {
    blame(rail, completion);
  }
  fault(rail, completion.status, to_words(completion.status));
}

void Link::blame(Rail& rail, const ibv_wc& completion) noexcept {
  Endings endings;
  {
    const std::lock_guard lock(lock_);
    Flight& flight = rail.ring.at(completion.wr_id);
    if (flight.kind == Flight::Kind::nothing || flight.kind == Flight::Kind::result ||
        flight.kind == Flight::Kind::credit) {
      return;
    }
    Operation& operation = operations_->by_number(flight.subject);
    // The bounds and rights in the key were checked before: it is the key itself that the target does not know.
    const Errc code = completion.status == IBV_WC_LOC_PROT_ERR     ? Errc::not_registered
                      : completion.status == IBV_WC_REM_ACCESS_ERR ? Errc::revoked
                                                                   : Errc::device_error;
    tell(operation, {.code = code, .quiesced = operation.flights == 1, .fenced = true, .cause = completion.status},
         endings);
  }
  endings.deliver();
}

void Link::landed(const Flight& flight, Endings& endings) noexcept {
  if (flight.kind == Flight::Kind::result) return result_buffers_.push_back(flight.subject);  // room was reserved
  if (flight.kind == Flight::Kind::credit) return hub_.pool.give(flight.subject);
  if (flight.kind == Flight::Kind::nothing) return;
  Operation& operation = operations_->by_number(flight.subject);
  --operation.flights;
  if (operation.flights == 0 && operation.posted && !operation.told && !operation.asking) {
    if (operation.notify_late) {
      const auto behind = static_cast<std::uint32_t>(flight.subject - static_cast<std::uint32_t>(operations_->tail()));
      late_.push(operations_->tail() + behind);
      return;
    }
    return tell(operation, {}, endings);
  }
  if (operation.told) settle(operation);
}

void Link::let_go(const Flight& flight) noexcept {
  if (flight.kind == Flight::Kind::result) return result_buffers_.push_back(flight.subject);
  if (flight.kind == Flight::Kind::credit) return hub_.pool.give(flight.subject);
  if (flight.kind == Flight::Kind::nothing) return;
  Operation& operation = operations_->by_number(flight.subject);
  --operation.flights;
  if (operation.told) settle(operation);
}

void Link::tell(Operation& operation, Status status, Endings& endings) noexcept {
  operation.told = true;
  endings.add(operation.request.completion, status);
  if (operation.flights > 0) {
    operation.lingers = true;
    lingering_.fetch_add(1, std::memory_order_relaxed);
  }
  settle(operation);
}

void Link::settle(Operation& operation) noexcept {
  if (operation.flights > 0) return;
  if (std::exchange(operation.lingers, false)) lingering_.fetch_sub(1, std::memory_order_release);
  if (operation.buffer != MessagePool::kNone && !operation.asking) {
    hub_.pool.give(std::exchange(operation.buffer, MessagePool::kNone));
  }
  if (std::exchange(operation.holds, false)) operation.request.local->end_use();
}

// --- received ---

void Link::on_received(Rail& rail, const ibv_wc& completion, std::span<const std::byte> bytes) noexcept {
  if (completion.status != IBV_WC_SUCCESS) return;  // the queue pair's end shows elsewhere
  if (rail.state == Rail::State::idle || rail.state == Rail::State::drained) return;  // counted as lost: it comes again
  ++rail.received;
  bool spent = false;
  if (completion.opcode == IBV_WC_RECV_RDMA_WITH_IMM) {
    spent = true;
    hub_.context.receiver.on_notify(peer_, static_cast<Port>(completion.imm_data >> 24),
                                    completion.imm_data & WorkRequest::kMaxValue);
  } else {
    MessageHeader header;
    if (bytes.size() < sizeof header) return give_up(Errc::protocol_error, "a message without a header");
    std::memcpy(&header, bytes.data(), sizeof header);
    const auto rest = bytes.subspan(sizeof header);
    {
      const std::lock_guard lock(lock_);
      rail.peer_consumed +=
          static_cast<std::uint32_t>(header.consumed - static_cast<std::uint32_t>(rail.peer_consumed));
      if (rail.peer_consumed > rail.spent) rail.peer_consumed = rail.spent;
    }
    switch (header.type) {
      case MessageType::message:
        spent = true;
        hub_.context.receiver.on_message(peer_, header.port, rest);
        break;
      case MessageType::atomic: {
        spent = true;
        AtomicBody body;
        if (rest.size() != sizeof body) return give_up(Errc::protocol_error, "an atomic of wrong length");
        std::memcpy(&body, rest.data(), sizeof body);
        answer(body);
        break;
      }
      case MessageType::result: {
        ResultBody body;
        if (rest.size() != sizeof body) return give_up(Errc::protocol_error, "a result of wrong length");
        std::memcpy(&body, rest.data(), sizeof body);
        take_result(body);
        break;
      }
      case MessageType::credit:
        break;
      default:
        return give_up(Errc::protocol_error, "a message of unknown type");
    }
  }
  Endings endings;
  {
    const std::lock_guard lock(lock_);
    if (spent) ++rail.consumed;
    pump(endings);
  }
  endings.deliver();
}

void Link::answer(const AtomicBody& body) noexcept {
  ResultBody result{.operation = body.operation};
  {
    RegionTable::Use use;
    Errc code = hub_.context.regions.acquire({.slot = body.slot,
                                              .generation = body.generation,
                                              .secret = body.secret,
                                              .offset = body.offset,
                                              .length = sizeof(std::uint64_t),
                                              .access = Access::atomic},
                                             use);
    if (code == Errc::ok && reinterpret_cast<std::uintptr_t>(use.data()) % 8 != 0) code = Errc::invalid_argument;
    if (code == Errc::ok) {
      const Opcode opcode = body.is_swap != 0 ? Opcode::compare_swap : Opcode::fetch_add;
      result.value = execute_atomic(opcode, use.data(), body.operand, body.compare);
    }
    result.code = static_cast<std::int32_t>(code);
  }
  bool room = false;
  {
    const std::lock_guard lock(lock_);
    room = results_.size() < kResults;  // an asker has no more of them open
    if (room) results_.push(result);
  }
  if (!room) give_up(Errc::protocol_error, "more open atomics than agreed");
}

void Link::take_result(const ResultBody& body) noexcept {
  Endings endings;
  {
    const std::lock_guard lock(lock_);
    if (operations_ == nullptr || !operations_->knows(body.operation)) return;
    Operation& operation = operations_->by_number(body.operation);
    if (!operation.asking) return;
    operation.asking = false;
    --asked_;
    if (operation.told) {
      settle(operation);
    } else {
      const Errc code = errc_from_wire(body.code);
      if (code == Errc::ok) {
        std::memcpy(operation.request.local->data() + operation.request.local_offset, &body.value, sizeof body.value);
      }
      tell(operation, {.code = code}, endings);
    }
  }
  endings.deliver();
}

// --- ends that the peer has no part in ---

template <class Which>
std::uint32_t Link::end_some(Errc code, Which&& which) noexcept {
  std::uint32_t ended = 0;
  bool more = true;
  std::uint64_t position = 0;
  while (more) {
    Endings endings;
    more = false;
    {
      const std::lock_guard lock(lock_);
      if (operations_ == nullptr) return 0;
      for (position = std::max(position, operations_->first_untold()); position < operations_->head(); ++position) {
        Operation& operation = operations_->at(position);
        if (operation.told || !which(operation)) continue;
        if (!endings.has_room()) {
          more = true;
          break;
        }
        // A result is dropped from now on, so an atomic at the target's CPU touches nothing of ours any more.
        tell(operation, {.code = code, .quiesced = operation.flights == 0, .fenced = !operation.touched}, endings);
        ++ended;
      }
      operations_->drop_settled();
    }
    endings.deliver();
  }
  return ended;
}

std::uint32_t Link::cancel(Completion& completion) noexcept {
  return end_some(Errc::cancelled,
                  [&](const Operation& operation) { return operation.request.completion == &completion; });
}

std::int64_t Link::expire(std::int64_t now) noexcept {
  {
    const std::lock_guard lock(lock_);
    if (now < earliest_) return earliest_;
  }
  end_some(Errc::timed_out, [&](const Operation& operation) { return operation.deadline <= now; });
  const std::lock_guard lock(lock_);
  earliest_ = kNever;
  if (operations_ == nullptr) return kNever;
  for (std::uint64_t position = operations_->first_untold(); position != operations_->head(); ++position) {
    const Operation& operation = operations_->at(position);
    if (!operation.told) earliest_ = std::min(earliest_, operation.deadline);
  }
  return earliest_;
}

void Link::end_atomics() noexcept {
  // Nobody knows whether the target executed them.
  end_some(Errc::cancelled,
           [](const Operation& operation) { return operation.request.is_atomic() && operation.touched; });
}

void Link::end_all(Errc code, const std::string& why, bool target_gone) noexcept {
  {
    const std::lock_guard words(words_mutex_);
    if (why_.empty()) why_ = why;
  }
  {
    const std::lock_guard lock(lock_);
    if (end_code_ == Errc::ok) end_code_ = code;
  }
  bool more = true;
  while (more) {
    Endings endings;
    {
      const std::lock_guard lock(lock_);
      more = false;
      if (operations_ == nullptr) break;
      for (std::uint64_t at = operations_->first_untold(); at != operations_->head(); ++at) {
        Operation& operation = operations_->at(at);
        if (operation.told) continue;
        if (!endings.has_room()) {
          more = true;
          break;
        }
        tell(operation, {.code = code, .quiesced = operation.flights == 0, .fenced = target_gone || !operation.touched},
             endings);
      }
      // Nobody will send these results any more.
      for (std::uint64_t at = operations_->tail(); at != operations_->head(); ++at) {
        Operation& operation = operations_->at(at);
        if (!operation.told || !std::exchange(operation.asking, false)) continue;
        --asked_;
        settle(operation);
      }
      operations_->drop_settled();
    }
    endings.deliver();
  }
  state_.store(code == Errc::closed ? ChannelState::closed : ChannelState::failed, std::memory_order_release);
}

}  // namespace fabric::verbs
}  // namespace dtr::inline v0
