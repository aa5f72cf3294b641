// How operations end, other than by their messages.
#include <algorithm>
#include <utility>

#include "dtr/messaging/detail/core.hpp"
#include "dtr/messaging/detail/limits.hpp"

namespace dtr::inline v0 {

using namespace messaging;

void Messenger::Core::finish(Operation& operation) noexcept {
  end_lease(operation);
  if (operation.code != Errc::ok) {
    counts_.failed();
  } else if (operation.is_send) {
    counts_.sent(operation.bytes);
  } else {
    counts_.received(operation.carrier, operation.message.bytes);
  }
  operation.stage = Stage::ended;
  ++ended_now_;
  operation.ended.store(true, std::memory_order_release);
}

void Messenger::Core::end(Operation& operation, Errc code, std::string_view words) noexcept {
  if (operation.stage == Stage::ended || operation.stage == Stage::free) return;
  Peer* const peer = operation.any_rank && operation.stage == Stage::posted ? nullptr : peers_[operation.peer].get();
  switch (operation.stage) {
    case Stage::queued:
      peer->waiting.remove(operation);
      make_room(*peer);
      break;
    case Stage::offered: {
      --peer->offers;
      make_room(*peer);
      const Withdraw withdrawal{.head = {.kind = Kind::withdraw, .sequence = peer->next_out++}, .id = id_of(operation)};
      tell(*peer, &withdrawal, sizeof withdrawal);
      break;
    }
    case Stage::posted:
      (peer == nullptr ? posted_for_any_ : peer->posted).remove(operation);
      break;
    case Stage::moving:
      // The sender need not go on for nobody.
      if (!operation.is_send && operation.partner != 0 && code != Errc::truncated) {
        tell_done(*peer, operation.partner, Errc::cancelled);
      }
      break;
    default:
      break;
  }
  operation.code = code;
  try {
    operation.words = words;
  } catch (const std::exception&) {
    operation.words.clear();
  }
  finish(operation);
}

bool Messenger::Core::end_all(Errc code, std::string_view words) noexcept {
  bool all = true;
  for (std::uint32_t slot = 0; slot < operations_->size(); ++slot) {
    Operation& operation = *operations_->at(slot);
    if (operation.stage == Stage::free) continue;
    settle(operation);
    if (operation.pins == 0) end(operation, code, words);
    all = all && operation.pins == 0;
  }
  return all;
}

void Messenger::Core::end_expired(Deadline::Clock::time_point now) noexcept {
  earliest_ = Deadline::Clock::time_point::max();
  for (std::uint32_t slot = 0; slot < operations_->size(); ++slot) {
    Operation& operation = *operations_->at(slot);
    if (operation.stage == Stage::free || operation.stage == Stage::ended) continue;
    settle(operation);
    if (operation.stage == Stage::ended) continue;
    const auto deadline = operation.deadline.load(std::memory_order_relaxed);
    if (deadline > now || operation.pins > 0) {
      earliest_ = std::min(earliest_, deadline);
      continue;
    }
    try {
      end(operation, Errc::timed_out, late_words(operation));
    } catch (const std::exception&) {
      end(operation, Errc::timed_out, "not in time");
    }
  }
}

std::string Messenger::Core::late_words(const Operation& operation) const {
  switch (operation.stage) {
    case Stage::queued:
      return "the receiver has not asked for what was sent before, and has no room for more";
    case Stage::flying:
      return "it has not left; whether it comes to the receiver is unknown";
    case Stage::offered:
      return "the receiver has not taken these " + std::to_string(operation.bytes) + " bytes";
    case Stage::posted:
      return "no message with tag " + std::to_string(operation.tag) + " has come";
    default:
      return "the message was still coming in";
  }
}

/// Nothing of before counts any more between this Messenger and that of the peer. `memory_is_quiet`: it puts nothing
/// into our slots.
void Messenger::Core::forget(Peer& peer, Errc code, std::string_view words, bool memory_is_quiet) noexcept {
  for (std::uint32_t slot = 0; slot < operations_->size(); ++slot) {
    Operation& operation = *operations_->at(slot);
    if (operation.stage == Stage::free || operation.stage == Stage::ended) continue;
    const bool with_peer =
        operation.any_rank ? operation.stage == Stage::moving && operation.peer == peer.id : operation.peer == peer.id;
    if (!with_peer) continue;
    settle(operation);
    // Nobody there is to be told.
    if (operation.stage == Stage::offered) {
      --peer.offers;
      operation.stage = Stage::moving;
    }
    operation.partner = 0;
    if (operation.stage != Stage::flying) end(operation, code, words);
  }
  peer.largest_eager = peer.eager_to_unknown;
  peer.next_out = 0;
  peer.spent = peer.freed = 0;
  peer.offers = 0;
  peer.offered = peer.asked = 0;
  peer.takes.clear();
  peer.next_take = 0;
  peer.theirs.region = nullptr;
  peer.read = peer.leases = {};
  peer.theirs.filled = peer.theirs.freed = 0;
  peer.theirs.blocked = false;

  peer.next_in = 0;
  peer.early.clear();
  std::erase_if(peer.unexpected, [](const Unexpected& one) { return one.offer != 0; });
  for (Unexpected& kept : peer.unexpected) kept.left += std::exchange(kept.cost, 0);
  peer.left += peer.held;
  peer.offers_held = 0;
  peer.held = peer.received = peer.told = 0;
  peer.ours.schedule.clear();
  peer.ours.emptied = peer.ours.told = peer.ours.takes = 0;
  if (!memory_is_quiet) peer.ours.memory.abandon();
  peer.ours.memory.reset();
  peer.ours.arrived.clear();
}

bool Messenger::Core::take_bye(Peer& peer) {
  if (peer.left + peer.held > kLeft) return false;
  if (closing_) {
    peer.parted = true;
  } else {
    forget(peer, Errc::closed, "its messenger has ended", true);
  }
  const Head seen{.kind = Kind::bye_seen};
  tell(peer, &seen, sizeof seen, nullptr, true);
  peer.met = false;  // what comes next is of another Messenger
  return true;
}

void Messenger::Core::on_peer_down(fabric::PeerId id, const Error& error) noexcept {
  const Lock lock(mutex_);
  if (id >= peers_.size() || peers_[id] == nullptr) return;
  forget(*peers_[id], error.code, error.message, error.code == Errc::peer_left);
}

}  // namespace dtr::inline v0
