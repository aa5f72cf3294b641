// Larger messages: the sender fills the receiver's slots piece by piece while the receiver empties them.
#include <algorithm>

#include "dtr/base/copy.hpp"
#include "dtr/base/log.hpp"
#include "dtr/messaging/detail/core.hpp"
#include "dtr/messaging/detail/limits.hpp"

namespace dtr::inline v0 {

using namespace messaging;

namespace {

constexpr auto kRetry = std::chrono::microseconds(200);
/// A peer's slots are mapped soon after they are known; if not, they are reached in another way.
constexpr auto kMapBound = std::chrono::milliseconds(100);
constexpr std::uint32_t kLookAtClock = 256;  ///< one look among so many
constexpr int kPiecesALook = 4;              ///< to one peer

}  // namespace

// --- the receiver's side ---

Result<void> Messenger::Core::open_slots(Peer& peer) {
  if (peer.ours.memory) return {};
  auto memory = runtime_.allocate(std::size_t{slot_count_} * slot_bytes_);
  if (!memory) return fail(std::move(memory.error()));
  peer.ours.arrived.assign(slot_count_, 0);
  peer.ours.memory = std::move(*memory);
  return {};
}

void Messenger::Core::on_notify(fabric::PeerId from, std::uint32_t value) noexcept {
  bool good = true;  // without slots, a piece of somebody who was forgotten meanwhile has nowhere to go
  {
    Lock lock(mutex_);
    if (Peer* peer = peers_[from].get(); peer != nullptr && peer->ours.memory && !closing_) {
      OurSlots& ours = peer->ours;
      const auto ahead = (value - static_cast<std::uint32_t>(ours.emptied)) & PieceWord::kNumbers;
      const auto slot = (ours.emptied + ahead) % slot_count_;
      good = ahead < slot_count_ && ours.arrived[slot] == 0 && !ours.schedule.empty();
      if (good) {
        ours.arrived[slot] = (value & PieceWord::kStop) != 0 ? kStopped : kPiece;
        empty_slots(lock, *peer);
      }
    }
  }
  if (!good) fabric_.declare_down(from, Errc::protocol_error, "it filled a slot that is not its to fill");
}

void Messenger::Core::empty_slots(Lock& lock, Peer& peer) {
  OurSlots& ours = peer.ours;
  while (!ours.schedule.empty()) {
    const auto slot = static_cast<std::uint32_t>(ours.emptied % slot_count_);
    const std::uint8_t what = std::exchange(ours.arrived[slot], std::uint8_t{0});
    if (what == 0) return;
    Incoming& message = ours.schedule.front();
    Operation* recv = operations_->find(handle_of(message.operation));
    if (recv != nullptr && recv->stage == Stage::ended) recv = nullptr;
    bool last = what == kStopped;
    if (last) {
      if (recv != nullptr) end(*recv, Errc::cancelled, "the sender has given up");
    } else {
      const std::uint64_t bytes = std::min<std::uint64_t>(message.piece, message.bytes - message.moved);
      if (recv != nullptr) {
        ++recv->pins;
        lock.unlock();
        copy_large(recv->memory + message.moved, ours.memory.data() + std::size_t{slot} * slot_bytes_, bytes);
        lock.lock();
        --recv->pins;
      }
      message.moved += bytes;
      last = message.moved == message.bytes;
      if (last && recv != nullptr && recv->stage != Stage::ended) finish(*recv);
    }
    if (last) ours.schedule.pop_front();
    ++ours.emptied;
    if (ours.emptied - ours.told >= std::max(1U, slot_count_ / 4)) tell_credit(peer);
  }
}

// --- the sender's side ---

bool Messenger::Core::may_fill(const Peer& peer) const noexcept {
  return !peer.takes.empty() && peer.takes.front().number == peer.next_take &&
         peer.theirs.filled - peer.theirs.freed < peer.theirs.count;
}

int Messenger::Core::fill(Lock& lock, Peer& peer) {
  TheirSlots& theirs = peer.theirs;
  theirs.blocked = false;
  int filled = 0;
  while (filled < kPiecesALook && may_fill(peer)) {
    const Outgoing message = peer.takes.front();
    Operation* send = operations_->find(handle_of(message.operation));
    if (send != nullptr && send->stage == Stage::ended) send = nullptr;
    const auto bytes =
        static_cast<std::uint32_t>(std::min<std::uint64_t>(message.piece, message.bytes - message.moved));
    const fabric::Status put = put_piece(lock, peer, send, message.moved, bytes);
    if (put.code == Errc::again) {
      theirs.blocked = true;
      break;
    }
    ++filled;
    if (peer.takes.empty()) break;  // forgotten meanwhile
    if (!put.ok()) {
      // Nothing has gone with this number, which the peer waits for.
      if (send != nullptr && send->stage != Stage::ended) end(*send, put.code, {});
      static_cast<void>(put_piece(lock, peer, nullptr, 0, 0));
    }
    ++theirs.filled;
    peer.takes.front().moved += bytes;
    const bool last = send == nullptr || !put.ok() || message.moved + bytes == message.bytes;
    if (!last) continue;
    if (send != nullptr && send->stage != Stage::ended) finish(*send);
    peer.takes.pop_front();
    ++peer.next_take;
  }
  return filled;
}

/// Is the peer's memory mapped here, so that a put is a copy and over when the call returns?
bool Messenger::Core::put_is_immediate(Peer& peer) noexcept {
  return peer.shares_memory && peer.theirs.region->mapped.load(std::memory_order_acquire) != nullptr;
}

/// A piece of `send` into the next slot; null: the word that no more comes. `again`: not now.
fabric::Status Messenger::Core::put_piece(Lock& lock, Peer& peer, Operation* send, std::uint64_t offset,
                                          std::uint32_t bytes) noexcept try {
  TheirSlots& theirs = peer.theirs;
  const auto number = static_cast<std::uint32_t>(theirs.filled) & PieceWord::kNumbers;
  const auto slot = static_cast<std::uint32_t>(theirs.filled % theirs.count);
  const fabric::WorkRequest::RemoteRange to{theirs.region, theirs.offset + std::uint64_t{slot} * theirs.bytes};
  const Deadline deadline(std::chrono::hours(24));
  fabric::Completion& done = theirs.puts[slot];
  if (!done.done() || !done.status().ok()) return {.code = Errc::again};  // failed: progress() sees to it
  if (send == nullptr) {
    const auto stop = fabric::WorkRequest::notify(port_, number | PieceWord::kStop, &done);
    fabric_.submit(peer.id, {&stop, 1}, deadline);
    return {};
  }
  if (put_is_immediate(peer)) {
    auto channel = fabric_.channel(peer.id);
    if (!channel) return {.code = channel.error().code};
    ++send->pins;
    lock.unlock();
    Region source({send->memory + offset, bytes});
    const auto put = fabric::WorkRequest::put_notify({&source, 0}, to, bytes, port_, number, nullptr);
    const fabric::PostResult posted = (*channel)->post({&put, 1}, deadline);
    lock.lock();
    --send->pins;
    return posted.accepted == 1 ? fabric::Status{} : posted.status;
  }
  if (peer.shares_memory && Deadline::Clock::now() - theirs.since < kMapBound) return {.code = Errc::again};
  if (!theirs.copies) {
    auto copies = runtime_.allocate(std::size_t{theirs.count} * theirs.bytes);
    if (!copies) return {.code = copies.error().code};
    theirs.copies = std::move(*copies);
  }
  std::byte* const copy = theirs.copies.data() + std::size_t{slot} * theirs.bytes;
  ++send->pins;
  lock.unlock();
  copy_large(copy, send->memory + offset, bytes);
  lock.lock();
  --send->pins;
  if (peer.takes.empty()) return {};  // forgotten meanwhile
  const auto put = fabric::WorkRequest::put_notify(
      {theirs.copies.region(), theirs.copies.offset() + std::uint64_t{slot} * theirs.bytes}, to, bytes, port_, number,
      &done);
  fabric_.submit(peer.id, {&put, 1}, deadline);
  return {};
} catch (const std::exception&) {  // no memory; thrown before anything has begun
  return {.code = Errc::resource_exhausted};
}

/// The fabric may still read them: then they are nobody else's until the Runtime ends.
void Messenger::Core::drop_copies(TheirSlots& theirs) noexcept {
  const auto all = [&](auto what) {
    return theirs.puts == nullptr || std::all_of(theirs.puts.get(), theirs.puts.get() + theirs.put_count, what);
  };
  if (!all(at_rest)) theirs.copies.abandon();
  if (!all([](const fabric::Completion& put) { return put.done(); })) static_cast<void>(theirs.puts.release());
  theirs.copies.reset();
  theirs.puts.reset();
}

/// Whose sends have ended already: they were copied, and nobody else is told.
std::optional<Messenger::Core::Broken> Messenger::Core::first_broken() const noexcept {
  for (const Peer* each : known_) {
    if (each->theirs.region == nullptr || fabric_.peer_state(each->id) != Errc::ok) continue;
    for (std::uint32_t i = 0; i < each->theirs.put_count; ++i) {
      const fabric::Status status = each->theirs.puts[i].status();
      if (!status.ok()) return Broken{.peer = each->id, .code = status.code};
    }
  }
  return std::nullopt;
}

int Messenger::Core::progress(int /*budget*/) noexcept {
  const bool look_at_clock = ++looks_ % kLookAtClock == 0;
  if (!busy_.load(std::memory_order_acquire) && !look_at_clock) return 0;
  int handled = 0;
  try {
    Lock lock(mutex_);
    transmit_where_room();
    for (std::size_t i = 0; i < active_.size();) {
      handled += fill(lock, *active_[i]);
      if (!active_[i]->takes.empty()) {
        ++i;
        continue;
      }
      active_[i] = active_.back();
      active_.pop_back();
    }
    handled += read_on(lock);
    busy_.store(!active_.empty() || !readings_.empty() || has_room_, std::memory_order_relaxed);
    if (look_at_clock && earliest_ != Deadline::Clock::time_point::max()) {
      const auto now = Deadline::Clock::now();
      if (now >= earliest_) end_expired(now);
    }
    const auto broken = look_at_clock && !closing_ ? first_broken() : std::nullopt;
    handled += std::exchange(ended_now_, 0);
    lock.unlock();
    if (broken) fabric_.declare_down(broken->peer, broken->code, "a piece of a message to it is lost");
  } catch (const std::exception& e) {
    DTR_LOG_ERROR("messages: ", e.what());
  }
  return handled;
}

bool Messenger::Core::prepare_sleep() noexcept {
  looks_ = kLookAtClock - 1;  // the next look is after the sleep
  if (!busy_.load(std::memory_order_acquire)) return true;
  const Lock lock(mutex_);
  if (has_room_ || !readings_.empty()) return false;
  return std::none_of(active_.begin(), active_.end(),
                      [&](const Peer* peer) { return !peer->theirs.blocked && may_fill(*peer); });
}

Deadline::Clock::time_point Messenger::Core::next_deadline() const noexcept {
  const Lock lock(mutex_);
  const bool blocked =
      std::any_of(active_.begin(), active_.end(), [](const Peer* peer) { return peer->theirs.blocked; });
  return blocked ? Deadline::Clock::now() + kRetry : earliest_;
}

}  // namespace dtr::inline v0
