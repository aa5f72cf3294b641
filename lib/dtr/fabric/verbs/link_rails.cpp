// Rails are lost: drained at both ends, and what did not arrive goes again. See wire.hpp for what the two ends say.
#include <algorithm>
#include <exception>
#include <utility>

#include "dtr/base/log.hpp"
#include "dtr/fabric/verbs/link.hpp"

namespace dtr::inline v0 {
namespace fabric::verbs {

namespace {

constexpr std::int64_t kMillisecond = 1'000'000;
constexpr std::int64_t kFirstBackOff = 2 * kMillisecond;
constexpr std::int64_t kLongestBackOff = 1000 * kMillisecond;
constexpr std::int64_t kDrainTime = 1000 * kMillisecond;  ///< a device that returns nothing is not waited for longer
/// For a device that does not say when the last receive has completed (IBV_EVENT_QP_LAST_WQE_REACHED).
constexpr std::int64_t kReceiveTime = 10 * kMillisecond;

}  // namespace

void Link::become(Rail& rail, Rail::State next) noexcept {
  if (rail.state == Rail::State::open) --open_rails_;
  if (next == Rail::State::open) ++open_rails_;
  rail.state = next;
  credits_due_ = true;  // only a usable rail gives back
}

void Link::note_fault(const Rail& rail, std::string_view why) noexcept {
  try {
    const std::string words = nic_of(rail).name() + " rail " + std::to_string(rail.number) + ", epoch " +
                              std::to_string(rail.epoch) + ": " + std::string(why);
    DTR_LOG_INFO("rank ", peer_, ": verbs ", words);
    keep_words(last_fault_, words);
  } catch (const std::exception&) {
    keep_words(last_fault_, why);
  }
}

void Link::fault(Rail& rail, std::int32_t status, std::string_view why) noexcept {
  if (rail.state != Rail::State::open && rail.state != Rail::State::ready) return;
  {
    const std::lock_guard lock(lock_);
    become(rail, Rail::State::draining);
  }
  rail.stop();
  const std::int64_t now = now_ns();
  rail.drain_until = now + kDrainTime;
  rail.receives_until = now + kReceiveTime;
  rail.answer_until = kNever;
  if (open_rails_ == 0 && unreachable_since_ == kNever &&
      (status == IBV_WC_RETRY_EXC_ERR || status == IBV_WC_LOC_QP_OP_ERR || !nic_of(rail).active())) {
    unreachable_since_ = now;
  }
  note_fault(rail, why);
  hub_.call_at(0);
}

void Link::finish_drain(Rail& rail) {
  Nic& nic = nic_of(rail);
  nic.poll(1 << 16);  // what arrived before the end counts
  if (rail.state != Rail::State::draining) return;
  rail.drop(nic);
  {
    // No memory of ours is touched through it any more. Requests that have ended need not wait for the peer's word.
    const std::lock_guard lock(lock_);
    become(rail, Rail::State::drained);
    drop_told(rail);
    if (operations_ != nullptr) operations_->drop_settled();
  }
  say(rail, ControlType::down, rail.received);
}

void Link::finish_fence(Rail& rail) {
  // Both ends are drained. What the peer has received is over, the rest goes again.
  const auto arrived = static_cast<std::uint32_t>(*rail.peer_received);
  bool lost_atomics = false;
  bool more = true;
  while (more) {
    Endings endings;
    {
      const std::lock_guard lock(lock_);
      while (!rail.ring.empty() && endings.has_room()) {
        const Flight flight = rail.ring.at(rail.ring.done());
        rail.ring.retire();
        const bool has_arrived = flight.order != 0 && static_cast<std::int32_t>(arrived - flight.order) >= 0;
        if (has_arrived) {
          landed(flight, endings);
        } else if (flight.kind == Flight::Kind::atomic) {
          lost_atomics = true;
          let_go(flight);
          Operation& operation = operations_->by_number(flight.subject);
          if (!operation.told) tell(operation, {.code = Errc::device_error, .cause = kFateUnknown}, endings);
        } else {
          send_again(flight);
        }
      }
      more = !rail.ring.empty();
      if (!more) {
        rail.used = false;  // what it has brought is seen by the peer, which has drained its end
        become(rail, Rail::State::idle);
      }
    }
    endings.deliver();
  }
  if (lost_atomics) {
    DTR_LOG_WARN("rank ", peer_, ": atomics were under way on a lost rail; whether they were executed is unknown");
  }
  const std::int64_t now = now_ns();
  rail.back_off = now - rail.opened_at > kLongestBackOff
                      ? kFirstBackOff
                      : std::clamp(2 * rail.back_off, kFirstBackOff, kLongestBackOff);
  rail.retry_at = now + rail.back_off;
  hub_.call_at(0);  // the next look sends what waits, and makes the rail anew
}

// --- what the peer says ---

void Link::on_control(const ControlMessage& message, std::span<const std::byte> rest) {
  if (over_) return;
  if (message.type == ControlType::connect) {
    auto address = Address::decode(rest);
    if (!address) return give_up(Errc::protocol_error, address.error().message);
    if (!their_) {
      introduce(std::move(*address), {});
    } else if (address->ports.size() == their_->ports.size()) {
      their_->ports = std::move(address->ports);  // its GIDs may be new
    } else {
      return give_up(Errc::protocol_error, "its ports are not those that it announced");
    }
  }
  if (message.rail >= rails_.size()) {
    if (rails_.empty()) return;  // nothing has come of it here; the peer finds out by itself
    return give_up(Errc::protocol_error, "a rail that is not there");
  }
  Rail& rail = *rails_[message.rail];
  if (message.type == ControlType::connect) return on_connect(rail, message);
  if (rail.next_connect && rail.next_connect->epoch == message.epoch) {
    if (message.type == ControlType::refuse) rail.next_connect.reset();
    return;
  }
  if (message.epoch != rail.epoch) return;
  switch (message.type) {
    case ControlType::connect:
      return;
    case ControlType::ready:
      rail.peer_ready = true;
      if (rail.state == Rail::State::ready) open(rail);
      return;
    case ControlType::down:
      return peer_has_got(rail, message.received, "the peer's queue pair is down");
    case ControlType::refuse:
      if (rail.state == Rail::State::connecting || rail.state == Rail::State::ready) {
        return lose_unopened(rail, "the peer could not make a queue pair");
      }
      return peer_has_got(rail, 0, "the peer could not use its queue pair");
  }
}

void Link::peer_has_got(Rail& rail, std::uint64_t received, std::string_view why) {
  rail.peer_received = received;
  fault(rail, 0, why);
  if (rail.state == Rail::State::drained) finish_fence(rail);
  hub_.call_at(0);
}

// --- time ---

int Link::drive_rail(Rail& rail, std::int64_t now) {
  switch (rail.state) {
    case Rail::State::idle:
      if (!wanted_ || over_) return 0;
      if (rail.next_connect) {
        on_connect(rail, *std::exchange(rail.next_connect, std::nullopt));
        return 1;
      }
      if (!nic_of(rail).active()) return 0;
      if (now < rail.retry_at) {
        next_time_ = std::min(next_time_, rail.retry_at);
        return 0;
      }
      begin(rail, rail.epoch + 1);
      return 1;
    case Rail::State::connecting:
    case Rail::State::ready:
      if (now >= rail.answer_until) {
        if (rail.state == Rail::State::ready) {
          fault(rail, 0, "the peer does not answer");  // it may have sent something already, which is to be counted
        } else {
          refuse(rail, "the peer does not answer");
        }
        return 1;
      }
      next_time_ = std::min(next_time_, rail.answer_until);
      return 0;
    case Rail::State::open: {
      int error = 0;
      {
        const std::lock_guard lock(lock_);
        error = rail.refused;
      }
      if (error == 0) return 0;
      fault(rail, 0, "posting was refused: " + errno_error(error, "post_send").message);
      return 1;
    }
    case Rail::State::draining:
      if (!rail.at_rest(now)) {
        next_time_ = std::min(next_time_, now + kMillisecond);
        return 0;
      }
      finish_drain(rail);
      next_time_ = std::min(next_time_, now);
      return 1;
    case Rail::State::drained:
      if (!rail.peer_received) return 0;
      finish_fence(rail);
      return 1;
  }
  return 0;
}

void Link::nic_changed(std::size_t nic, const Nic::Event& event) noexcept {
  using Kind = Nic::Event::Kind;
  for (const auto& rail : rails_) {
    if (rail->nic != nic) continue;
    const bool this_one = rail->queue_pair && rail->queue_pair->qp_num == event.queue_pair;
    switch (event.kind) {
      case Kind::port_lost:
        fault(*rail, 0, "our port is down");
        break;
      case Kind::port_back:
        rail->retry_at = 0;
        break;
      case Kind::address:
        if (!nic_of(*rail).has(rail->our_gid, rail->our_lid)) fault(*rail, 0, "our address is gone");
        break;
      case Kind::fatal:
        fault(*rail, 0, "the device has failed");
        break;
      case Kind::queue_pair:
        if (this_one) fault(*rail, 0, "the device put the queue pair into error");
        break;
      case Kind::drained:
        if (this_one) rail->last_receive = true;
        break;
    }
  }
  hub_.call_at(0);
}

}  // namespace fabric::verbs
}  // namespace dtr::inline v0
