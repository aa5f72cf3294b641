// What the peer sends over the queue pairs: notifications, messages, atomics for our CPU, their results, credits.
#include <cstring>

#include "dtr/fabric/checks.hpp"
#include "dtr/fabric/verbs/link.hpp"

namespace dtr::inline v0 {
namespace fabric::verbs {

void Link::on_received(Rail& rail, const ibv_wc& completion, std::span<const std::byte> bytes) noexcept {
  if (completion.status != IBV_WC_SUCCESS) return;  // the queue pair's end shows elsewhere
  if (rail.state == Rail::State::idle || rail.state == Rail::State::drained) return;  // counted as lost: it comes again
  ++rail.received;
  unreachable_since_ = kNever;
  bool spent = true;
  const char* wrong = nullptr;
  if (completion.opcode == IBV_WC_RECV_RDMA_WITH_IMM) {
    hub_.context.receiver.on_notify(peer_, static_cast<Port>(completion.imm_data >> 24),
                                    completion.imm_data & WorkRequest::kMaxValue);
  } else {
    wrong = take_message(rail, bytes, spent);
  }
  if (wrong != nullptr) return give_up(Errc::protocol_error, wrong);
  Endings endings;
  {
    const std::lock_guard lock(lock_);
    if (spent) ++rail.consumed;
    credits_due_ = credits_due_ || owes_credits(rail);
    pump(endings);
  }
  endings.deliver();
}

/// nullptr, or what is wrong with it. `spent`: it has used up a credit.
const char* Link::take_message(Rail& rail, std::span<const std::byte> bytes, bool& spent) noexcept {
  MessageHeader header;
  if (bytes.size() < sizeof header) return "a message without a header";
  std::memcpy(&header, bytes.data(), sizeof header);
  const auto rest = bytes.subspan(sizeof header);
  {
    const std::lock_guard lock(lock_);
    rail.peer_consumed += static_cast<std::uint32_t>(header.consumed - static_cast<std::uint32_t>(rail.peer_consumed));
    if (rail.peer_consumed > rail.spent) rail.peer_consumed = rail.spent;
  }
  spent = header.type == MessageType::message || header.type == MessageType::atomic;
  switch (header.type) {
    case MessageType::message:
      hub_.context.receiver.on_message(peer_, header.port, rest);
      return nullptr;
    case MessageType::atomic: {
      AtomicBody body;
      if (rest.size() != sizeof body) return "an atomic of wrong length";
      std::memcpy(&body, rest.data(), sizeof body);
      return answer(body) ? nullptr : "more open atomics than agreed";
    }
    case MessageType::result: {
      ResultBody body;
      if (rest.size() != sizeof body) return "a result of wrong length";
      std::memcpy(&body, rest.data(), sizeof body);
      take_result(body);
      return nullptr;
    }
    case MessageType::credit:
      return nullptr;
  }
  return "a message of unknown type";
}

bool Link::answer(const AtomicBody& body) noexcept {
  {
    const std::lock_guard lock(lock_);
    if (results_.full()) return false;  // an asker has no more of them open
  }
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
  const std::lock_guard lock(lock_);
  results_.push(result);
  return true;
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

}  // namespace fabric::verbs
}  // namespace dtr::inline v0
