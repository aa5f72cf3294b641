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

fabric::Channel* Messenger::Core::make_channel(Peer& to) noexcept try {
  auto channel = fabric_.channel(to.id);
  if (channel) to.channel = *channel;
  return to.channel;
} catch (const std::exception&) {  // no memory for it
  return nullptr;
}

/// Past the queue of what waits for room, for it has a number; without a Completion, for it is over at once. False: it
/// has not gone.
bool Messenger::Core::post_now(Peer& to, std::span<const std::byte> packet) noexcept {
  fabric::Channel* const channel = to.channel != nullptr ? to.channel : make_channel(to);
  if (channel == nullptr) return false;
  to.met = true;
  const auto request = fabric::WorkRequest::send(port_, packet, nullptr);
  return channel->post({&request, 1}, never()).accepted == 1;
}

bool Messenger::Core::transmit(Peer& to, Operation& send) noexcept {
  if (send.bytes > to.largest_eager || cost_of(send.bytes) > kRoom - (to.spent - to.freed)) return offer(to, send);
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

bool Messenger::Core::offer(Peer& to, Operation& send) noexcept {
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

Result<MessageHandle> Messenger::Core::send(int rank, std::uint64_t tag, std::span<const std::byte> data,
                                            Deadline deadline) {
  if (!is_sound(rank, data, false)) return fail(why_unsound(rank, data, "send"));
  const Lock lock(mutex_);
  const auto id = static_cast<fabric::PeerId>(rank);
  Peer& to = peer(id);
  if (fabric_.peer_state(id) != Errc::ok) return fail(fabric_.peer_error(id, "send"));
  Operation* const operation = make(true, rank, tag, deadline);
  if (operation == nullptr) return fail(why_not_made(rank, "send"));
  operation->memory = const_cast<std::byte*>(data.data());
  operation->bytes = data.size();
  operation->message.bytes = data.size();
  if (!to.waiting.empty() || !transmit(to, *operation)) {
    operation->stage = Stage::queued;
    to.waiting.push(*operation);
  }
  return handle_of(*operation);
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
  for (Peer* each : known_) {
    if (std::exchange(each->has_room, false)) transmit_waiting(*each);
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
