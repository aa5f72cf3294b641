// The life of the rails to one peer: made together with the peer, lost, fenced at both ends, made anew.
#include <algorithm>
#include <cstring>
#include <exception>

#include "dtr/base/bytes.hpp"
#include "dtr/base/log.hpp"
#include "dtr/fabric/verbs/link.hpp"

namespace dtr::inline v0 {
namespace fabric::verbs {

namespace {

constexpr std::int64_t kMillisecond = 1'000'000;
constexpr std::int64_t kFirstBackOff = 2 * kMillisecond;
constexpr std::int64_t kLongestBackOff = 1000 * kMillisecond;
constexpr std::int64_t kAnswerTime = 2000 * kMillisecond;  ///< to a connect; then it is asked again
constexpr std::int64_t kDrainTime = 1000 * kMillisecond;   ///< a device that returns nothing is not waited for longer

}  // namespace

void Link::introduce(Address address, std::vector<EarlyQueuePair> early) {
  if (!their_) {
    their_ = std::move(address);
    build_rails();
  }
  take_early(std::move(early));
}

void Link::build_rails() {
  const Address ours = hub_.own_address();
  std::vector<PortOffer> mine;
  std::vector<PortOffer> theirs;
  for (const PortAddress& port : ours.ports) mine.push_back(port.offer);
  for (const PortAddress& port : their_->ports) theirs.push_back(port.offer);
  const bool lower = hub_.context.identity.self < peer_;
  const auto pairs =
      lower ? pair_rails(mine, theirs, ours.host == their_->host) : pair_rails(theirs, mine, ours.host == their_->host);
  std::vector<std::unique_ptr<Rail>> rails;
  for (const RailPair& pair : pairs) {
    const std::size_t nic = lower ? pair.lower : pair.higher;
    const std::size_t port = lower ? pair.higher : pair.lower;
    rails.push_back(
        std::make_unique<Rail>(*this, static_cast<std::uint32_t>(rails.size()), nic, port, hub_.options.send_queue));
  }
  const std::size_t flights = std::max<std::size_t>(1, rails.size()) * hub_.options.send_queue;
  const std::lock_guard lock(lock_);
  again_data_ = FixedQueue<Flight>(2 * flights);
  again_messages_ = FixedQueue<Flight>(2 * flights);
  result_buffers_.reserve(kResults);
  rails_ = std::move(rails);
}

void Link::take_early(std::vector<EarlyQueuePair> early) {
  // The peer's half of the handshake has come with its address.
  for (const auto& rail : rails_) {
    const std::size_t place = hub_.context.identity.self * their_->ports.size() + rail->port;
    if (rail->nic >= early.size() || !early[rail->nic].queue_pair || place >= their_->early.size()) continue;
    const QueuePairName theirs = their_->early[place];
    const auto gids = gids_of(*rail);
    if (theirs.number == 0 || !gids) continue;
    rail->adopt(std::move(early[rail->nic]));
    wanted_ = true;
    if (auto done = rail->connect(their_->ports[rail->port], *gids, theirs, hub_.options.failure_detect); !done) {
      lose_unopened(*rail, done.error().to_string());
      continue;
    }
    open(*rail);
    say(*rail, ControlType::ready);  // and the control connection learns of the peer's end
  }
  for (std::size_t i = 0; i < early.size(); ++i) {
    if (early[i].queue_pair) hub_.nics[i]->drop_queue_pair(std::move(early[i].queue_pair));
  }
}

std::optional<GidChoice> Link::gids_of(const Rail& rail) const {
  return choose_gids(nic_of(rail).address().offer, their_->ports[rail.port].offer,
                     hub_.context.identity.host_id == their_->host, hub_.options.gid_index);
}

Rail* Link::rail_of(std::uint32_t queue_pair_number) noexcept {
  for (const auto& rail : rails_) {
    if (rail->queue_pair && rail->queue_pair->qp_num == queue_pair_number) return rail.get();
  }
  return nullptr;
}

void Link::say(Rail& rail, ControlType type, std::uint64_t received) {
  ControlMessage message{.type = type, .rail = rail.number, .epoch = rail.epoch, .received = received};
  ByteWriter out;
  if (type == ControlType::connect) {
    message.queue_pair = rail.queue_pair->qp_num;
    message.psn = rail.psn;
    out.value(message);
    const auto address = hub_.own_address().encode();
    for (const std::byte byte : address) out.value(byte);
  } else {
    out.value(message);
  }
  hub_.send_control(*this, out.take());
}

// --- up ---

void Link::begin(Rail& rail, std::uint32_t epoch) {
  rail.epoch = epoch;
  const std::uint32_t receives = their_->credits + kResults + kCreditMessages;
  auto made = rail.make(nic_of(rail), receives);
  rail.state = Rail::State::connecting;
  if (!made) {
    say(rail, ControlType::refuse);
    const Error error = std::move(made.error());
    lose_unopened(rail, error.message);
    if (error.code != Errc::resource_exhausted) return;
    ++shortages_;
    const std::lock_guard words(words_mutex_);
    shortage_ = error.message;
    return;
  }
  rail.answer_until = now_ns() + kAnswerTime;
  say(rail, ControlType::connect);
}

void Link::complete(Rail& rail, const ControlMessage& message) {
  const auto gids = gids_of(rail);
  if (!gids) return lose_unopened(rail, "no pair of GIDs reaches the peer");
  auto done = rail.connect(their_->ports[rail.port], *gids, {.number = message.queue_pair, .psn = message.psn},
                           hub_.options.failure_detect);
  if (!done) return lose_unopened(rail, done.error().to_string());
  rail.state = Rail::State::ready;
  rail.answer_until = now_ns() + kAnswerTime;
  say(rail, ControlType::ready);
  if (rail.peer_ready) open(rail);
}

void Link::open(Rail& rail) {
  while (result_buffers_.size() < kResults) {
    const std::uint32_t buffer = hub_.pool.take();
    if (buffer != MessagePool::kNone) {
      result_buffers_.push_back(buffer);
    } else if (auto grown = hub_.pool.grow(); !grown || !hub_.pool.has_free()) {
      return fault(rail, 0,
                   grown ? "no buffers for messages are left (verbs.message_pool_bytes)" : grown.error().message);
    }
  }
  const std::string way = nic_of(rail).name() + "-" + their_->ports[rail.port].name;
  DTR_LOG_INFO("rank ", peer_, ": verbs rail ", rail.number, " ", way, " is open (queue pair ", rail.queue_pair->qp_num,
               ", epoch ", rail.epoch, "): ", rail.gids);
  rail.answer_until = kNever;
  {
    const std::lock_guard words(words_mutex_);
    path_ = "verbs " + way + " " + rail.gids;
    shortage_.clear();
    shortages_ = 0;
  }
  Endings endings;
  {
    const std::lock_guard lock(lock_);
    rail.credit_limit = their_->credits;
    rail.state = Rail::State::open;
    rail.opened_at = now_ns();
    ++open_rails_;
    if (attached_.load(std::memory_order_relaxed) && end_code_ == Errc::ok &&
        state_.load(std::memory_order_relaxed) == ChannelState::connecting) {
      state_.store(ChannelState::open, std::memory_order_release);
    }
    pump(endings);
  }
  endings.deliver();
}

// --- down ---

void Link::lose_unopened(Rail& rail, const std::string& why) noexcept {
  rail.stop();
  rail.drop(nic_of(rail));
  rail.state = Rail::State::idle;
  rail.back_off = std::clamp(2 * rail.back_off, kFirstBackOff, kLongestBackOff);
  rail.retry_at = now_ns() + rail.back_off;
  rail.answer_until = kNever;
  look_again(rail.retry_at);
  note_fault(rail, why);
}

void Link::note_fault(const Rail& rail, const std::string& why) noexcept {
  try {
    const std::string words = nic_of(rail).name() + " rail " + std::to_string(rail.number) + ", epoch " +
                              std::to_string(rail.epoch) + ": " + why;
    DTR_LOG_INFO("rank ", peer_, ": verbs ", words);
    const std::lock_guard lock(words_mutex_);
    last_fault_ = words;
  } catch (const std::exception&) {
    // the code alone has to do
  }
}

void Link::fault(Rail& rail, std::int32_t cause, const std::string& why) noexcept {
  {
    const std::lock_guard lock(lock_);
    if (rail.state != Rail::State::open && rail.state != Rail::State::ready) return;
    if (rail.state == Rail::State::open) --open_rails_;
    rail.state = Rail::State::draining;
  }
  rail.stop();
  const std::int64_t now = now_ns();
  rail.drain_until = now + kDrainTime;
  rail.answer_until = kNever;
  if (open_rails_ == 0 && unreachable_since_ == kNever &&
      (cause == IBV_WC_RETRY_EXC_ERR || cause == IBV_WC_LOC_QP_OP_ERR || !nic_of(rail).active())) {
    unreachable_since_ = now;
  }
  note_fault(rail, why);
  look_again(0);
}

void Link::finish_drain(Rail& rail) {
  Nic& nic = nic_of(rail);
  nic.poll(1 << 16);  // what arrived before the end counts
  if (rail.state != Rail::State::draining) return;
  rail.drop(nic);
  {
    // No memory of ours is touched through it any more. Requests that have ended need not wait for the peer's word.
    const std::lock_guard lock(lock_);
    rail.state = Rail::State::drained;
    for (std::uint64_t at = rail.ring.done(); at != rail.ring.head(); ++at) {
      Flight& flight = rail.ring.at(at);
      const bool ours = flight.kind != Flight::Kind::nothing && flight.kind != Flight::Kind::result &&
                        flight.kind != Flight::Kind::credit;
      if (!ours || !operations_->by_number(flight.subject).told) continue;
      let_go(flight);
      flight.kind = Flight::Kind::nothing;
    }
    if (operations_ != nullptr) operations_->drop_settled();
  }
  say(rail, ControlType::down, rail.received);
}

void Link::finish_fence(Rail& rail) {
  // Both ends are drained. What the peer has received is over, the rest goes again.
  const std::uint64_t arrived = *rail.peer_received;
  bool lost_atomics = false;
  bool more = true;
  while (more) {
    Endings endings;
    {
      const std::lock_guard lock(lock_);
      while (rail.ring.done() != rail.ring.head() && endings.has_room()) {
        const Flight flight = rail.ring.at(rail.ring.done());
        rail.ring.retire();
        rail.bytes_under_way -= flight.bytes;
        const bool message = flight.order != 0;
        const auto behind = static_cast<std::int32_t>(static_cast<std::uint32_t>(arrived) - flight.order);
        if (message && behind >= 0) {
          landed(flight, endings);
        } else if (flight.kind == Flight::Kind::atomic) {
          lost_atomics = true;
          Operation& operation = operations_->by_number(flight.subject);
          --operation.flights;
          if (operation.told) {
            settle(operation);
          } else {
            tell(operation, {.code = Errc::device_error, .cause = kFateUnknown}, endings);
          }
        } else {
          send_again(flight);
        }
      }
      more = rail.ring.done() != rail.ring.head();
    }
    endings.deliver();
  }
  if (lost_atomics)
    DTR_LOG_WARN("rank ", peer_, ": atomics were under way on a lost rail; whether they were executed is unknown");
  rail.state = Rail::State::idle;
  const std::int64_t now = now_ns();
  rail.back_off = now - rail.opened_at > kLongestBackOff
                      ? kFirstBackOff
                      : std::clamp(2 * rail.back_off, kFirstBackOff, kLongestBackOff);
  rail.retry_at = now + rail.back_off;
  Endings endings;
  {
    const std::lock_guard lock(lock_);
    pump(endings);
  }
  endings.deliver();
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
  switch (message.type) {
    case ControlType::connect:
      wanted_ = true;
      if (rail.state == Rail::State::connecting && message.epoch == rail.epoch) return complete(rail, message);
      if (message.epoch <= rail.epoch) return;  // it will follow ours
      if (rail.state == Rail::State::connecting || (rail.state == Rail::State::ready && rail.ring.head() == 0)) {
        lose_unopened(rail, "the peer starts anew");
      }
      if (rail.state != Rail::State::idle) return give_up(Errc::protocol_error, "connects over an open queue pair");
      begin(rail, message.epoch);
      if (rail.state == Rail::State::connecting) complete(rail, message);
      return;
    case ControlType::ready:
      if (message.epoch != rail.epoch) return;
      rail.peer_ready = true;
      if (rail.state == Rail::State::ready) open(rail);
      return;
    case ControlType::down:
      if (message.epoch != rail.epoch) return;
      rail.peer_received = message.received;
      fault(rail, 0, "the peer's queue pair is down");
      if (rail.state == Rail::State::drained) finish_fence(rail);  // the peer may already connect anew
      look_again(0);
      return;
    case ControlType::refuse:
      if (message.epoch == rail.epoch && rail.state == Rail::State::connecting) {
        lose_unopened(rail, "the peer could not make a queue pair");
      }
      return;
  }
}

// --- time ---

int Link::drive_rail(Rail& rail, std::int64_t now) {
  switch (rail.state) {
    case Rail::State::idle:
      if (!wanted_ || over_ || !nic_of(rail).active()) return 0;
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
          lose_unopened(rail, "the peer does not answer");
        }
        return 1;
      }
      next_time_ = std::min(next_time_, rail.answer_until);
      return 0;
    case Rail::State::open:
      if (const int error = std::exchange(rail.refused, 0); error != 0) {
        fault(rail, error, "posting was refused: " + errno_error(error, "post_send").message);
        return 1;
      }
      return 0;
    case Rail::State::draining:
      if (rail.flushed < rail.ring.head() && now < rail.drain_until) {
        next_time_ = std::min(next_time_, now + kMillisecond);
        return 0;
      }
      finish_drain(rail);
      next_time_ = std::min(next_time_, now);
      return 1;
    case Rail::State::drained:
      if (!rail.peer_received) return 0;
      finish_fence(rail);
      next_time_ = std::min(next_time_, now);
      return 1;
  }
  return 0;
}

void Link::nic_changed(std::size_t nic, const Nic::Change& change) {
  for (const auto& rail : rails_) {
    if (rail->nic != nic) continue;
    if (change.fatal) fault(*rail, 0, "the device has failed");
    if (change.port_lost) fault(*rail, 0, "our port is down");
    if (change.port_back) rail->retry_at = 0;
    if (change.gids && rail->state == Rail::State::open) {
      const auto& gids = nic_of(*rail).address().offer.gids;
      const bool there = std::any_of(gids.begin(), gids.end(), [&](const GidEntry& entry) {
        return entry.gid == rail->our_gid.gid && entry.index == rail->our_gid.index;
      });
      if (!there) fault(*rail, 0, "our address " + to_string(rail->our_gid.gid) + " is gone");
    }
    const auto number = rail->queue_pair ? rail->queue_pair->qp_num : 0;
    for (const std::uint32_t lost : change.queue_pairs) {
      if (lost == number) fault(*rail, 0, "the device put the queue pair into error");
    }
  }
  look_again(0);
}

}  // namespace fabric::verbs
}  // namespace dtr::inline v0
