// From the device's completions to the ends of requests.
#include <algorithm>
#include <utility>

#include "dtr/fabric/verbs/link.hpp"

namespace dtr::inline v0 {
namespace fabric::verbs {

namespace {

/// The request itself is at fault, not the way to the peer: it would fail again.
bool is_about_the_request(ibv_wc_status status) noexcept {
  switch (status) {
    case IBV_WC_LOC_LEN_ERR:
    case IBV_WC_LOC_PROT_ERR:
    case IBV_WC_REM_ACCESS_ERR:
    case IBV_WC_REM_INV_REQ_ERR:
    case IBV_WC_REM_OP_ERR:
      return true;
    default:
      return false;
  }
}

}  // namespace

void Link::on_sent(Rail& rail, const ibv_wc& completion) noexcept {
  const bool good = completion.status == IBV_WC_SUCCESS;
  // All before this one have ended well, unless another has failed before. What comes back after that stays where it
  // is until both ends are known to be drained.
  const bool first_error = !good && !std::exchange(rail.errored, rail.errored || !good);
  const std::uint64_t until = completion.wr_id + (good ? 1 : 0);
  bool more = good || first_error;
  while (more) {
    Endings endings;
    {
      const std::lock_guard lock(lock_);
      while (rail.ring.done() < until && !rail.ring.empty() && endings.has_room()) {
        const Flight flight = rail.ring.at(rail.ring.done());
        rail.ring.retire();
        rail.bytes_under_way -= flight.bytes;
        if (!landed_alone(flight, endings)) landed(flight, endings);
      }
      more = rail.ring.done() < until && !rail.ring.empty();
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
  if (is_about_the_request(completion.status)) blame(rail, completion);
  fault(rail, completion.status, to_words(completion.status));
}

void Link::blame(Rail& rail, const ibv_wc& completion) noexcept {
  Endings endings;
  {
    const std::lock_guard lock(lock_);
    if (completion.wr_id < rail.ring.done() || completion.wr_id >= rail.ring.head()) return;
    Flight& flight = rail.ring.at(completion.wr_id);
    if (!flight.is_of_request()) return;
    Operation& operation = operations_->by_number(flight.subject);
    // It is not sent again, and the device is through with it.
    if (flight.kind == Flight::Kind::request && std::exchange(operation.asking, false)) --asked_;
    let_go(flight);
    flight.kind = Flight::Kind::nothing;
    if (operation.told) return;
    // The bounds and rights in the key were checked before: it is the key itself that the target does not know.
    const Errc code = completion.status == IBV_WC_LOC_PROT_ERR     ? Errc::not_registered
                      : completion.status == IBV_WC_REM_ACCESS_ERR ? Errc::revoked
                                                                   : Errc::device_error;
    // Its other pieces, if there are any, may be on other rails.
    const bool alone = operation.flights == 0;
    tell(operation, {.code = code, .quiesced = alone, .fenced = alone, .cause = completion.status}, endings);
    drop_told();
  }
  endings.deliver();
}

bool Link::landed_alone(const Flight& flight, Endings& endings) noexcept {
  if (flight.kind != Flight::Kind::slice || closing_) return false;
  Operation& operation = operations_->by_number(flight.subject);
  if (operation.flights != 1 || operation.told || !operation.posted || operation.notify_late) return false;
  operation.flights = 0;
  operation.told = true;
  endings.add(operation.request.completion, {});
  operation.holds = false;
  operation.request.local->end_use();
  return true;
}

void Link::landed(const Flight& flight, Endings& endings) noexcept {
  if (!flight.is_of_request()) return let_go(flight);
  Operation& operation = operations_->by_number(flight.subject);
  --operation.flights;
  if (operation.told) return settle(operation);
  if (operation.flights > 0 || !operation.posted || operation.asking) return;
  if (operation.notify_late) {
    const auto behind = static_cast<std::uint32_t>(flight.subject - static_cast<std::uint32_t>(operations_->tail()));
    return queue(late_, operations_->tail() + behind);
  }
  tell(operation, {}, endings);
}

void Link::let_go(const Flight& flight) noexcept {
  switch (flight.kind) {
    case Flight::Kind::nothing:
      return;
    case Flight::Kind::result:
    case Flight::Kind::credit:
      return reserve_.push_back(flight.subject);  // room was made with the reserve
    default: {
      Operation& operation = operations_->by_number(flight.subject);
      --operation.flights;
      if (operation.told) settle(operation);
    }
  }
}

void Link::tell(Operation& operation, Status status, Endings& endings) noexcept {
  operation.told = true;
  if (!status.ok()) hub_.context.traffic->count_failure(status.code);
  if (!status.ok() && operation.request.completion != nullptr) {
    operation.request.completion->note_failure(status);  // before anything that is fenced behind it can start
  }
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
    give_back(std::exchange(operation.buffer, MessagePool::kNone));
  }
  if (std::exchange(operation.holds, false)) operation.request.local->end_use();
  if (closing_) hub_.call_at(0);  // it may have been the last one
}

void Link::give_back(std::uint32_t buffer) noexcept {
  if (hub_.pool.give(buffer)) hub_.call_at(0);  // other links too may have waited for it
}

}  // namespace fabric::verbs
}  // namespace dtr::inline v0
