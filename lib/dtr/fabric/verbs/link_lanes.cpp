// Which request goes next, and on which rail. Two lanes, so that a peer that does not take its messages holds up
// nothing else.
#include <algorithm>
#include <cstring>

#include "dtr/fabric/checks.hpp"
#include "dtr/fabric/verbs/link.hpp"

namespace dtr::inline v0 {
namespace fabric::verbs {

namespace {

constexpr std::uint32_t kMaxSlice = 4U << 20;  ///< of a rail that is alone

/// How far one work request can go from there, for the memory's sake.
std::uint64_t left_of_piece(const WorkRequest& request, std::uint64_t offset) noexcept {
  return std::min(request.local->key().left_of_piece(request.local_offset + offset),
                  request.remote->key.left_of_piece(request.remote_offset + offset));
}

}  // namespace

void Link::pump(Endings& endings) noexcept {
  if (open_rails_ == 0) return;
  const Step step = nothing_waits() ? Step::done : run_lanes(endings);
  ring();
  if (operations_ != nullptr) operations_->drop_settled();
  if (step == Step::full) hub_.call_at(0);
}

bool Link::nothing_waits() const noexcept {
  const bool queues_empty =
      results_.empty() && again_data_.empty() && again_messages_.empty() && late_.empty() && held_.empty();
  if (!queues_empty || credits_due_) return false;
  return operations_ == nullptr || (data_cursor_ == operations_->head() && message_cursor_ == operations_->head());
}

void Link::ring() noexcept {
  for (const auto& rail : rails_) {
    if (!rail->ring.staged() || !rail->usable()) continue;
    const int error = rail->ring.ring(nic_of(*rail).api(), rail->queue_pair.get());
    if (error == 0) continue;
    // What the device did not take was never under way: it goes again at once. The queue pair is renewed, for its
    // count of messages is wrong now.
    rail->refused = error;
    for (std::uint64_t at = rail->ring.withdrawn(); at != rail->ring.head(); ++at) send_again(rail->ring.at(at));
    rail->ring.withdraw();
    hub_.call_at(0);
  }
}

Link::Step Link::run_lanes(Endings& endings) noexcept {
  while (!results_.empty() && fly_result(results_.front())) results_.pop();
  return_credits();
  while (!again_data_.empty() && fly_again(again_data_.front())) again_data_.pop();
  while (!again_messages_.empty() && fly_again(again_messages_.front())) again_messages_.pop();
  if (operations_ == nullptr) return Step::done;

  while (again_messages_.empty() && !late_.empty()) {
    const std::uint64_t position = late_.front();
    if (!is_over(position)) {
      Operation& operation = operations_->at(position);
      if (advance_notify(operation, static_cast<std::uint32_t>(position)) != Step::done) break;
      operation.notify_late = false;
    }
    late_.pop();
  }
  const Step held = run_held(endings);
  const Step data = again_data_.empty() ? run_lane(data_cursor_, false, endings) : Step::blocked;
  const Step messages = again_messages_.empty() ? run_lane(message_cursor_, true, endings) : Step::blocked;
  const bool full = held == Step::full || data == Step::full || messages == Step::full;
  return full ? Step::full : Step::done;
}

Link::Step Link::run_held(Endings& endings) noexcept {
  for (; !held_.empty(); held_.pop()) {
    const std::uint64_t position = held_.front();
    if (is_over(position)) continue;
    if (position != operations_->first_untold()) return Step::done;
    Operation& operation = operations_->at(position);
    if (!operation.touched && is_in_vain(operation.request)) {
      if (!endings.has_room()) return Step::full;
      tell(operation, {.code = Errc::cancelled}, endings);
    } else if (const Step step = advance(position, endings); step != Step::done) {
      return step;
    }
  }
  return Step::done;
}

Link::Step Link::run_lane(std::uint64_t& cursor, bool credits, Endings& endings) noexcept {
  cursor = std::max(cursor, operations_->tail());
  for (; cursor != operations_->head(); ++cursor) {
    const Operation& operation = operations_->at(cursor);
    if (operation.told || operation.posted || rides_credits(operation) != credits) continue;
    if (operation.is_held()) {
      if (credits) return Step::done;  // the messages behind it wait too: they keep their order
      continue;
    }
    if (const Step step = advance(cursor, endings); step != Step::done) return step;
  }
  return Step::done;
}

bool Link::rides_credits(const Operation& operation) const noexcept {
  const WorkRequest& request = operation.request;
  if (request.is_atomic()) return request.remote->key.atomic_home == AtomicHome::cpu;
  if (request.opcode == Opcode::put_notify) {
    if (request.length > hub_.options.slice_bytes) return false;
    return request.length == 0 || request.length <= left_of_piece(request, 0);
  }
  return request.opcode == Opcode::send;
}

// --- rails ---

Rail* Link::nearest_rail(const WorkRequest& request) noexcept {
  // Those near the memory; the others only while none of these is usable.
  const Region* region = request.opcode == Opcode::flush ? nullptr : request.local;
  std::uint32_t near = region == nullptr ? ~0U : hub_.registrations.near(*region);
  const auto is_near = [&](const Rail& rail) { return (near >> rail.nic & 1U) != 0; };
  if (std::none_of(rails_.begin(), rails_.end(), [&](const auto& rail) { return rail->usable() && is_near(*rail); })) {
    near = ~0U;
  }
  Rail* best = nullptr;
  for (const auto& rail : rails_) {
    if (!rail->usable() || !rail->ring.has_room() || !is_near(*rail)) continue;
    if (best == nullptr || rail->bytes_under_way < best->bytes_under_way) best = rail.get();
  }
  return best;
}

Rail* Link::atomic_rail() noexcept {
  // All go through the owner's first NIC: what two NICs do to one word is not atomic.
  for (const auto& rail : rails_) {
    if (rail->port == 0 && rail->usable() && rail->ring.has_room()) return rail.get();
  }
  return nullptr;
}

Rail* Link::message_rail(bool spends) noexcept {
  // One carries all, as long as it stands. Another one takes over when both ends have drained it, and so the peer has
  // taken what it brought: thus messages keep their order.
  if (message_rail_ != nullptr && message_rail_->in_doubt()) return nullptr;
  if (message_rail_ == nullptr || !message_rail_->usable()) {
    const auto first = std::find_if(rails_.begin(), rails_.end(), [](const auto& rail) { return rail->usable(); });
    message_rail_ = first == rails_.end() ? nullptr : first->get();
  }
  if (message_rail_ == nullptr || !message_rail_->ring.has_room()) return nullptr;
  return !spends || message_rail_->credits() > 0 ? message_rail_ : nullptr;
}

// --- operations ---

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

Link::Step Link::advance_data(Operation& operation, std::uint32_t number) noexcept {
  const std::uint64_t bytes = operation.request.length;
  while (operation.started < bytes) {
    Rail* rail = data_rail(operation.request);
    if (rail == nullptr) return Step::blocked;
    const std::uint64_t slice = open_rails_ > 1 ? hub_.options.slice_bytes : kMaxSlice;
    const std::uint64_t most = std::min(
        {slice, std::uint64_t{nic_of(*rail).max_message()}, left_of_piece(operation.request, operation.started)});
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
  const RemoteKey& key = request.remote->key;
  if (key.atomic_home == AtomicHome::device) {
    Rail* rail = atomic_rail();
    if (rail == nullptr) return Step::blocked;
    return fly(*rail, {.subject = number, .kind = Flight::Kind::atomic, .bytes = 8}) ? Step::done : Step::blocked;
  }
  Rail* rail = asked_ < kResults ? message_rail(true) : nullptr;
  if (rail == nullptr) return Step::blocked;
  if (operation.buffer == MessagePool::kNone) operation.buffer = take_buffer();
  if (operation.buffer == MessagePool::kNone) return Step::blocked;
  const bool swap = request.opcode == Opcode::compare_swap;
  const MessageHeader header{.type = MessageType::atomic};
  const AtomicBody body{.slot = key.slot,
                        .generation = key.generation,
                        .secret = key.secret,
                        .offset = request.remote_offset,
                        .operand = request.operand,
                        .compare = swap ? request.compare : 0,
                        .operation = number,
                        .is_swap = swap ? 1U : 0U};
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
    if (!rail->used) continue;
    // On a lost one, nothing is sure before both ends have drained it.
    if (!rail->usable() || !fly(*rail, {.subject = number, .kind = Flight::Kind::flush, .bytes = 8})) {
      return Step::blocked;
    }
    rail->used = false;
  }
  if (operation.flights == 0) {
    if (!endings.has_room()) return Step::full;
    tell(operation, {}, endings);
    return Step::done;
  }
  operation.posted = true;
  return Step::done;
}

}  // namespace fabric::verbs
}  // namespace dtr::inline v0
