// What goes out: small messages at once, larger ones as an offer, and the words between two Messengers.
#include <cstring>
#include <utility>

#include "dtr/messaging/detail/core.hpp"
#include "dtr/messaging/detail/limits.hpp"

namespace dtr::inline v0 {

using namespace messaging;

namespace {

/// Words between Messengers are never given up while the peer lives.
const Deadline& never() noexcept {
  static const Deadline far(std::chrono::hours(24 * 365));
  return far;
}

}  // namespace

void Messenger::Core::tell(Peer& to, const void* message, std::size_t bytes, fabric::Completion* done,
                           bool fenced) noexcept {
  to.met = true;
  auto request = fabric::WorkRequest::send(port_, {static_cast<const std::byte*>(message), bytes}, done);
  if (fenced) request = request.fenced();
  fabric_.submit(to.id, {&request, 1}, never());
}

/// What has the number before `next_out`. False: it could not even be kept, and the next one has that number, for which
/// the peer waits.
bool Messenger::Core::tell_numbered(Peer& to, const void* message, std::size_t bytes,
                                    fabric::Completion& done) noexcept {
  tell(to, message, bytes, &done);
  const bool kept = !done.done() || done.status().ok();
  if (!kept) --to.next_out;
  return kept;
}

/// Past the queue of what waits for room, for it has a number; without a Completion, for it is over at once. False: it
/// has not gone.
bool Messenger::Core::post_now(Peer& to, std::span<const std::byte> packet) noexcept try {
  if (to.channel == nullptr) {
    auto channel = fabric_.channel(to.id);
    if (!channel) return false;
    to.channel = *channel;
  }
  to.met = true;
  const auto request = fabric::WorkRequest::send(port_, packet, nullptr);
  const fabric::PostResult posted = to.channel->post({&request, 1}, never());
  return posted.accepted == 1;
} catch (const std::exception&) {  // no memory for a channel
  return false;
}

bool Messenger::Core::transmit(Peer& to, Operation& send) noexcept {
  const bool small = send.bytes <= largest_eager(*to.rows) && cost_of(send.bytes) <= kRoom - (to.spent - to.freed);
  if (small && sizeof(Eager) + send.bytes <= packet_.size()) {
    const Eager head{.head = {.kind = Kind::eager, .sequence = to.next_out++}, .tag = send.tag};
    std::memcpy(packet_.data(), &head, sizeof head);
    if (send.bytes > 0) std::memcpy(packet_.data() + sizeof head, send.memory, send.bytes);
    to.spent += cost_of(send.bytes);
    send.stage = Stage::flying;
    const std::span<const std::byte> packet(packet_.data(), sizeof head + send.bytes);
    if (post_now(to, packet)) {
      finish(send);
      return true;
    }
    if (!tell_numbered(to, packet.data(), packet.size(), send.completion)) to.spent -= cost_of(send.bytes);
    send.carried.store(true, std::memory_order_release);
    if (send.completion.done()) settle(send);
    return true;
  }
  if (to.offers >= kOffers) return false;
  ++to.offers;
  ++to.offered;
  struct {
    Offer offer;
    Source source;
  } words{.offer = {.head = {.kind = Kind::offer, .sequence = to.next_out++},
                    .tag = send.tag,
                    .bytes = send.bytes,
                    .id = id_of(send)},
          .source = {}};
  const bool lent = lend(to, send, words.source);
  send.stage = Stage::offered;
  static_cast<void>(tell_numbered(to, &words, lent ? sizeof words : sizeof words.offer, send.completion));
  if (send.completion.done()) settle(send);
  return true;
}

void Messenger::Core::transmit_waiting(Peer& to) noexcept {
  while (Operation* send = to.waiting.first()) {
    to.waiting.remove(*send);
    if (transmit(to, *send)) continue;
    to.waiting.push_front(*send);
    return;
  }
}

void Messenger::Core::make_room(Peer& to) noexcept {
  if (to.waiting.empty()) return;
  to.has_room = has_room_ = true;
  busy_.store(true, std::memory_order_release);
  fabric_.progress().wake();
}

void Messenger::Core::transmit_where_room() noexcept {
  if (!std::exchange(has_room_, false)) return;
  for (const auto& each : peers_) {
    if (each != nullptr && std::exchange(each->has_room, false)) transmit_waiting(*each);
  }
}

void Messenger::Core::tell_done(Peer& to, std::uint64_t offer, Errc code) noexcept {
  const Done done{.head = {.kind = Kind::done}, .id = offer, .code = static_cast<std::int64_t>(code)};
  tell(to, &done, sizeof done);
}

void Messenger::Core::tell_credit(Peer& to) noexcept {
  to.told = to.received;
  to.ours.told = to.ours.emptied;
  const Credit credit{.head = {.kind = Kind::credit}, .freed = to.received, .pieces = to.ours.emptied};
  tell(to, &credit, sizeof credit);
}

}  // namespace dtr::inline v0
