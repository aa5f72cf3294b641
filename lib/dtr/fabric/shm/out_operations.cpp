// Requests that outlive post: started when their fence allows, sent as the ring has room, ended by the target's
// answer, their deadline or their caller.
#include <algorithm>
#include <cstring>

#include "dtr/fabric/shm/out_link.hpp"

namespace dtr::inline v0 {
namespace fabric::shm {

namespace {

constexpr std::uint64_t kBudget = 256 << 10;  ///< bytes copied with the lock held in one call of progress

}  // namespace

void OutLink::end(Operation& operation, Status status, Ended& ended) noexcept {
  // Under the lock nobody copies to or from its memory, and its answers are dropped from now on: it is quiesced.
  operation.phase = Operation::Phase::ended;
  if (!status.ok()) local_->traffic->count_failure(status.code);
  if (operation.request.moves_memory() && operation.request.local != nullptr) operation.request.local->end_use();
  ended.add(operation.request.completion, status);
  open_operations_.fetch_sub(1, std::memory_order_release);
}

void OutLink::end_all(Errc code, Ended& ended) noexcept {
  const bool dead = code == Errc::peer_failed || code == Errc::peer_left;
  for (std::uint32_t id = operations_.front(); id != operations_.back(); ++id) {
    Operation& operation = operations_[id];
    if (!operation.open()) continue;
    const bool may_land = operation.in_ring && operation.request.opcode != Opcode::get && !dead;
    end(operation, {.code = code, .fenced = !may_land}, ended);
  }
  operations_.drop_ended();
}

int OutLink::advance(Ended& ended) noexcept {
  const auto now = Deadline::Clock::now();
  const std::uint32_t before = ended.count();
  std::uint64_t budget = kBudget;
  bool older_open = false;
  bool blocked = false;
  bool moved = false;
  runnable_ = false;
  for (std::uint32_t id = operations_.front(); id != operations_.back(); ++id) {
    Operation& operation = operations_[id];
    if (!operation.open()) continue;
    if (now >= operation.deadline) {
      const bool may_land = operation.in_ring && operation.request.opcode != Opcode::get;
      end(operation, {.code = Errc::timed_out, .fenced = !may_land}, ended);
      continue;
    }
    if (operation.phase == Operation::Phase::held && !older_open) {
      operation.phase = Operation::Phase::copying;
      if (operation.request.opcode == Opcode::flush) end(operation, {}, ended);
    }
    if (operation.phase == Operation::Phase::copying) moved = step_copy(operation, budget, ended) || moved;
    if (operation.phase == Operation::Phase::sending && !blocked) {
      moved = true;
      blocked = !push(operation);
    }
    older_open = older_open || operation.open();
  }
  operations_.drop_ended();
  return static_cast<int>(ended.count() - before) + (moved ? 1 : 0);
}

bool OutLink::step_copy(Operation& operation, std::uint64_t& budget, Ended& ended) noexcept {
  const WorkRequest& request = operation.request;
  const std::uint64_t bytes = request.bytes();
  bool moved = false;
  while (request.moves_memory() && request.local != nullptr && (operation.moved < bytes || bytes == 0)) {
    if (budget == 0) {
      runnable_ = true;
      return moved;
    }
    const std::uint64_t piece = std::min(bytes - operation.moved, budget);
    const Moved step = move_piece(request, operation.moved, piece);
    if (step.way == Way::by_message) {
      operation.phase = Operation::Phase::sending;
      return true;
    }
    if (step.way == Way::refused) {
      if (step.code == Errc::again) return moved;  // the key is not confirmed yet
      end(operation, refusals_.remember(request, {.code = step.code, .cause = step.cause}, max_message_), ended);
      return true;
    }
    moved = true;
    operation.moved += piece;
    budget -= piece;
    if (bytes == 0) break;
  }
  if (request.opcode == Opcode::put_notify) {
    const Errc pushed = push_message(request);
    if (pushed == Errc::again) return moved;
    end(operation, {.code = pushed}, ended);
  } else {
    end(operation, {}, ended);
  }
  return true;
}

bool OutLink::push(Operation& operation) noexcept {
  const WorkRequest& request = operation.request;
  if (request.opcode == Opcode::put || request.opcode == Opcode::put_notify) return push_put(operation);

  const Place place = Place::of(request.remote->key, request.remote_offset + operation.moved);
  const bool get = request.opcode == Opcode::get;
  std::byte* at = forward_.reserve(get ? sizeof(GetBody) : sizeof(AtomicBody));
  if (at == nullptr) {
    stalled_ = true;
    forward_.ask_for_room();
    return false;
  }
  if (get) {
    operation.asked = operation.moved;
    const GetBody body{.place = place, .length = request.length - operation.moved, .operation = operation.id};
    std::memcpy(at, &body, sizeof body);
  } else {
    const AtomicBody body{.place = place,
                          .operand = request.operand,
                          .compare = request.opcode == Opcode::compare_swap ? request.compare : 0,
                          .operation = operation.id,
                          .opcode = request.opcode};
    std::memcpy(at, &body, sizeof body);
  }
  forward_.commit(static_cast<std::uint8_t>(get ? FrameType::get : FrameType::atomic), 0);
  operation.in_ring = true;
  operation.phase = Operation::Phase::awaiting;
  return true;
}

bool OutLink::push_put(Operation& operation) noexcept {
  const WorkRequest& request = operation.request;
  while (true) {
    const std::uint64_t left = request.length - operation.moved;
    const auto piece = static_cast<std::uint32_t>(std::min<std::uint64_t>(left, fragment_));
    std::byte* at = forward_.reserve(static_cast<std::uint32_t>(sizeof(PutBody)) + piece);
    if (at == nullptr) {
      stalled_ = true;
      forward_.ask_for_room();
      return false;
    }
    const bool last = piece == left;
    const bool notify = last && request.opcode == Opcode::put_notify;
    const PutBody body{.place = Place::of(request.remote->key, request.remote_offset + operation.moved),
                       .operation = operation.id,
                       .flags = (last ? PutBody::kLast : 0U) | (notify ? PutBody::kNotify : 0U),
                       .value = request.value};
    std::memcpy(at, &body, sizeof body);
    if (piece > 0) std::memcpy(at + sizeof body, operation.local() + operation.moved, piece);
    forward_.commit(static_cast<std::uint8_t>(FrameType::put), request.port);
    operation.in_ring = true;
    operation.moved += piece;
    if (last) {
      operation.phase = Operation::Phase::awaiting;
      return true;
    }
  }
}

std::uint32_t OutLink::cancel(Completion& completion) noexcept {
  if (local_->fork_guard.in_forked_child()) return 0;
  Ended ended;
  const std::lock_guard lock(lock_);
  for (std::uint32_t id = operations_.front(); id != operations_.back(); ++id) {
    Operation& operation = operations_[id];
    if (!operation.open() || operation.request.completion != &completion) continue;
    const bool may_land = operation.in_ring && operation.request.opcode != Opcode::get;
    end(operation, {.code = Errc::cancelled, .fenced = !may_land}, ended);
  }
  operations_.drop_ended();
  return ended.count();  // told when `ended` goes, after the lock
}

void OutLink::end_atomics() noexcept {
  if (local_->fork_guard.in_forked_child()) return;
  Ended ended;
  const std::lock_guard lock(lock_);
  for (std::uint32_t id = operations_.front(); id != operations_.back(); ++id) {
    Operation& operation = operations_[id];
    if (!operation.open() || !operation.request.is_atomic()) continue;
    end(operation, {.code = Errc::cancelled, .fenced = !operation.in_ring}, ended);
  }
  operations_.drop_ended();
}

int OutLink::take_answers(int budget) {
  if (backward_.empty()) return 0;  // nearly always: do not even make room for what ends
  int handled = 0;
  RingConsumer::Frame frame;
  Ended ended;
  while (handled < budget) {
    const RingConsumer::Look look = backward_.look(frame);
    if (look == RingConsumer::Look::nothing) break;
    bool good = look == RingConsumer::Look::frame;
    if (good) {
      const std::lock_guard lock(lock_);
      good = take_answer(frame, ended);
      operations_.drop_ended();
    }
    if (!good) {
      fail_with(Errc::protocol_error, "the peer's answer is malformed");
      return handled;
    }
    backward_.pop();
    backward_.release_some();
    ++handled;
    if (ended.full()) ended.tell();
  }
  if (handled > 0) {
    backward_.release();
    if (backward_.producer_waits(barriers())) ring_peer();
  }
  return handled;
}

bool OutLink::take_answer(const RingConsumer::Frame& frame, Ended& ended) noexcept {
  if (frame.type == static_cast<std::uint8_t>(FrameType::result)) {
    ResultBody body;
    if (!read_body(frame.bytes, body)) return false;
    Operation* operation = operations_.find(body.operation);
    if (operation == nullptr) return true;  // timed out or cancelled before
    if (body.code == 0 && operation->request.is_atomic()) {
      std::memcpy(operation->local(), &body.value, sizeof body.value);
    }
    if (body.code == 0 && operation->request.opcode == Opcode::get && operation->moved != operation->request.length) {
      return false;
    }
    end(*operation, refusals_.remember(operation->request, {.code = errc_from_wire(body.code)}, max_message_), ended);
    return true;
  }
  if (frame.type != static_cast<std::uint8_t>(FrameType::data)) return false;
  DataBody body;
  std::span<const std::byte> data;
  if (!read_body(frame.bytes, body, &data)) return false;
  Operation* operation = operations_.find(body.operation);
  if (operation == nullptr) return true;
  if (operation->request.opcode != Opcode::get || body.offset != operation->moved - operation->asked ||
      data.size() > operation->request.length - operation->moved) {
    return false;
  }
  std::memcpy(operation->local() + operation->moved, data.data(), data.size());
  operation->moved += data.size();
  return true;  // the result frame ends it
}

}  // namespace fabric::shm
}  // namespace dtr::inline v0
