// Rails come up: made together with the peer, agreed upon over the control connection, made anew after a loss.
#include <algorithm>

#include "dtr/base/bytes.hpp"
#include "dtr/base/log.hpp"
#include "dtr/fabric/verbs/link.hpp"

namespace dtr::inline v0 {
namespace fabric::verbs {

namespace {

constexpr std::int64_t kFirstBackOff = 2'000'000;
constexpr std::int64_t kLongestBackOff = 1'000'000'000;
constexpr std::int64_t kAnswerTime = 2'000'000'000;  ///< to a connect; then it is asked again

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
  FixedQueue<Flight> data(2 * flights);
  FixedQueue<Flight> messages(2 * flights);
  std::vector<std::uint32_t> reserve;
  reserve.reserve(kResults);
  const std::lock_guard lock(lock_);
  again_data_ = std::move(data);
  again_messages_ = std::move(messages);
  reserve_ = std::move(reserve);
  rails_ = std::move(rails);
  max_message_ = std::min(ours.message_bytes, their_->message_bytes);
}

void Link::take_early(std::vector<EarlyQueuePair> early) {
  // The peer's half of the handshake has come with its address.
  for (const auto& rail : rails_) {
    const std::size_t place = hub_.context.identity.self * their_->ports.size() + rail->port;
    if (rail->nic >= early.size() || !early[rail->nic].queue_pair || place >= their_->early.size()) continue;
    const QueuePairName theirs = their_->early[place];
    if (theirs.number == 0) continue;  // it made none either
    rail->adopt(std::move(early[rail->nic]));
    {
      const std::lock_guard lock(lock_);
      rail->start_counting();
      become(*rail, Rail::State::connecting);
    }
    wanted_ = true;
    const auto gids = gids_of(*rail);
    if (!gids) {
      refuse(*rail, "no pair of GIDs reaches the peer");
    } else if (auto filled = fill_reserve(); !filled) {
      refuse(*rail, filled.error().message);
    } else if (auto done = rail->connect(their_->ports[rail->port], *gids, theirs, hub_.options.failure_detect);
               !done) {
      refuse(*rail, done.error().to_string());
    } else {
      // What is sent before the peer's queue pair takes requests is lost, and goes again after a time-out only.
      {
        const std::lock_guard lock(lock_);
        become(*rail, Rail::State::ready);
      }
      rail->answer_until = kNever;  // a peer may take its time to start; the control connection learns of its end
      say(*rail, ControlType::ready);
    }
  }
}

std::optional<GidChoice> Link::gids_of(const Rail& rail) const {
  const Nic& nic = nic_of(rail);
  return choose_gids(nic.address().offer, their_->ports[rail.port].offer, hub_.context.identity.host_id == their_->host,
                     hub_.options.gid_index);
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

// --- the steps ---

void Link::begin(Rail& rail, std::uint32_t epoch) {
  rail.epoch = epoch;
  {
    const std::lock_guard lock(lock_);
    rail.start_counting();
    become(rail, Rail::State::connecting);
  }
  if (!nic_of(rail).active()) return refuse(rail, "our port is down");
  auto made = fill_reserve();
  if (made) made = rail.make(nic_of(rail), hub_.options.credits + kResults + kCreditMessages);
  if (!made) {
    if (made.error().code == Errc::resource_exhausted) {
      ++shortages_;
      keep_words(shortage_, made.error().message);
    }
    return refuse(rail, made.error().message);
  }
  rail.answer_until = now_ns() + kAnswerTime;
  say(rail, ControlType::connect);
}

void Link::complete(Rail& rail, const ControlMessage& message) {
  const auto gids = gids_of(rail);
  if (!gids) return refuse(rail, "no pair of GIDs reaches the peer");
  auto done = rail.connect(their_->ports[rail.port], *gids, {.number = message.queue_pair, .psn = message.psn},
                           hub_.options.failure_detect);
  if (!done) return refuse(rail, done.error().to_string());
  {
    const std::lock_guard lock(lock_);
    become(rail, Rail::State::ready);
  }
  rail.answer_until = now_ns() + kAnswerTime;
  say(rail, ControlType::ready);
  if (rail.peer_ready) open(rail);
}

void Link::on_connect(Rail& rail, const ControlMessage& message) {
  wanted_ = true;
  if (rail.state == Rail::State::connecting && message.epoch == rail.epoch) return complete(rail, message);
  if (message.epoch <= rail.epoch) return;  // it has our refusal, or will have it
  switch (rail.state) {
    case Rail::State::connecting:
    case Rail::State::ready:  // the peer has not opened this epoch: it would have had to say `down`
      lose_unopened(rail, "the peer starts anew");
      break;
    case Rail::State::idle:
      break;
    case Rail::State::open:
    case Rail::State::draining:
    case Rail::State::drained:
      if (!rail.peer_received) return give_up(Errc::protocol_error, "connects over an open queue pair");
      rail.next_connect = message;  // it need not wait for our end of this epoch, which it has refused
      return;
  }
  begin(rail, message.epoch);
  if (rail.state == Rail::State::connecting) complete(rail, message);
}

void Link::open(Rail& rail) {
  const std::string way = nic_of(rail).name() + "-" + their_->ports[rail.port].name;
  DTR_LOG_INFO("rank ", peer_, ": verbs rail ", rail.number, " ", way, " is open (queue pair ", rail.queue_pair->qp_num,
               ", epoch ", rail.epoch, "): ", rail.gids);
  keep_words(path_, "verbs " + way + " " + rail.gids);
  keep_words(shortage_, {});
  shortages_ = 0;
  rail.answer_until = kNever;
  rail.opened_at = now_ns();
  Endings endings;
  {
    const std::lock_guard lock(lock_);
    rail.credit_limit = their_->credits;
    become(rail, Rail::State::open);
    if (attached_.load(std::memory_order_relaxed) && end_code_ == Errc::ok &&
        state_.load(std::memory_order_relaxed) == ChannelState::connecting) {
      state_.store(ChannelState::open, std::memory_order_release);
    }
    if (unreachable_since_ != kNever) probe(rail);
    pump(endings);
  }
  endings.deliver();
}

Result<void> Link::fill_reserve() {
  while (reserved_ < kResults) {
    const std::uint32_t buffer = hub_.pool.take();
    if (buffer != MessagePool::kNone) {
      const std::lock_guard lock(lock_);
      reserve_.push_back(buffer);
      ++reserved_;
    } else if (auto grown = hub_.pool.grow(); !grown) {
      return grown;
    }
  }
  return {};
}

void Link::refuse(Rail& rail, std::string_view why) {
  say(rail, ControlType::refuse);
  lose_unopened(rail, why);
}

void Link::lose_unopened(Rail& rail, std::string_view why) noexcept {
  rail.stop();
  rail.drop(nic_of(rail));
  {
    const std::lock_guard lock(lock_);
    become(rail, Rail::State::idle);
  }
  rail.back_off = std::clamp(2 * rail.back_off, kFirstBackOff, kLongestBackOff);
  rail.retry_at = now_ns() + rail.back_off;
  rail.answer_until = kNever;
  hub_.call_at(rail.retry_at);
  note_fault(rail, why);
}

}  // namespace fabric::verbs
}  // namespace dtr::inline v0
