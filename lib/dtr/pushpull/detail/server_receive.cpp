// What workers say. Everything is checked: nonsense ends that worker's part in the group and nothing else.
#include <algorithm>
#include <string>

#include "dtr/base/clock.hpp"
#include "dtr/base/log.hpp"
#include "dtr/pushpull/detail/server_core.hpp"
#include "dtr/pushpull/detail/server_tell.hpp"

namespace dtr::inline v0 {
namespace pushpull {

namespace {

tl::unexpected<Error> malformed(std::string words) { return fail(Errc::protocol_error, std::move(words)); }

}  // namespace

void ServerCore::on_notify(fabric::PeerId from, std::uint32_t) noexcept {
  DTR_LOG_WARN("push_pull: a notification from rank ", from, " has no meaning");
}

void ServerCore::on_message(fabric::PeerId from, std::span<const std::byte> payload) noexcept {
  const int worker = worker_of(from);
  const auto head = front<Head>(payload);
  if (worker < 0 || !head) {
    DTR_LOG_WARN("push_pull: a malformed message from rank ", from, " is dropped");
    return;
  }
  try {
    if (head->kind == Kind::hello) return take_hello(worker, payload);
    {
      const std::lock_guard lock(mutex_);
      const WorkerState& state = workers_[static_cast<std::size_t>(worker)];
      if (state.epoch == 0 || state.epoch != head->epoch || state.standing.gone) return;  // of an earlier Worker
    }
    switch (head->kind) {
      case Kind::bind:
        return take_bind(worker, payload);
      case Kind::unbind:
        return take_unbind(worker, payload);
      case Kind::announce:
        return take_announce(worker, payload);
      case Kind::round:
        if (auto taken = take_round(worker, payload); !taken) expel(worker, taken.error());
        break;
      case Kind::cancel:
        return take_cancel(worker, payload);
      case Kind::bye:
        take_bye(worker, payload);
        break;
      default:
        expel(worker, {.code = Errc::protocol_error, .message = "it sent a message of unknown kind"});
    }
  } catch (const std::exception& e) {
    expel(worker, {.code = Errc::resource_exhausted, .message = e.what()});
  }
  if (call_ && has_news()) call_();
}

void ServerCore::on_peer_down(fabric::PeerId peer, const Error& error) noexcept {
  const int worker = worker_of(peer);
  if (worker < 0) return;
  {
    const std::lock_guard lock(mutex_);
    WorkerState& state = workers_[static_cast<std::size_t>(worker)];
    if (state.standing.gone) return;
    state.standing.gone = error;
    state.standing.gone->operation = operation_;
    note_news();
  }
  if (call_) call_();
}

/// The worker is out: it is told why, and the consumer sees it as gone.
void ServerCore::expel(int worker, Error error) {
  error.operation = operation_;
  error.peer = rank_of(worker);
  DTR_LOG_WARN("push_pull: rank ", error.peer, " is shut out: ", error.message);
  tell(worker, Broken{.code = static_cast<std::int32_t>(error.code), .peer = error.peer},
       "the server shut this worker out: " + error.message);
  {
    const std::lock_guard lock(mutex_);
    WorkerState& state = workers_[static_cast<std::size_t>(worker)];
    if (!state.standing.gone) state.standing.gone = error;
    note_news();
  }
  if (call_) call_();
}

void ServerCore::take_hello(int worker, std::span<const std::byte> payload) {
  const auto hello = front<Hello>(payload);
  WorkerState& state = workers_[static_cast<std::size_t>(worker)];
  std::optional<Error> refusal;
  {
    const std::lock_guard lock(mutex_);
    if (state.standing.gone) refusal = state.standing.gone;
    if (broken_) refusal = broken_;
    if (state.epoch != 0) {  // the last one went without a word
      ++state.standing.sessions;
      state.unclean = true;
      note_news();
    }
    state.epoch = hello ? hello->head.epoch : 0;
  }
  if (!hello || hello->version != kVersion || hello->workers != workers_.size()) {
    return expel(worker, {.code = Errc::protocol_error,
                          .message = "its hello does not fit: protocol or number of workers differ"});
  }
  if (refusal) {
    return tell(worker, Broken{.code = static_cast<std::int32_t>(refusal->code), .peer = refusal->peer},
                refusal->message);
  }
  drop_slots(state);
  tell(worker, Welcome{.slots = slots_each_});
}

/// Slots of an earlier Worker. What it may still write into is not used again.
void ServerCore::drop_slots(WorkerState& state) {
  std::vector<std::uint32_t> over;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [part, numbers] : state.bindings) {
      for (const std::uint32_t number : numbers) {
        slots_[number].live = false;
        if (!state.unclean && slots_[number].user == nullptr) {
          over.push_back(number);
        }
      }
    }
    state.bindings.clear();
    state.regions.clear();
    state.cancelled.clear();
    state.unclean = false;
  }
  for (const std::uint32_t number : over) state.arena.release(slots_[number].piece, slots_[number].bytes);
}

