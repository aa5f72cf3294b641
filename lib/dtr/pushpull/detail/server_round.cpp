// A fragment of a round comes in: read, checked, and kept for the consumer.
#include <algorithm>
#include <string>

#include "dtr/base/clock.hpp"
#include "dtr/base/dtype.hpp"
#include "dtr/pushpull/detail/server_core.hpp"
#include "dtr/pushpull/detail/server_tell.hpp"

namespace dtr::inline v0 {
namespace pushpull {

namespace {

tl::unexpected<Error> malformed(std::string words) { return fail(Errc::protocol_error, std::move(words)); }

template <class Entry>
Result<void> check_entry(const Entry& entry, const char* what) {
  if (entry.bytes == 0 || entry.offset > entry.total || entry.bytes > entry.total - entry.offset) {
    return malformed(std::string("the sizes of a ") + what + " contradict each other");
  }
  if (entry.dtype >= kDTypes) return malformed(std::string("a ") + what + " has an unknown element type");
  return {};
}

/// The server answers a little before the worker would give up, so that it can say who was missing.
std::int64_t expiry(std::int64_t now, std::int64_t patience) noexcept {
  constexpr std::int64_t kLongest = std::int64_t{1} << 60;
  return now + std::clamp<std::int64_t>(patience - patience / 16, 0, kLongest);
}

}  // namespace

/// With the lock. Each fragment of each round comes once, and all tell the same number of them.
bool ServerCore::fits(WorkerState& state, const Round& round) {
  if (round.fragment >= round.fragments || round.fragments > kMostFragments) return false;
  if (round.seq < state.first_open || round.seq - state.first_open > kMostRounds) return false;
  const std::uint64_t seq = state.standing.sessions << kSessionShift | round.seq;
  for (const ServerFragment* fragment : state.live) {
    if (fragment->seq == seq && fragment->index == round.fragment) return false;
  }
  auto seen = std::find_if(state.rounds.begin(), state.rounds.end(),
                           [&](const RoundSeen& one) { return one.seq == round.seq; });
  if (seen == state.rounds.end()) {
    seen = state.rounds.insert(seen, {.seq = round.seq, .count = round.fragments});
  }
  if (seen->count != round.fragments || seen->seen == seen->count) return false;
  ++seen->seen;
  while (true) {
    const auto first = std::find_if(state.rounds.begin(), state.rounds.end(),
                                    [&](const RoundSeen& one) { return one.seq == state.first_open; });
    if (first == state.rounds.end() || first->seen < first->count) return true;
    state.rounds.erase(first);
    ++state.first_open;
  }
}

Result<void> ServerCore::take_round(int worker, std::span<const std::byte> payload) {
  const auto round = front<Round>(payload);
  if (!round) return malformed("a round is malformed");
  std::optional<Muted> muted;
  std::optional<Rebind> rebind;
  bool in_place = false;
  {
    const std::lock_guard lock(mutex_);
    WorkerState& state = workers_[static_cast<std::size_t>(worker)];
    if (!fits(state, *round)) return malformed("the number of a round or of its parts is wrong");
    ServerFragment& fragment = fresh_fragment();
    fragment.worker = worker;
    fragment.seq = state.standing.sessions << kSessionShift | round->seq;
    fragment.index = round->fragment;
    fragment.count = round->fragments;
    fragment.ticket = round->ticket;
    fragment.cancelled = (round->head.flags & Round::kCancelled) != 0;
    fragment.message.assign(payload.begin(), payload.end());
    fragment.reply.resize(sizeof(Response));
    fragment.muted = std::find(state.cancelled.begin(), state.cancelled.end(), round->seq) != state.cancelled.end();
    state.live.push_back(&fragment);
    if (auto parsed = parse(state, fragment, *round); !parsed) {
      let_go_of_slots(fragment);
      fragment.responded = true;
      recycle_if_over(fragment);
      return parsed;
    }
    for (const ServerFragment::Push& push : fragment.pushes) {  // the word to do so crossed with an older one
      if (!is_slot(push.entry.slot) || slots_[push.entry.slot].landing) continue;
      if (state.landings.contains(push.entry.key)) rebind = Rebind{.key = push.entry.key};
    }
    if (fragment.muted && !fragment.cancelled) muted = Muted{.ticket = fragment.ticket};
    in_place = fragment.in_place;
    complete(fragment);
    fragment.expires_ns = expiry(fragment.received_ns, round->patience_ns);
  }
  if (muted && in_place) keep_pushes(worker, round->seq);  // cancelled before it came
  if (muted) tell(worker, *muted);
  if (rebind) tell(worker, *rebind);
  return {};
}

/// With the lock.
Result<void> ServerCore::parse(WorkerState& state, ServerFragment& fragment, const Round& round) {
  const std::size_t entries = round.pushes * sizeof(PushEntry) + round.pulls * sizeof(PullEntry);
  if (fragment.message.size() - sizeof(Round) < entries) return malformed("a round is cut short");
  if (!fragment.cancelled && entries == 0) return malformed("a round is empty");
  if (auto good = parse_pushes(state, fragment, round); !good) return good;
  return parse_pulls(state, fragment, round);
}

Result<void> ServerCore::parse_pushes(WorkerState& state, ServerFragment& fragment, const Round& round) {
  std::size_t at = sizeof(Round);
  std::size_t inlined_at = at + round.pushes * sizeof(PushEntry) + round.pulls * sizeof(PullEntry);
  for (std::uint32_t i = 0; i < round.pushes; ++i, at += sizeof(PushEntry)) {
    ServerFragment::Push& push = fragment.pushes.emplace_back();
    std::memcpy(&push.entry, fragment.message.data() + at, sizeof(PushEntry));
    if (auto good = check_entry(push.entry, "push"); !good) return good;
    if (push.entry.slot == kInPlace) {
      if (!state.in_place || push.entry.address == 0) return malformed("a push names memory of another process");
      push.data = reinterpret_cast<std::byte*>(push.entry.address);  // NOLINT(performance-no-int-to-ptr)
      push.in_place = fragment.in_place = true;
      continue;
    }
    if (push.entry.slot != kInlined) {
      if (auto taken = take_slot(fragment, push); !taken) {
        push.entry.slot = kInlined;  // not its own to let go of
        return taken;
      }
      continue;
    }
    inlined_at = inline_size(inlined_at);
    if (inlined_at > fragment.message.size() || push.entry.bytes > fragment.message.size() - inlined_at) {
      return malformed("a push is cut short");
    }
    push.data = fragment.message.data() + inlined_at;
    inlined_at += push.entry.bytes;
    if (!state.landings.empty()) land(state, fragment, push);
  }
  return {};
}

Result<void> ServerCore::take_slot(ServerFragment& fragment, ServerFragment::Push& push) {
  const PushEntry& entry = push.entry;
  if (entry.slot >= slots_.size()) return malformed("a push names a slot that does not exist");
  Slot& slot = slots_[entry.slot];
  if (slot.worker != fragment.worker || !slot.live || !slot.told || !(slot.part == PartId{entry.key, entry.offset}) ||
      slot.bytes != entry.bytes || slot.user != nullptr) {
    return malformed("a push names a slot that is not its own");
  }
  slot.user = &fragment;
  push.region = slot.piece.region;
  push.region_offset = slot.piece.offset;
  push.data = push.region->data() + push.region_offset;
  return {};
}

/// Data that came inside of the message goes where the consumer wants it, unless an earlier request is still there.
void ServerCore::land(WorkerState& state, ServerFragment& fragment, ServerFragment::Push& push) {
  const PushEntry& entry = push.entry;
  const auto landing = state.landings.find(entry.key);
  if (landing == state.landings.end()) return;
  const Landing& place = landing->second;
  if (entry.offset > place.bytes || entry.bytes > place.bytes - entry.offset) return;
  const PartId part{entry.key, entry.offset};
  std::uint32_t number = kInlined;
  if (const auto binding = state.bindings.find(part); binding != state.bindings.end()) {
    for (const std::uint32_t one : binding->second) {
      const Slot& slot = slots_[one];
      if (!slot.landing) continue;
      if (slot.told || slot.user != nullptr || slot.unwanted) return;
      number = one;
    }
  }
  if (number == kInlined) {
    number = add_slot({.worker = fragment.worker,
                       .piece = {place.region, place.offset + entry.offset},
                       .bytes = entry.bytes,
                       .part = part,
                       .landing = true,
                       .told = false});
  }
  Slot& slot = slots_[number];
  slot.bytes = entry.bytes;
  slot.user = &fragment;
  push.entry.slot = number;
  push.region = slot.piece.region;
  push.region_offset = slot.piece.offset;
  std::byte* to = push.region->data() + push.region_offset;
  std::memcpy(to, push.data, entry.bytes);
  push.data = to;
}

Result<void> ServerCore::parse_pulls(const WorkerState& state, ServerFragment& fragment, const Round& round) {
  std::size_t at = sizeof(Round) + round.pushes * sizeof(PushEntry);
  for (std::uint32_t i = 0; i < round.pulls; ++i, at += sizeof(PullEntry)) {
    ServerFragment::Pull& pull = fragment.pulls.emplace_back();
    std::memcpy(&pull.entry, fragment.message.data() + at, sizeof(PullEntry));
    const PullEntry& entry = pull.entry;
    if (auto good = check_entry(entry, "pull"); !good) return good;
    const bool small = entry.region == kInlined;
    pull.reply_offset = fragment.reply.size();
    if ((small && entry.bytes > fabric_.max_message()) ||
        fragment.reply.size() + (small ? inline_size(entry.bytes) : sizeof(Offer)) > fabric_.max_message()) {
      return malformed("the answer to a round does not fit a message");
    }
    if (small) {
      fragment.reply.resize(fragment.reply.size() + inline_size(entry.bytes));
      continue;
    }
    const Offer nothing;  // unless something is offered, it will have been written
    const auto* bytes = reinterpret_cast<const std::byte*>(&nothing);
    fragment.reply.insert(fragment.reply.end(), bytes, bytes + sizeof nothing);
    if (entry.region >= state.regions.size() || state.regions[entry.region] == nullptr) {
      return malformed("a pull names memory that was not announced");
    }
    pull.memory = state.regions[entry.region];
    if (entry.region_offset > pull.memory->key.length || entry.bytes > pull.memory->key.length - entry.region_offset) {
      return malformed("a pull leaves the memory that it names");
    }
    if (state.in_place) {
      pull.direct = reinterpret_cast<std::byte*>(pull.memory->key.address +
                                                 entry.region_offset);  // NOLINT(performance-no-int-to-ptr)
    }
  }
  return {};
}

/// With the lock: the message is here, and its data were before it.
void ServerCore::complete(ServerFragment& fragment) noexcept {
  fragment.received_ns = monotonic_ns();
  fragment.next = nullptr;
  (arrived_back_ == nullptr ? arrived_front_ : arrived_back_->next) = &fragment;
  arrived_back_ = &fragment;
  note_news();
}

}  // namespace pushpull
}  // namespace dtr::inline v0
