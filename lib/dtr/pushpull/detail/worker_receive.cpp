// What servers say, and how rounds end.
#include <algorithm>
#include <string>

#include "dtr/base/clock.hpp"
#include "dtr/base/log.hpp"
#include "dtr/pushpull/detail/no_throw.hpp"
#include "dtr/pushpull/detail/worker_core.hpp"

namespace dtr::inline v0 {
namespace pushpull {

namespace {

constexpr const char* kOperation = "push_pull";

}  // namespace

// --- progress ---

void WorkerCore::on_notify(fabric::PeerId from, std::uint32_t) noexcept {
  if_possible([&] { DTR_LOG_WARN("push_pull: a notification from rank ", from, " has no meaning"); });
}

void WorkerCore::on_message(fabric::PeerId from, std::span<const std::byte> payload) noexcept {
  Link* const link = link_of(from);
  const auto head = front<Head>(payload);
  if (link == nullptr || !head) {
    if_possible([&] { DTR_LOG_WARN("push_pull: a malformed message from rank ", from, " is dropped"); });
    return;
  }
  if (head->epoch != epoch_) return;  // for an earlier Worker
  try {
    Outgoing out;
    if (head->kind == Kind::bound) {
      take_bound(*link, payload);
    } else if (head->kind == Kind::lend) {
      take_lend(*link, payload);
    } else {
      const std::lock_guard lock(mutex_);
      take(*link, *head, payload, out);
    }
    post(out);
    pump(*link);
  } catch (const std::exception&) {
    bail_out(*link, {.code = Errc::resource_exhausted, .peer = static_cast<int>(from)});
  }
}

void WorkerCore::on_peer_down(fabric::PeerId peer, const Error& error) noexcept {
  Error mine = copy_of(error);
  if_possible([&] { mine.operation = kOperation; });
  const std::lock_guard lock(mutex_);
  if (Link* const link = link_of(peer)) fail_link(*link, std::move(mine), true);
}

/// With the lock.
void WorkerCore::take(Link& link, const Head& head, std::span<const std::byte> payload, Outgoing& out) {
  if (head.kind == Kind::parted) return fence(link);
  if (link.state == Link::State::failed) {
    if (head.kind == Kind::broken) fence(link);
    return;
  }
  switch (head.kind) {
    case Kind::welcome:
      return take_welcome(link, payload, out);
    case Kind::bind_failed:
      return take_bind_failed(link, payload);
    case Kind::known:
      return take_known(link, payload);
    case Kind::response:
      return take_response(link, payload, out);
    case Kind::muted:
      return take_muted(link, payload);
    case Kind::release:
      return take_release(link, payload, out);
    case Kind::rebind:
      return take_rebind(link, payload, out);
    case Kind::broken:
      return take_broken(link, payload, out);
    default:
      DTR_LOG_WARN("push_pull: rank ", link.peer, " sent a message of unknown kind ", static_cast<int>(head.kind));
  }
}

// --- messages ---

void WorkerCore::take_welcome(Link& link, std::span<const std::byte> payload, Outgoing& out) {
  const auto welcome = front<Welcome>(payload);
  if (!welcome || welcome->slots == 0 || link.state != Link::State::greeting) return;
  link.slots = welcome->slots;
  link.in_place = welcome->in_place != 0 && link.peer == static_cast<fabric::PeerId>(runtime_.rank());
  link.state = Link::State::open;
  for (WorkerFragment* fragment = link.queue_front; fragment != nullptr; fragment = fragment->next) {
    ask_for_needs(*fragment, out);
  }
}

/// Takes the lock itself: importing is a call to the fabric.
void WorkerCore::take_bound(Link& link, std::span<const std::byte> payload) {
  const auto bound = front<Bound>(payload);
  if (!bound) return;
  auto memory = fabric_.import(link.peer, bound->memory);
  const std::lock_guard lock(mutex_);
  if (link.state == Link::State::failed) return;
  const auto found = link.bindings.find({bound->key, bound->offset});
  if (found == link.bindings.end()) return;
  Binding& binding = found->second;
  binding.asked = false;
  if (!memory) {
    binding.refused = memory.error();
    binding.refused->operation = kOperation;
    return;
  }
  binding.slots.push_back({.id = bound->slot, .memory = *memory, .offset = bound->slot_offset});
}

/// As take_bound.
void WorkerCore::take_lend(Link& link, std::span<const std::byte> payload) {
  constexpr std::uint32_t kMostRegions = 1 << 16;
  const auto lend = front<Lend>(payload);
  if (!lend || lend->region >= kMostRegions) return;
  auto memory = fabric_.import(link.peer, lend->memory);
  const std::lock_guard lock(mutex_);
  if (link.lent.size() <= lend->region) link.lent.resize(lend->region + 1, nullptr);
  link.lent[lend->region] = memory ? *memory : nullptr;  // what cannot be reached fails when it is offered
}

void WorkerCore::take_bind_failed(Link& link, std::span<const std::byte> payload) {
  const auto refusal = front<BindFailed>(payload);
  if (!refusal) return;
  const auto found = link.bindings.find({refusal->key, refusal->offset});
  if (found == link.bindings.end()) return;
  found->second.asked = false;
  // Without a second slot it is slower; without any it fails.
  found->second.enough = true;
  if (found->second.usable() > 0) return;
  found->second.refused =
      Error{.code = static_cast<Errc>(refusal->code),
            .message = "key " + std::to_string(refusal->key) + ": " + std::string(words_after<BindFailed>(payload)),
            .operation = kOperation,
            .peer = static_cast<int>(link.peer)};
}

void WorkerCore::take_known(Link& link, std::span<const std::byte> payload) {
  const auto known = front<Known>(payload);
  if (!known || known->region >= link.regions.size()) return;
  if (known->turn != regions_[known->region].turn) return;  // about what the number meant before
  if (known->code == 0) {
    link.regions[known->region] = Link::Region::known;
  } else {
    link.refused_regions.emplace_back(known->region, Error{.code = static_cast<Errc>(known->code),
                                                           .message = "the server cannot reach the pulled tensor",
                                                           .operation = kOperation,
                                                           .peer = static_cast<int>(link.peer)});
  }
}

WorkerFragment* WorkerCore::fragment_of(const Link& link, std::uint64_t ticket) noexcept {
  const auto index = static_cast<std::size_t>(ticket & 0xFFFF'FFFF);
  if (index >= fragments_.size()) return nullptr;
  WorkerFragment& fragment = fragments_[index];
  return fragment.ticket == ticket && fragment.link == &link ? &fragment : nullptr;
}

void WorkerCore::take_response(Link& link, std::span<const std::byte> payload, Outgoing& out) {
  const auto response = front<Response>(payload);
  if (!response) return;
  WorkerFragment* const fragment = fragment_of(link, response->ticket);
  if (fragment == nullptr) {
    if ((response->head.flags & Response::kFetch) != 0) {
      out.add(link.peer, Fetched{.head = {.kind = Kind::fetched, .epoch = epoch_}, .ticket = response->ticket});
    }
    return;
  }
  if ((response->head.flags & Response::kRetained) == 0) {
    release_slots(*fragment);
    give_back_unwanted(*fragment, out);
  }
  const bool offered = (response->head.flags & Response::kFetch) != 0;
  const auto not_wanted = [&] {
    out.add(link.peer, Fetched{.head = {.kind = Kind::fetched, .epoch = epoch_}, .ticket = response->ticket});
  };
  if (fragment->stage != WorkerFragment::Stage::sent) {
    if (offered) not_wanted();
    return;
  }
  const std::int64_t now = monotonic_ns();
  const bool first = std::exchange(fragment->answer_open, false);
  if (first) {
    RoundTrace& trace = fragment->trace;
    trace.request_received = response->received_ns;
    trace.request_processed = response->processed_ns;
    trace.response_start = response->responded_ns;
    trace.response_posted = response->posted_ns;
    trace.response_received = now;
    if (!link.same_clock && response->posted_ns != 0) {
      link.clock.add(trace.request_posted, response->received_ns, response->posted_ns, now);
    }
  }
  if (response->code != 0) {
    fail_round(*fragment->round, {.code = static_cast<Errc>(response->code),
                                  .message = std::string(words_after<Response>(payload)),
                                  .operation = kOperation,
                                  .peer = response->peer >= 0 ? response->peer : static_cast<int>(link.peer)});
  } else if (first && !take_answers(*fragment, payload)) {
    if (fragment->fetch.posting != nullptr) idle_postings_.push_back(std::exchange(fragment->fetch.posting, nullptr));
    fail_round(*fragment->round, {.code = Errc::protocol_error,
                                  .message = "the answer is malformed",
                                  .operation = kOperation,
                                  .peer = static_cast<int>(link.peer)});
  }
  if (first && fragment->fetch.posting != nullptr) {
    fragment->fetch.open = true;
    out.add_fetch(*fragment);
  } else if (offered) {
    not_wanted();
  }
  maybe_end(*fragment);
}

/// Takes what came in the message, and notes what is to be fetched. A cancelled round's tensors belong to the caller
/// again.
bool WorkerCore::take_answers(WorkerFragment& fragment, std::span<const std::byte> payload) {
  const auto& lent = fragment.link->lent;
  auto rest = payload.subspan(sizeof(Response));
  for (PullPiece& piece : fragment.pulls) {
    const std::uint64_t bytes = piece.entry.bytes;
    const bool small = piece.entry.region == kInlined;
    const std::size_t size = small ? inline_size(bytes) : sizeof(Offer);
    if (rest.size() < size) return false;
    if (small) {
      if (!fragment.cancelled) std::memcpy(piece.data, rest.data(), bytes);
    } else if (const auto offer = front<Offer>(rest); offer->region != kWritten && !fragment.cancelled) {
      if (offer->region >= lent.size() || lent[offer->region] == nullptr) return false;
      if (fragment.fetch.posting == nullptr) fragment.fetch.posting = &fresh_posting();
      fragment.fetch.posting->requests.push_back(fabric::WorkRequest::get(
          {lent[offer->region], offer->offset}, {piece.place.region, piece.place.offset}, bytes, &fragment.fetch));
    }
    rest = rest.subspan(size);
  }
  return rest.empty();
}

/// The server will not write into the cancelled fragment's tensors; its slots come back with the response.
void WorkerCore::take_muted(Link& link, std::span<const std::byte> payload) {
  const auto muted = front<Muted>(payload);
  if (!muted) return;
  WorkerFragment* const fragment = fragment_of(link, muted->ticket);
  if (fragment == nullptr || fragment->stage != WorkerFragment::Stage::sent) return;
  fragment->answer_open = false;
  maybe_end(*fragment);
}

void WorkerCore::take_release(Link& link, std::span<const std::byte> payload, Outgoing& out) {
  const auto release = front<Release>(payload);
  if (!release) return;
  WorkerFragment* const fragment = fragment_of(link, release->ticket);
  if (fragment == nullptr) return;
  release_slots(*fragment);
  give_back_unwanted(*fragment, out);
}

/// The server wants the pushes of a key somewhere else.
void WorkerCore::take_rebind(Link& link, std::span<const std::byte> payload, Outgoing& out) {
  const auto rebind = front<Rebind>(payload);
  if (!rebind) return;
  for (auto& [part, binding] : link.bindings) {
    if (part.key != rebind->key) continue;
    binding.enough = false;
    binding.refused.reset();
    for (Binding::Slot& slot : binding.slots) {
      slot.unwanted = true;
      if (!slot.busy) give_back(link, slot, out);
    }
  }
}

void WorkerCore::give_back(Link& link, Binding::Slot& slot, Outgoing& out) {
  if (slot.gone) return;
  out.add(link.peer, GiveBack{.head = {.kind = Kind::give_back, .epoch = epoch_}, .slot = slot.id});
  slot.gone = true;
}

void WorkerCore::give_back_unwanted(WorkerFragment& fragment, Outgoing& out) {
  for (PushPiece& piece : fragment.pushes) {
    if (piece.binding == nullptr || fragment.given_up) continue;
    auto& slots = piece.binding->slots;
    if (piece.slot < slots.size() && slots[piece.slot].unwanted && !slots[piece.slot].busy) {
      give_back(*fragment.link, slots[piece.slot], out);
    }
    if (piece.binding->users == 0) std::erase_if(slots, [](const Binding::Slot& slot) { return slot.gone; });
  }
}

void WorkerCore::take_broken(Link& link, std::span<const std::byte> payload, Outgoing& out) {
  const auto broken = front<Broken>(payload);
  if (!broken) return;
  // The server stays until it knows that everybody has heard the reason: its own end would be another one.
  out.add(link.peer,
          Bye{.head = {.kind = Kind::bye, .flags = Bye::kUnclean, .epoch = epoch_}, .rounds = link.next_seq});
  fail_link(link,
            {.code = static_cast<Errc>(broken->code),
             .message = std::string(words_after<Broken>(payload)) + " (told by the server, rank " +
                        std::to_string(link.peer) + ")",
             .operation = kOperation,
             .peer = broken->peer >= 0 ? broken->peer : static_cast<int>(link.peer)},
            true);
}

// --- ends; with the lock ---

void WorkerCore::release_slots(WorkerFragment& fragment) noexcept {
  if (!std::exchange(fragment.slots_out, false)) return;
  for (PushPiece& piece : fragment.pushes) {
    if (piece.binding == nullptr) continue;
    piece.binding->slots[piece.slot].busy = false;
    --piece.binding->users;
  }
  --fragment.round->unreleased;
}

void WorkerCore::maybe_end(WorkerFragment& fragment) noexcept {
  if (fragment.stage != WorkerFragment::Stage::sent) return;
  if (fragment.posted_open || fragment.answer_open || fragment.fetch.open) return;
  fragment.stage = WorkerFragment::Stage::ended;
  fragment.trace.response_processed = monotonic_ns();
  WorkerRound& round = *fragment.round;
  for (PushPiece& piece : fragment.pushes) {
    piece.place.release();
    --round.part_open[piece.part - 1];
    // A fragment that never left holds no slots that could come back.
    if (piece.binding != nullptr && fragment.given_up) --piece.binding->users;
  }
  for (PullPiece& piece : fragment.pulls) {
    piece.place.release();
    --round.part_open[piece.part - 1];
  }
  if (--round.open == 0) finish_round(round);
}

void WorkerCore::finish_round(WorkerRound& round) noexcept {
  for (auto& [link, key] : round.keys) --link->keys[key].open;
  if (!round.error) {
    round_ns_.record(static_cast<std::uint64_t>(std::max<std::int64_t>(0, monotonic_ns() - round.started_ns)));
  }
  round.done.store(true, std::memory_order_release);
}

/// The first failure is the round's; the caller knows at once, what is under way ends later.
void WorkerCore::fail_round(WorkerRound& round, Error error) noexcept {
  if (round.error || round.done.load(std::memory_order_relaxed)) return;
  failures_total_.add();
  if (error.code != Errc::cancelled) had_failure_ = true;
  round.error = std::move(error);
  round.done.store(true, std::memory_order_release);
}

/// The fragment goes out empty, so that the server's count of rounds stays right.
void WorkerCore::give_up(WorkerFragment& fragment, Error error) noexcept {
  fragment.given_up = true;
  fail_round(*fragment.round, std::move(error));
}

/// `fenced`: nothing of an answer can be written any more. Else the rounds have failed, but they are not quiet.
void WorkerCore::fail_link(Link& link, Error error, bool fenced) noexcept {
  if (link.state != Link::State::failed) {
    link.state = Link::State::failed;
    link.error = std::move(error);
    link.queue_front = link.queue_back = nullptr;
    for (WorkerFragment& fragment : fragments_) {
      if (fragment.link != &link) continue;
      if (fragment.stage == WorkerFragment::Stage::queued) {
        // Nothing is open: it ends as if it had been sent and answered.
        fragment.given_up = true;
        fragment.posted_open = fragment.answer_open = false;
        fragment.stage = WorkerFragment::Stage::sent;
      }
      if (fragment.stage == WorkerFragment::Stage::sent) {
        fail_round(*fragment.round, copy_of(*link.error));
        const bool writes = std::any_of(fragment.pulls.begin(), fragment.pulls.end(),
                                        [](const PullPiece& piece) { return piece.entry.region != kInlined; });
        const bool reads = std::any_of(fragment.pushes.begin(), fragment.pushes.end(),
                                       [](const PushPiece& piece) { return piece.entry.slot == kInPlace; });
        fragment.answer_open = fragment.answer_open && (writes || reads);
      }
      release_slots(fragment);
      maybe_end(fragment);
    }
  }
  if (fenced) fence(link);
}

void WorkerCore::fence(Link& link) noexcept {
  link.fenced = true;
  for (WorkerFragment& fragment : fragments_) {
    if (fragment.link != &link || fragment.stage != WorkerFragment::Stage::sent) continue;
    fragment.answer_open = false;
    maybe_end(fragment);
  }
}

/// The link is lost for a reason of our own. The server is told, and says when it will write no more.
void WorkerCore::bail_out(Link& link, Error error) noexcept {
  Bye bye{.head = {.kind = Kind::bye, .flags = Bye::kUnclean, .epoch = epoch_}};
  {
    const std::lock_guard lock(mutex_);
    if (link.state == Link::State::failed) return;
    fail_link(link, std::move(error), false);
    bye.rounds = link.next_seq;
  }
  const auto request = fabric::WorkRequest::send(server_port_, std::as_bytes(std::span(&bye, 1)), nullptr);
  fabric_.submit(link.peer, {&request, 1}, never());
}

}  // namespace pushpull
}  // namespace dtr::inline v0