void ServerCore::take_bind(int worker, std::span<const std::byte> payload) {
  const auto bind = front<Bind>(payload);
  if (!bind || bind->bytes == 0) {
    return expel(worker, {.code = Errc::protocol_error, .message = "it sent a malformed bind"});
  }
  WorkerState& state = workers_[static_cast<std::size_t>(worker)];
  const PartId part{bind->key, bind->offset};
  std::optional<Error> refusal;
  {
    const std::lock_guard lock(mutex_);
    const auto known = state.bindings.find(part);
    if (known != state.bindings.end() && !known->second.empty()) {
      const Slot& first = slots_[known->second.front()];
      if (first.bytes != bind->bytes) {
        refusal = Error{
            .code = Errc::invalid_argument,
            .message = "it has slots of " + std::to_string(first.bytes) + " bytes, not " + std::to_string(bind->bytes)};
      } else if (known->second.size() >= slots_each_) {
        refusal = Error{.code = Errc::resource_exhausted, .message = "it has all its slots"};
      }
    }
  }
  Result<SlotArena::Piece> piece{};
  if (!refusal) {
    piece = state.arena.allocate(bind->bytes);
    if (!piece) refusal = piece.error();
  }
  if (refusal) {
    return tell(worker,
                BindFailed{.key = bind->key, .offset = bind->offset, .code = static_cast<std::int32_t>(refusal->code)},
                refusal->message);
  }
  std::uint32_t number = 0;
  {
    const std::lock_guard lock(mutex_);
    number = static_cast<std::uint32_t>(slots_.size());
    slots_.push_back({.worker = worker, .piece = *piece, .bytes = bind->bytes, .part = part, .live = true});
    state.bindings[part].push_back(number);
  }
  tell(worker, Bound{.key = bind->key,
                     .offset = bind->offset,
                     .slot_offset = piece->offset,
                     .slot = number,
                     .memory = piece->region->key()});
}

void ServerCore::take_unbind(int worker, std::span<const std::byte> payload) {
  const auto unbind = front<Unbind>(payload);
  if (!unbind) return;
  WorkerState& state = workers_[static_cast<std::size_t>(worker)];
  std::vector<std::uint32_t> over;
  {
    const std::lock_guard lock(mutex_);
    const auto known = state.bindings.find({unbind->key, unbind->offset});
    if (known == state.bindings.end()) return;
    for (const std::uint32_t number : known->second) {
      slots_[number].live = false;
      if (slots_[number].user == nullptr) over.push_back(number);
    }
    state.bindings.erase(known);
  }
  for (const std::uint32_t number : over) state.arena.release(slots_[number].piece, slots_[number].bytes);
}

void ServerCore::take_announce(int worker, std::span<const std::byte> payload) {
  const auto announce = front<Announce>(payload);
  constexpr std::uint32_t kMostRegions = 1 << 20;
  if (!announce || announce->region >= kMostRegions) {
    return expel(worker, {.code = Errc::protocol_error, .message = "it announced memory in a malformed way"});
  }
  auto memory = fabric_.import(static_cast<fabric::PeerId>(rank_of(worker)), announce->memory);
  if (memory) {
    const std::lock_guard lock(mutex_);
    auto& regions = workers_[static_cast<std::size_t>(worker)].regions;
    if (regions.size() <= announce->region) regions.resize(announce->region + 1, nullptr);
    regions[announce->region] = *memory;
  }
  tell(worker, Known{.region = announce->region, .code = memory ? 0 : static_cast<std::int32_t>(memory.error().code)});
}

Result<void> ServerCore::take_round(int worker, std::span<const std::byte> payload) {
  const auto round = front<Round>(payload);
  if (!round || round->fragment >= round->fragments) return malformed("a round is malformed");
  const std::lock_guard lock(mutex_);
  WorkerState& state = workers_[static_cast<std::size_t>(worker)];
  ServerFragment& fragment = fresh_fragment();
  state.live.push_back(&fragment);
  fragment.worker = worker;
  fragment.seq = state.standing.sessions << kSessionShift | round->seq;
  fragment.index = round->fragment;
  fragment.count = round->fragments;
  fragment.ticket = round->ticket;
  fragment.cancelled = (round->head.flags & Round::kCancelled) != 0;
  fragment.message.assign(payload.begin(), payload.end());
  fragment.reply.resize(sizeof(Response));
  fragment.muted = std::find(state.cancelled.begin(), state.cancelled.end(), round->seq) != state.cancelled.end();
  if (auto parsed = parse(state, fragment, *round); !parsed) {
    for (Slot& slot : slots_) {
      if (slot.user == &fragment) slot.user = nullptr;
    }
    fragment.responded = true;
    recycle_if_over(fragment);
    return parsed;
  }
  complete(fragment);
  return {};
}

