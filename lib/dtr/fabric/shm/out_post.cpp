// The caller's side of a link: from the request to the copy, without a queue, an allocation or a lock.
#include <algorithm>
#include <cstring>

#include "dtr/base/copy.hpp"
#include "dtr/fabric/shm/foreign_memory.hpp"
#include "dtr/fabric/shm/out_link.hpp"

namespace dtr::inline v0 {
namespace fabric::shm {

namespace {

constexpr std::uint64_t kPiece = 4ULL << 20;  ///< a copy looks at deadline and revocation this often

/// Only the ring is needed: a message, or a notification without data.
bool rides_ring(const WorkRequest& request) noexcept {
  return request.opcode == Opcode::send || (request.opcode == Opcode::put_notify && request.length == 0);
}

/// A copy with nothing to wait for, short enough to be made in one piece.
bool is_plain_copy(const WorkRequest& request) noexcept {
  static_assert(Opcode::put < Opcode::get && Opcode::get < Opcode::put_notify);
  return request.opcode <= Opcode::get && request.flags == 0 && request.length <= kPiece;
}

void copy_bytes(std::byte* to, const std::byte* from, std::uint64_t bytes) noexcept {
  if (bytes == 8) {
    std::memcpy(to, from, 8);  // one store: a poller sees all of it or nothing
  } else {
    copy_large(to, from, bytes);
  }
}

}  // namespace

Status OutLink::shut_status() const noexcept {
  switch (phase_.load(std::memory_order_acquire)) {
    case Phase::connecting:
    case Phase::open:  // just opened
      return {.code = Errc::again};
    case Phase::closing:
    case Phase::closed:
      return {.code = Errc::closed};
    case Phase::failed:
      return {.code = failure_.load(std::memory_order_acquire)};
  }
  return {.code = Errc::internal};
}

OutLink::Moved OutLink::look(const Imported& target) const noexcept {
  if (gate_.load(std::memory_order_seq_cst) == Gate::shut) return {Way::refused, shut_status().code};
  if (const auto refused = parts_.memory.header().refused.load(std::memory_order_relaxed); refused != 0) {
    return {Way::refused, errc_from_wire(-std::int64_t{refused})};
  }
  const auto* validity = target.validity.load(std::memory_order_acquire);
  if (validity == nullptr) {
    const Errc verdict = target.verdict.load(std::memory_order_acquire);
    return {Way::refused, verdict == Errc::ok ? Errc::again : verdict};
  }
  if (validity->load(std::memory_order_seq_cst) != target.key.generation) return {Way::refused, Errc::revoked};
  return {};
}

std::uint32_t OutLink::copy_mapped(std::span<const WorkRequest> requests) noexcept {
  const auto* target = static_cast<const Imported*>(requests.front().remote);
  if (target == nullptr) return 0;
  const RaisedFlag raised(*local_->lines, FlagLine::value(peer_, target->key.slot), barriers());
  if (look(*target).way != Way::done) return 0;
  std::byte* const mapped = target->mapped.load(std::memory_order_acquire);
  if (mapped == nullptr) return 0;
  std::uint64_t left = kPiece;  // the region's owner may be waiting for the flag to fall
  std::uint32_t done = 0;
  const Opcode opcode = requests.front().opcode;
  const bool put = opcode == Opcode::put;
  do {
    const WorkRequest& request = requests[done];
    if (check_memory(request, request.length, put ? Access::write : Access::read) != Errc::ok) break;
    left -= request.length;
    std::byte* const remote = mapped + request.remote_offset;
    std::byte* const local = request.local->data() + request.local_offset;
    copy_bytes(put ? remote : local, put ? local : remote, request.length);
    ++done;
  } while (done < requests.size() && requests[done].opcode == opcode && is_plain_copy(requests[done]) &&
           requests[done].remote == target && requests[done].length <= left);
  if (done > 0) local_->traffic->count(opcode, done, kPiece - left);
  return done;
}

/// One put or get of mapped memory, if nothing is in its way. False: nothing has happened; the long way finds out why.
/// kWord: of 8 bytes. That calls nobody, so that it has no registers to save.
template <bool kWord>
[[gnu::always_inline]] inline bool OutLink::copy_one(const WorkRequest& request) noexcept {
  if (!is_plain_copy(request) || local_->fork_guard.in_forked_child()) return false;
  if (gate_.load(std::memory_order_acquire) != Gate::open || !barriers()) return false;
  const std::uint64_t bytes = kWord ? sizeof(std::uint64_t) : request.length;
  const bool put = request.opcode == Opcode::put;
  if (check_memory(request, bytes, put ? Access::write : Access::read) != Errc::ok) return false;
  const auto& target = static_cast<const Imported&>(*request.remote);
  FlagLine* const line = local_->lines->recent();
  const TrafficMeter::Place meter = local_->traffic->recent();
  if (line == nullptr || meter.empty()) return false;
  line->raised.store(FlagLine::value(peer_, target.key.slot), std::memory_order_relaxed);
  light_barrier();
  std::byte* const mapped = target.mapped.load(std::memory_order_acquire);
  const auto* const validity = target.validity.load(std::memory_order_acquire);
  const bool allowed = mapped != nullptr && validity != nullptr &&
                       gate_.load(std::memory_order_seq_cst) == Gate::open &&
                       parts_.memory.header().refused.load(std::memory_order_relaxed) == 0 &&
                       validity->load(std::memory_order_seq_cst) == target.key.generation;
  if (allowed) {
    std::byte* const remote = mapped + request.remote_offset;
    std::byte* const local = request.local->data() + request.local_offset;
    copy_bytes(put ? remote : local, put ? local : remote, bytes);
  }
  line->raised.store(0, std::memory_order_release);
  if (allowed) meter.count(request.opcode, 1, bytes);
  return allowed;
}

/// One message, if nothing is in its way; as copy_one.
bool OutLink::send_one(const WorkRequest& request) noexcept {
  if (request.flags != 0 || local_->fork_guard.in_forked_child()) return false;
  if (gate_.load(std::memory_order_acquire) != Gate::open) return false;
  if (check_message(request, max_message_) != Errc::ok) return false;
  const TrafficMeter::Place meter = local_->traffic->recent();
  if (meter.empty()) return false;
  {
    const std::lock_guard lock(lock_);
    if (gate_.load(std::memory_order_relaxed) != Gate::open) return false;
    std::byte* const at = forward_.reserve(static_cast<std::uint32_t>(request.length));
    if (at == nullptr) return false;
    copy_bytes(at, request.payload, request.length);
    forward_.commit(static_cast<std::uint8_t>(FrameType::message), request.port);
  }
  meter.count(Opcode::send, 1, request.length);
  ring_peer();
  return true;
}

PostResult OutLink::post(std::span<const WorkRequest> requests, Deadline deadline) noexcept {
  constexpr PostResult kDone{.accepted = 1, .finished = 1};
  if (requests.size() == 1) {
    const WorkRequest& request = requests.front();
    if (request.length == sizeof(std::uint64_t) && copy_one<true>(request)) return kDone;
    if (request.opcode == Opcode::send && send_one(request)) return kDone;
  }
  return post_several(requests, deadline);
}

PostResult OutLink::post_several(std::span<const WorkRequest> requests, Deadline deadline) noexcept {
  if (requests.size() == 1 && copy_one<false>(requests.front())) return {.accepted = 1, .finished = 1};
  PostResult result;
  if (local_->fork_guard.in_forked_child()) {
    result.status.code = Errc::forked;
    return result;
  }
  if (gate_.load(std::memory_order_acquire) != Gate::open) {
    result.status = shut_status();
    return result;
  }
  if (!requests.empty() && is_plain_copy(requests.front())) result.accepted = copy_mapped(requests);
  result.finished = result.accepted;
  return result.accepted == requests.size() ? result : post_rest(requests, deadline, result);
}

PostResult OutLink::post_rest(std::span<const WorkRequest> requests, Deadline deadline, PostResult result) noexcept {
  bool in_order = true;  // everything so far has finished, so the caller tells it
  bool sent = false;
  while (result.accepted < requests.size()) {
    const auto rest = requests.subspan(result.accepted);
    std::uint32_t taken = is_plain_copy(rest.front()) ? copy_mapped(rest) : 0;
    const bool copied = taken > 0;
    Status status;
    if (copied) {
      // done, and counted
    } else if (rides_ring(rest.front()) && (rest.front().flags & WorkRequest::kFence) == 0) {
      taken = take_messages(rest, status);
      sent = sent || taken > 0;
    } else {
      taken = 1;
      status = take(rest.front(), deadline, sent);
      if (status.code == kQueued) {
        in_order = false;
        local_->traffic->count(rest.front());
        ++result.accepted;
        continue;
      }
      if (!status.ok()) taken = 0;
    }
    if (!copied) {
      for (const WorkRequest& request : rest.first(taken)) local_->traffic->count(request);
    }
    result.accepted += taken;
    if (in_order) {
      result.finished = result.accepted;
    } else {
      for (std::uint32_t i = 0; i < taken; ++i) {
        if (rest[i].completion != nullptr) rest[i].completion->finish(1, {});
      }
    }
    if (!status.ok()) {
      if (status.code != Errc::again) local_->traffic->count_failure(status.code);
      result.status = refusals_.remember(requests[result.accepted], status, max_message_);
      break;
    }
  }
  if (sent) ring_peer();
  return result;
}

Status OutLink::take(const WorkRequest& request, Deadline deadline, bool& sent) noexcept {
  if (const Errc wrong = check_request(request, max_message_); wrong != Errc::ok) return {.code = wrong};
  const bool behind = (request.flags & WorkRequest::kFence) != 0 || request.opcode == Opcode::flush;
  if (behind && open_operations_.load(std::memory_order_acquire) > 0) {
    // A message's payload may be gone before the fence lets it pass, so it stays with the caller.
    if (request.opcode == Opcode::send) return {.code = Errc::again};
    return enqueue(request, deadline, 0);
  }
  if (request.opcode == Opcode::flush) return {};
  if (rides_ring(request)) {
    Status status;
    sent = take_messages({&request, 1}, status) > 0 || sent;
    return status;
  }
  return take_copy(request, deadline, sent);
}

Status OutLink::take_copy(const WorkRequest& request, Deadline deadline, bool& sent) noexcept {
  if (request.opcode == Opcode::put_notify) {  // do not copy in vain
    const std::lock_guard lock(lock_);
    if (!forward_.has_room_for(sizeof(NotifyBody))) {
      stalled_ = true;
      forward_.ask_for_room();
      return {.code = Errc::again};
    }
  }
  const std::uint64_t bytes = request.bytes();
  std::uint64_t done = 0;
  do {
    const std::uint64_t piece = std::min(kPiece, bytes - done);
    const Moved moved = move_piece(request, done, piece);
    if (moved.way == Way::by_message) return enqueue(request, deadline, done);
    if (moved.way == Way::refused) return {.code = moved.code, .cause = moved.cause};
    done += piece;
    if (done < bytes && deadline.passed()) return {.code = Errc::timed_out};
  } while (done < bytes);
  if (request.opcode != Opcode::put_notify) return {};
  const std::lock_guard lock(lock_);
  const Errc pushed = push_message(request);
  sent = sent || pushed == Errc::ok;
  return {.code = pushed};
}

OutLink::Moved OutLink::move_piece(const WorkRequest& request, std::uint64_t done, std::uint64_t bytes) noexcept {
  const auto& target = static_cast<const Imported&>(*request.remote);
  std::byte* local = request.local->data() + request.local_offset + done;
  // The owner of the region, having revoked it, waits for this flag to fall.
  const RaisedFlag raised(*local_->lines, FlagLine::value(peer_, target.key.slot), barriers());
  if (const Moved seen = look(target); seen.way != Way::done) return seen;

  std::byte* mapped = target.mapped.load(std::memory_order_acquire);
  if (mapped == nullptr) return foreign_piece(request, target, done, bytes);
  std::byte* remote = mapped + request.remote_offset + done;
  switch (request.opcode) {
    case Opcode::get:
      copy_bytes(local, remote, bytes);
      break;
    case Opcode::fetch_add:
    case Opcode::compare_swap: {
      const std::uint64_t old = execute_atomic(request.opcode, remote, request.operand, request.compare);
      std::memcpy(local, &old, sizeof old);
      break;
    }
    default:
      copy_bytes(remote, local, bytes);
  }
  return {};
}

OutLink::Moved OutLink::foreign_piece(const WorkRequest& request, const Imported& target, std::uint64_t done,
                                      std::uint64_t bytes) noexcept {
  if (const Errc verdict = target.verdict.load(std::memory_order_acquire); verdict != Errc::ok) {
    return {Way::refused, verdict};
  }
  if (!parts_.cma || request.is_atomic()) {
    // The mapping is on its way, and faster than the ring even with the wait.
    if (target.mapping_expected.load(std::memory_order_acquire)) return {Way::refused, Errc::again};
    return {Way::by_message};
  }
  const std::uint64_t address = target.key.address + request.remote_offset + done;
  std::byte* local = request.local->data() + request.local_offset + done;
  const ForeignCopy copied = request.opcode == Opcode::get ? read_foreign(parts_.pid, address, local, bytes)
                                                           : write_foreign(parts_.pid, address, local, bytes);
  if (copied.code == Errc::ok) return {};
  return {Way::refused, copied.code, copied.cause};
}

bool OutLink::reads_process() const noexcept {
  return gate_.load(std::memory_order_acquire) == Gate::open && parts_.cma;
}

Status OutLink::read_process(std::uint64_t address, std::span<std::byte> to) noexcept {
  if (local_->fork_guard.in_forked_child()) return {.code = Errc::forked};
  if (gate_.load(std::memory_order_acquire) != Gate::open) return shut_status();
  if (!parts_.cma) return {.code = Errc::unsupported};
  const ForeignCopy copied = read_foreign(parts_.pid, address, to.data(), to.size());
  local_->traffic->count(Opcode::get, 1, to.size());
  if (copied.code != Errc::ok) local_->traffic->count_failure(copied.code);
  return {.code = copied.code, .cause = copied.cause};
}

std::uint32_t OutLink::take_messages(std::span<const WorkRequest> requests, Status& status) noexcept {
  std::uint32_t taken = 0;
  const std::lock_guard lock(lock_);
  for (const WorkRequest& request : requests) {
    if (!rides_ring(request) || (taken > 0 && (request.flags & WorkRequest::kFence) != 0)) break;
    status.code = check_request(request, max_message_);
    if (status.ok()) status.code = push_message(request);
    if (!status.ok()) break;
    ++taken;
  }
  return taken;
}

Errc OutLink::push_message(const WorkRequest& request) noexcept {
  if (gate_.load(std::memory_order_relaxed) == Gate::shut) return shut_status().code;
  const bool message = request.opcode == Opcode::send;
  const auto bytes = static_cast<std::uint32_t>(message ? request.length : sizeof(NotifyBody));
  std::byte* at = forward_.reserve(bytes);
  if (at == nullptr) {
    if (!forward_.sane()) return Errc::protocol_error;
    stalled_ = true;
    forward_.ask_for_room();
    return Errc::again;
  }
  if (message) {
    copy_bytes(at, request.payload, request.length);
  } else {
    const NotifyBody body{.value = request.value};
    std::memcpy(at, &body, sizeof body);
  }
  forward_.commit(static_cast<std::uint8_t>(message ? FrameType::message : FrameType::notify), request.port);
  return Errc::ok;
}

Status OutLink::enqueue(const WorkRequest& request, Deadline deadline, std::uint64_t moved) noexcept {
  bool pushed = false;
  {
    const std::lock_guard lock(lock_);
    if (gate_.load(std::memory_order_relaxed) != Gate::open) return shut_status();
    if (operations_.full()) return {.code = Errc::again};
    bool sending = false;
    for (std::uint32_t id = operations_.front(); id != operations_.back(); ++id) {
      sending = sending || operations_[id].phase == Operation::Phase::sending;
    }
    Operation& operation = operations_.add(request, deadline);
    operation.moved = moved;
    open_operations_.fetch_add(1, std::memory_order_release);
    if (request.moves_memory() && request.local != nullptr) request.local->begin_use();
    if (operation.fenced()) {
      runnable_ = true;  // progress starts it
    } else {
      operation.phase = Operation::Phase::sending;
      // Pieces of one put stay together in the ring: the target applies one at a time.
      if (!sending) push(operation);
      pushed = operation.in_ring;
    }
  }
  if (pushed) ring_peer();
  local_->wake();  // our progress may sleep past the deadline of this one
  return {.code = kQueued};
}

}  // namespace fabric::shm
}  // namespace dtr::inline v0
