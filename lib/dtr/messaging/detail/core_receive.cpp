// What peers say: everything is checked, for it may be nonsense.
#include <algorithm>
#include <cstring>

#include "dtr/base/log.hpp"
#include "dtr/messaging/detail/core.hpp"
#include "dtr/messaging/detail/limits.hpp"

namespace dtr::inline v0 {

using namespace messaging;

namespace {

/// Within a rank, before somebody looks at the clock.
constexpr std::uint64_t kCopiedAtOnce = 4 << 20;

/// What is kept for the next message that nobody has asked for: 256 KiB at most.
constexpr std::size_t kSpares = 256;
constexpr std::size_t kSparePayload = 1024;
constexpr std::size_t kSlack = 64;  ///< more than the message has, of which its sender is not charged

bool is_valid(const Source& source, std::uint64_t bytes) noexcept {
  const auto inside = [](const RemoteKey& key, std::uint64_t offset, std::uint64_t length) {
    return offset <= key.length && length <= key.length - offset;
  };
  return source.lease_offset % sizeof(std::uint64_t) == 0 &&
         inside(source.lease, source.lease_offset, sizeof(std::uint64_t)) &&
         (source.mappable == 0 || inside(source.memory, source.offset, bytes));
}

}  // namespace

void Messenger::Core::on_message(fabric::PeerId from, std::span<const std::byte> payload) noexcept {
  bool good = false;
  try {
    Lock lock(mutex_);
    Peer& peer = this->peer(from);
    good = handle(lock, peer, payload);
  } catch (const std::exception& e) {
    // What is lost cannot be made good: the messages of this peer would come in a wrong order.
    DTR_LOG_ERROR("messages of rank ", from, " cannot be kept: ", e.what());
    return fabric_.declare_down(from, Errc::resource_exhausted, "its messages cannot be kept");
  }
  if (!good) fabric_.declare_down(from, Errc::protocol_error, "it sent a malformed message to the messenger");
}

bool Messenger::Core::handle(Lock& lock, Peer& peer, std::span<const std::byte> message) {
  const auto head = front<Head>(message);
  if (!head) return false;
  if (head->kind != Kind::bye && head->kind != Kind::bye_seen) {
    if (closing_) return true;  // it came too late for anybody
    peer.met = true;
    peer.largest_eager = peer.eager_to_known;
  }
  switch (head->kind) {
    case Kind::eager:
    case Kind::offer:
    case Kind::withdraw:
      return handle_in_order(lock, peer, *head, message);
    case Kind::take:
      return take_take(peer, message);
    case Kind::done:
      return take_done(peer, message);
    case Kind::credit:
      return take_credit(peer, message);
    case Kind::bye:
      if (message.size() != sizeof(Head)) return false;
      return take_bye(peer);
    case Kind::bye_seen:
      if (peer.said_bye) peer.parted = true;
      return message.size() == sizeof(Head);
  }
  return false;
}

/// Transports with several lanes may let one message overtake another.
bool Messenger::Core::handle_in_order(Lock& lock, Peer& peer, const Head& head, std::span<const std::byte> message) {
  if (head.sequence != peer.next_in) {
    if (head.sequence - peer.next_in > kEarly) return false;
    return peer.early.try_emplace(head.sequence, message.begin(), message.end()).second;
  }
  ++peer.next_in;
  return handle_sequenced(lock, peer, head.kind, message) && (peer.early.empty() || handle_early(lock, peer));
}

bool Messenger::Core::handle_early(Lock& lock, Peer& peer) {
  for (auto next = peer.early.find(peer.next_in); next != peer.early.end(); next = peer.early.find(peer.next_in)) {
    const std::vector<std::byte> late = std::move(next->second);
    peer.early.erase(next);
    ++peer.next_in;
    if (!handle_sequenced(lock, peer, front<Head>(late)->kind, late)) return false;
  }
  return true;
}

bool Messenger::Core::handle_sequenced(Lock& lock, Peer& peer, Kind kind, std::span<const std::byte> message) {
  switch (kind) {
    case Kind::eager:
      return take_eager(peer, message);
    case Kind::offer:
      return take_offer(lock, peer, message);
    default:
      return take_withdrawal(peer, message);
  }
}

// --- messages and offers ---

Messenger::Core::Operation* Messenger::Core::match(Peer& peer, std::uint64_t tag) noexcept {
  const auto first_fit = [&](const OperationList& list) {
    Operation* at = list.first();
    while (at != nullptr && (at->tag & at->mask) != (tag & at->mask)) at = at->next;
    return at;
  };
  Operation* named = first_fit(peer.posted);
  Operation* any = first_fit(posted_for_any_);
  Operation* chosen = named == nullptr || (any != nullptr && any->order < named->order) ? any : named;
  if (chosen != nullptr) (chosen->any_rank ? posted_for_any_ : peer.posted).remove(*chosen);
  return chosen;
}

void Messenger::Core::deliver(Operation& recv, Peer& peer, std::uint64_t tag, std::span<const std::byte> payload,
                              std::uint64_t cost) noexcept {
  recv.peer = peer.id;
  recv.message = {.source = static_cast<int>(peer.id), .tag = tag, .bytes = payload.size()};
  recv.stage = Stage::moving;
  peer.received += cost;
  if (payload.size() > recv.bytes) {
    end(recv, Errc::truncated, too_long(payload.size(), recv.bytes));
  } else {
    recv.carrier = Carrier::eager;
    if (!payload.empty()) std::memcpy(recv.memory, payload.data(), payload.size());
    finish(recv);
  }
  if (peer.received - peer.told >= kRoom / 4) tell_credit(peer);
}

Messenger::Core::Unexpected& Messenger::Core::keep(Peer& peer, std::uint64_t tag, std::uint64_t bytes,
                                                   std::span<const std::byte> payload) {
  if (spare_.empty()) spare_.emplace_back();
  Unexpected& kept = spare_.front();
  if (kept.payload.capacity() > payload.size() + kSlack) kept.payload = std::vector<std::byte>();
  kept.payload.assign(payload.begin(), payload.end());
  kept.arrival = arrivals_++;
  kept.tag = tag;
  kept.bytes = bytes;
  kept.offer = kept.cost = kept.left = 0;
  peer.unexpected.splice(peer.unexpected.end(), spare_, spare_.begin());
  return kept;
}

void Messenger::Core::drop(Peer& peer, std::list<Unexpected>::iterator message) noexcept {
  if (spare_.size() == kSpares || message->payload.capacity() > kSparePayload) {
    peer.unexpected.erase(message);
    return;
  }
  message->source.reset();
  spare_.splice(spare_.begin(), peer.unexpected, message);
}

bool Messenger::Core::take_eager(Peer& peer, std::span<const std::byte> message) {
  const auto eager = front<Eager>(message);
  if (!eager) return false;
  const auto payload = message.subspan(sizeof(Eager));
  const std::uint64_t cost = cost_of(payload.size());
  if (Operation* recv = match(peer, eager->tag); recv != nullptr) {
    deliver(*recv, peer, eager->tag, payload, cost);
    return true;
  }
  if (peer.held + cost > kRoom) return false;
  keep(peer, eager->tag, payload.size(), payload).cost = cost;
  peer.held += cost;
  return true;
}

bool Messenger::Core::take_offer(Lock& lock, Peer& peer, std::span<const std::byte> message) {
  const auto offer = front<Offer>(message);
  if (!offer || offer->id == 0) return false;
  const auto behind = message.subspan(sizeof(Offer));
  const auto source = whole<Source>(behind);
  if (!behind.empty() && (!source || !is_valid(*source, offer->bytes))) return false;
  if (Operation* recv = match(peer, offer->tag); recv != nullptr) {
    accept(lock, peer, *recv, *offer, source ? &*source : nullptr);
    return true;
  }
  if (peer.offers_held == kOffers) return false;
  auto lies_at = source ? std::make_unique<Source>(*source) : nullptr;
  Unexpected& kept = keep(peer, offer->tag, offer->bytes, {});
  kept.offer = offer->id;
  kept.source = std::move(lies_at);
  ++peer.offers_held;
  return true;
}

bool Messenger::Core::take_withdrawal(Peer& peer, std::span<const std::byte> message) {
  const auto withdrawal = whole<Withdraw>(message);
  if (!withdrawal) return false;
  const auto offered = std::find_if(peer.unexpected.begin(), peer.unexpected.end(),
                                    [&](const Unexpected& one) { return one.offer == withdrawal->id; });
  if (offered == peer.unexpected.end() || withdrawal->id == 0) return true;  // it has been asked for meanwhile
  drop(peer, offered);
  --peer.offers_held;
  return true;
}

void Messenger::Core::accept(Lock& lock, Peer& peer, Operation& recv, const Offer& offer, const Source* source) {
  const std::uint64_t bytes = offer.bytes;
  recv.peer = peer.id;
  recv.message = {.source = static_cast<int>(peer.id), .tag = offer.tag, .bytes = bytes};
  recv.stage = Stage::moving;
  if (bytes > recv.bytes) {
    end(recv, Errc::truncated, too_long(bytes, recv.bytes));
    return tell_done(peer, offer.id, Errc::ok);
  }
  recv.carrier = Carrier::slots;
  if (bytes == 0) {
    finish(recv);
    return tell_done(peer, offer.id, Errc::ok);
  }
  if (peer.id == fabric_.self()) return copy_from_self(lock, recv, offer.id);
  if (source != nullptr && begin_reading(peer, recv, offer, *source)) return;
  ask_through_slots(peer, recv, offer);
}

void Messenger::Core::ask_through_slots(Peer& peer, Operation& recv, const Offer& offer) {
  recv.carrier = Carrier::slots;
  recv.partner = 0;
  if (auto opened = open_slots(peer); !opened) {
    end(recv, opened.error().code, opened.error().message);
    return tell_done(peer, offer.id, opened.error().code);
  }
  const std::uint32_t piece = std::clamp(row_for(*peer.rows, offer.bytes).piece, std::uint32_t{1}, slot_bytes_);
  OurSlots& ours = peer.ours;
  ours.schedule.push_back({.operation = id_of(recv), .bytes = offer.bytes, .moved = 0, .piece = piece});
  recv.partner = offer.id;
  const Take take{.head = {.kind = Kind::take},
                  .id = offer.id,
                  .number = ours.takes++,
                  .bytes = offer.bytes,
                  .offset = ours.memory.offset(),
                  .key = ours.memory.region()->key(),
                  .slots = slot_count_,
                  .slot_bytes = slot_bytes_,
                  .piece = piece,
                  .reserved = 0};
  tell(peer, &take, sizeof take);
}

void Messenger::Core::copy_from_self(Lock& lock, Operation& recv, std::uint64_t offer) {
  Operation* const send = operations_->find(handle_of(offer));
  if (send == nullptr || send->stage != Stage::offered) {
    return end(recv, Errc::cancelled, "the sender has given up");
  }
  recv.carrier = Carrier::self;
  Peer& self = *peers_[fabric_.self()];
  --self.offers;
  make_room(self);
  send->stage = Stage::moving;
  ++send->pins;
  ++recv.pins;
  bool late = false;
  bool unwanted = false;
  for (std::uint64_t moved = 0; moved < send->bytes && !late && !unwanted && !closing_;) {
    const std::uint64_t bytes = std::min(kCopiedAtOnce, send->bytes - moved);
    lock.unlock();
    std::memmove(recv.memory + moved, send->memory + moved, bytes);
    lock.lock();
    moved += bytes;
    late = moved < send->bytes && Deadline::Clock::now() >= std::min(send->deadline.load(), recv.deadline.load());
    unwanted = send->unwanted || recv.unwanted;
    if (moved < send->bytes) continue;
    finish(*send);
    finish(recv);
  }
  --send->pins;
  --recv.pins;
  if (unwanted && recv.stage != Stage::ended) {
    end(*send, Errc::cancelled, recv.unwanted ? "the receiver has given up" : "by this rank");
    end(recv, Errc::cancelled, recv.unwanted ? "by this rank" : "the sender has given up");
  } else if (late) {
    const bool receiver_is = recv.deadline.load() <= send->deadline.load();
    end(receiver_is ? recv : *send, Errc::timed_out, "the message was still being copied");
    end(receiver_is ? *send : recv, Errc::cancelled,
        receiver_is ? "the receiver has given up" : "the sender has given up");
  } else {  // they have not ended only if this Messenger does
    end(*send, Errc::closed, "the messenger has ended");
    end(recv, Errc::closed, "the messenger has ended");
  }
}

// --- answers ---

bool Messenger::Core::take_take(Peer& peer, std::span<const std::byte> message) {
  const auto take = whole<Take>(message);
  if (!take || take->slots == 0 || take->slots > kMostSlots || take->slot_bytes == 0 ||
      take->slot_bytes > kLargestSlot || take->piece == 0 || take->piece > take->slot_bytes || take->bytes == 0) {
    return false;
  }
  const std::uint64_t room = std::uint64_t{take->slots} * take->slot_bytes;
  if (take->offset > take->key.length || room > take->key.length - take->offset) return false;
  if (peer.asked == peer.offered) return false;
  ++peer.asked;
  TheirSlots& theirs = peer.theirs;
  if (theirs.region == nullptr) {
    auto region = fabric_.import(peer.id, take->key);
    if (!region) return false;
    drop_copies(theirs);
    theirs.puts = std::make_unique<fabric::Completion[]>(take->slots);
    theirs.put_count = take->slots;
    theirs.region = *region;
    theirs.key = take->key;
    theirs.offset = take->offset;
    theirs.count = take->slots;
    theirs.bytes = take->slot_bytes;
    theirs.since = Deadline::Clock::now();
  } else if (take->offset != theirs.offset || take->slots != theirs.count || take->slot_bytes != theirs.bytes ||
             std::memcmp(&take->key, &theirs.key, sizeof theirs.key) != 0) {
    return false;
  }
  Operation* send = operations_->find(handle_of(take->id));
  if (send != nullptr && (!send->is_send || send->peer != peer.id)) return false;
  if (send != nullptr && send->stage != Stage::ended) {
    if (send->stage != Stage::offered || send->bytes != take->bytes) return false;
    send->stage = Stage::moving;
    --peer.offers;
    transmit_waiting(peer);
  }
  const auto after = std::find_if(peer.takes.rbegin(), peer.takes.rend(),
                                  [&](const Outgoing& other) { return other.number <= take->number; });
  if (take->number < peer.next_take || (after != peer.takes.rend() && after->number == take->number)) return false;
  if (peer.takes.empty()) {
    active_.push_back(&peer);
    busy_.store(true, std::memory_order_release);
  }
  peer.takes.insert(
      after.base(),
      {.number = take->number, .operation = take->id, .bytes = take->bytes, .moved = 0, .piece = take->piece});
  return true;
}

bool Messenger::Core::take_done(Peer& peer, std::span<const std::byte> message) {
  const auto done = whole<Done>(message);
  if (!done || done->code > 0 || done->code < static_cast<std::int64_t>(Errc::stale_handle)) return false;
  Operation* send = operations_->find(handle_of(done->id));
  if (send == nullptr) return true;  // it has ended meanwhile
  if (!send->is_send || send->peer != peer.id) return false;
  if (send->stage == Stage::ended) return true;
  if (send->stage != Stage::offered && send->stage != Stage::moving) return false;
  if (send->stage == Stage::offered) {
    --peer.offers;
    send->stage = Stage::moving;  // nobody has to be told
  }
  const auto code = static_cast<Errc>(done->code);
  if (code == Errc::ok) {
    finish(*send);
  } else {
    end(*send, code, "the receiver has given up");
  }
  transmit_waiting(peer);
  return true;
}

bool Messenger::Core::take_credit(Peer& peer, std::span<const std::byte> message) {
  const auto credit = whole<Credit>(message);
  if (!credit || credit->freed > peer.spent || credit->pieces > peer.theirs.filled) return false;
  peer.freed = std::max(peer.freed, credit->freed);
  peer.theirs.freed = std::max(peer.theirs.freed, credit->pieces);
  transmit_waiting(peer);
  return true;
}

}  // namespace dtr::inline v0