/// With the lock.
Result<void> ServerCore::parse(WorkerState& state, ServerFragment& fragment, const Round& round) {
  std::span<std::byte> rest(fragment.message);
  rest = rest.subspan(sizeof(Round));
  const std::size_t entries = round.pushes * sizeof(PushEntry) + round.pulls * sizeof(PullEntry);
  if (rest.size() < entries) return malformed("a round is cut short");
  if (!fragment.cancelled && entries == 0) return malformed("a round is empty");
  std::size_t inlined_at = sizeof(Round) + entries;
  for (std::uint32_t i = 0; i < round.pushes; ++i) {
    ServerFragment::Push& push = fragment.pushes.emplace_back();
    std::memcpy(&push.entry, rest.data(), sizeof(PushEntry));
    rest = rest.subspan(sizeof(PushEntry));
    const PushEntry& entry = push.entry;
    if (entry.bytes == 0 || entry.offset > entry.total || entry.bytes > entry.total - entry.offset) {
      return malformed("the sizes of a push contradict each other");
    }
    if (entry.slot == kInlined) {
      inlined_at = inline_size(inlined_at);
      if (inlined_at > fragment.message.size() || entry.bytes > fragment.message.size() - inlined_at) {
        return malformed("a push is cut short");
      }
      push.data = fragment.message.data() + inlined_at;
      inlined_at += entry.bytes;
      continue;
    }
    if (entry.slot >= slots_.size()) return malformed("a push names a slot that does not exist");
    Slot& slot = slots_[entry.slot];
    if (slot.worker != fragment.worker || !slot.live || !(slot.part == PartId{entry.key, entry.offset}) ||
        slot.bytes != entry.bytes || slot.user != nullptr) {
      return malformed("a push names a slot that is not its own");
    }
    slot.user = &fragment;
    push.region = slot.piece.region;
    push.region_offset = slot.piece.offset;
    push.data = push.region->data() + push.region_offset;
  }
  for (std::uint32_t i = 0; i < round.pulls; ++i) {
    ServerFragment::Pull& pull = fragment.pulls.emplace_back();
    std::memcpy(&pull.entry, rest.data(), sizeof(PullEntry));
    rest = rest.subspan(sizeof(PullEntry));
    const PullEntry& entry = pull.entry;
    if (entry.bytes == 0 || entry.offset > entry.total || entry.bytes > entry.total - entry.offset) {
      return malformed("the sizes of a pull contradict each other");
    }
    if (entry.region == kInlined) {
      pull.reply_offset = fragment.reply.size();
      if (entry.bytes > fabric_.max_message() ||
          fragment.reply.size() + inline_size(entry.bytes) > fabric_.max_message()) {
        return malformed("the answer to a round does not fit a message");
      }
      fragment.reply.resize(fragment.reply.size() + inline_size(entry.bytes));
      continue;
    }
    if (entry.region >= state.regions.size() || state.regions[entry.region] == nullptr) {
      return malformed("a pull names memory that was not announced");
    }
    pull.memory = state.regions[entry.region];
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

void ServerCore::take_cancel(int worker, std::span<const std::byte> payload) {
  const auto cancel = front<Cancel>(payload);
  if (!cancel) return;
  std::vector<std::uint64_t> muted;
  {
    const std::lock_guard lock(mutex_);
    WorkerState& state = workers_[static_cast<std::size_t>(worker)];
    state.cancelled.push_back(cancel->seq);
    if (state.cancelled.size() > 64) state.cancelled.erase(state.cancelled.begin());
    const std::uint64_t seq = state.standing.sessions << kSessionShift | cancel->seq;
    for (ServerFragment* fragment : state.live) {
      if (fragment->seq != seq || fragment->answering || fragment->responded) continue;
      fragment->muted = true;
      muted.push_back(fragment->ticket);
    }
  }
  for (const std::uint64_t ticket : muted) tell(worker, Muted{.ticket = ticket});
}

void ServerCore::take_bye(int worker, std::span<const std::byte> payload) {
  const auto bye = front<Bye>(payload);
  if (!bye) return;
  const std::lock_guard lock(mutex_);
  WorkerState& state = workers_[static_cast<std::size_t>(worker)];
  ++state.standing.sessions;
  state.epoch = 0;
  state.unclean = (bye->head.flags & Bye::kUnclean) != 0;
  for (ServerFragment* fragment : state.live) fragment->muted = true;  // its memory is its owner's again
  note_news();
}

}  // namespace pushpull
}  // namespace dtr::inline v0
