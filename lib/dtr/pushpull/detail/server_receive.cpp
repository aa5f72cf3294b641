// What workers say, except of rounds and slots. Everything is checked: nonsense ends that worker's part in the group
// and nothing else.
#include <algorithm>
#include <string>

#include "dtr/base/clock.hpp"
#include "dtr/base/log.hpp"
#include "dtr/pushpull/detail/no_throw.hpp"
#include "dtr/pushpull/detail/server_core.hpp"
#include "dtr/pushpull/detail/server_tell.hpp"

namespace dtr::inline v0 {
namespace pushpull {

void ServerCore::on_notify(fabric::PeerId from, std::uint32_t) noexcept {
  if_possible([&] { DTR_LOG_WARN("push_pull: a notification from rank ", from, " has no meaning"); });
}

void ServerCore::on_message(fabric::PeerId from, std::span<const std::byte> payload) noexcept {
  const int worker = worker_of(from);
  const auto head = front<Head>(payload);
  if (worker < 0 || !head) {
    if_possible([&] { DTR_LOG_WARN("push_pull: a malformed message from rank ", from, " is dropped"); });
    return;
  }
  try {
    take(worker, *head, payload);
  } catch (const std::exception&) {
    expel(worker, {.code = Errc::resource_exhausted});
  }
  if (call_ && has_news()) call_();
}

void ServerCore::take(int worker, const Head& head, std::span<const std::byte> payload) {
  if (head.kind == Kind::hello) return take_hello(worker, payload);
  {
    const std::lock_guard lock(mutex_);
    const WorkerState& state = workers_[static_cast<std::size_t>(worker)];
    if (state.epoch == 0 || state.epoch != head.epoch) return;  // of an earlier Worker
    if (state.standing.gone && head.kind != Kind::bye) return;
  }
  switch (head.kind) {
    case Kind::bind:
      return take_bind(worker, payload);
    case Kind::unbind:
      return take_unbind(worker, payload);
    case Kind::give_back:
      return take_give_back(worker, payload);
    case Kind::announce:
      return take_announce(worker, payload);
    case Kind::round:
      if (auto taken = take_round(worker, payload); !taken) expel(worker, std::move(taken.error()));
      return;
    case Kind::cancel:
      return take_cancel(worker, payload);
    case Kind::fetched:
      return take_fetched(worker, payload);
    case Kind::bye:
      return take_bye(worker, payload);
    default:
      expel(worker, {.code = Errc::protocol_error, .message = "it sent a message of unknown kind"});
  }
}

void ServerCore::on_peer_down(fabric::PeerId peer, const Error& error) noexcept {
  const int worker = worker_of(peer);
  if (worker < 0) return;
  {
    const std::lock_guard lock(mutex_);
    WorkerState& state = workers_[static_cast<std::size_t>(worker)];
    if (state.standing.gone) return;
    state.standing.gone = copy_of(error);
    if_possible([&] { state.standing.gone->operation = operation_; });
    note_news();
  }
  if (call_) call_();
}

/// The worker is out: it is told why, and the consumer sees it as gone.
void ServerCore::expel(int worker, Error error) noexcept {
  error.peer = rank_of(worker);
  if_possible([&] {
    error.operation = operation_;
    DTR_LOG_WARN("push_pull: rank ", error.peer, " is shut out: ", error.message);
  });
  {
    const std::lock_guard lock(mutex_);
    WorkerState& state = workers_[static_cast<std::size_t>(worker)];
    state.owes_broken = copy_of(error);
    if (!state.standing.gone) state.standing.gone = std::move(error);
    note_news();
  }
  say_farewells(worker);
}

void ServerCore::take_hello(int worker, std::span<const std::byte> payload) {
  const auto hello = front<Hello>(payload);
  WorkerState& state = workers_[static_cast<std::size_t>(worker)];
  bool refused = false;
  {
    const std::lock_guard lock(mutex_);
    if (state.epoch != 0) end_session(state, true);  // the last one went without a word
    state.epoch = hello ? hello->head.epoch : 0;
    refused = state.standing.gone || broken_;
    if (refused) state.owes_broken = broken_ ? broken_ : state.standing.gone;
    state.lent.clear();
  }
  end_offers_of_past_sessions(worker);
  if (refused) return say_farewells(worker);
  if (!hello || hello->version != kVersion || hello->workers != workers_.size()) {
    return expel(worker, {.code = Errc::protocol_error,
                          .message = "its hello does not fit: protocol or number of workers differ"});
  }
  drop_slots(state);
  // Only progress touches a worker's tensors, so that a cancel cannot cross with a sum.
  state.in_place = rank_of(worker) == runtime_.rank() && static_cast<bool>(call_);
  tell(worker, Welcome{.slots = slots_each_, .in_place = state.in_place ? 1U : 0U});
}

void ServerCore::take_announce(int worker, std::span<const std::byte> payload) {
  const auto announce = front<Announce>(payload);
  constexpr std::uint32_t kMostRegions = 1 << 20;
  if (!announce || announce->region >= kMostRegions) {
    return expel(worker, {.code = Errc::protocol_error, .message = "it announced memory in a malformed way"});
  }
  auto memory = fabric_.import(static_cast<fabric::PeerId>(rank_of(worker)), announce->memory);
  {
    const std::lock_guard lock(mutex_);
    auto& regions = workers_[static_cast<std::size_t>(worker)].regions;
    if (regions.size() <= announce->region) regions.resize(announce->region + 1, nullptr);
    regions[announce->region] = memory ? *memory : nullptr;
  }
  tell(worker, Known{.region = announce->region,
                     .turn = announce->turn,
                     .code = memory ? 0 : static_cast<std::int32_t>(memory.error().code)});
}

void ServerCore::take_cancel(int worker, std::span<const std::byte> payload) {
  const auto cancel = front<Cancel>(payload);
  if (!cancel) return expel(worker, {.code = Errc::protocol_error, .message = "it sent a malformed cancel"});
  keep_pushes(worker, cancel->seq);
  std::vector<std::uint64_t> muted;
  {
    const std::lock_guard lock(mutex_);
    WorkerState& state = workers_[static_cast<std::size_t>(worker)];
    state.cancelled.push_back(cancel->seq);
    if (state.cancelled.size() > 64) state.cancelled.erase(state.cancelled.begin());
    const std::uint64_t seq = state.standing.sessions << kSessionShift | cancel->seq;
    for (ServerFragment* fragment : state.live) {
      if (fragment->seq != seq || fragment->responded) continue;
      if (fragment->answering && !state.in_place) continue;  // puts are under way; in place there are none
      fragment->muted = true;
      muted.push_back(fragment->ticket);
    }
  }
  for (const std::uint64_t ticket : muted) tell(worker, Muted{.ticket = ticket});
}

void ServerCore::take_fetched(int worker, std::span<const std::byte> payload) {
  const auto fetched = front<Fetched>(payload);
  if (!fetched) return expel(worker, {.code = Errc::protocol_error, .message = "it sent a malformed word of a fetch"});
  ServerFragment* reader = nullptr;
  {
    const std::lock_guard lock(mutex_);
    const auto& live = workers_[static_cast<std::size_t>(worker)].live;
    const auto found = std::find_if(live.begin(), live.end(), [&](const ServerFragment* fragment) {
      return fragment->ticket == fetched->ticket && !fragment->offers.empty();
    });
    if (found != live.end()) reader = *found;
  }
  if (reader != nullptr) end_offers(*reader);
}

void ServerCore::take_bye(int worker, std::span<const std::byte> payload) {
  const auto bye = front<Bye>(payload);
  if (!bye) return expel(worker, {.code = Errc::protocol_error, .message = "it sent a malformed bye"});
  keep_pushes(worker, std::nullopt);
  {
    const std::lock_guard lock(mutex_);
    WorkerState& state = workers_[static_cast<std::size_t>(worker)];
    state.owes_parted = state.epoch;
    state.standing.failed = (bye->head.flags & Bye::kFailed) != 0;
    end_session(state, (bye->head.flags & Bye::kUnclean) != 0);
  }
  end_offers_of_past_sessions(worker);
  say_farewells(worker);
}

/// With the lock. The worker's memory is its owner's again: nothing more is answered.
void ServerCore::end_session(WorkerState& state, bool unclean) noexcept {
  ++state.standing.sessions;
  state.epoch = 0;
  state.unclean = state.unclean || unclean;
  state.first_open = 0;
  state.rounds.clear();
  for (ServerFragment* fragment : state.live) fragment->muted = true;
  note_news();
}

}  // namespace pushpull
}  // namespace dtr::inline v0
