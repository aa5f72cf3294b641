// What workers get: data into their tensors, a response for each fragment, their slots back.
#include <algorithm>
#include <array>
#include <cstring>

#include "dtr/base/clock.hpp"
#include "dtr/base/log.hpp"
#include "dtr/pushpull/detail/no_throw.hpp"
#include "dtr/pushpull/detail/server_core.hpp"
#include "dtr/pushpull/detail/server_tell.hpp"

namespace dtr::inline v0 {
namespace pushpull {

void ServerCore::answer(ServerFragment& to, std::size_t number, const std::byte* data, Region* region,
                        std::uint64_t offset, ServerFragment* from) {
  const ServerFragment::Pull& pull = to.pulls[number];
  PullAnswer* put = nullptr;
  {
    const std::lock_guard lock(mutex_);
    if (to.responded_ns == 0) to.responded_ns = monotonic_ns();
    WorkerState& state = workers_[static_cast<std::size_t>(to.worker)];
    if (to.muted || to.failure || state.standing.gone || state.owes_broken || broken_) return;
    to.answering = true;
    if (pull.entry.region == kInlined) {
      std::memcpy(to.reply.data() + pull.reply_offset, data, pull.entry.bytes);
      return;
    }
    if (region == nullptr) {
      to.failure =
          Error{.code = Errc::invalid_argument,
                .message = "key " + std::to_string(pull.entry.key) + ": fabric.eager_bytes differs between the ranks",
                .operation = operation_};
      return;
    }
    while (to.puts.size() <= number) {
      PullAnswer& made = to.puts.emplace_back(&ServerCore::on_answered);
      made.core = this;
      made.to = &to;
    }
    put = &to.puts[number];
    put->reset();
    put->from = from;
    ++to.answers;
    ++state.puts;
    if (from != nullptr) {
      ++from->holds;
    } else {
      consumer_puts_.fetch_add(1, std::memory_order_relaxed);
    }
    open_posts_.fetch_add(1, std::memory_order_relaxed);
  }
  const auto request =
      fabric::WorkRequest::put({region, offset}, {pull.memory, pull.entry.region_offset}, pull.entry.bytes, put);
  fabric_.submit(static_cast<fabric::PeerId>(rank_of(to.worker)), {&request, 1}, never());
}

void ServerCore::offer(ServerFragment& to, std::size_t number, const ServerFragment::Push& sum, ServerFragment& from) {
  const ServerFragment::Pull& pull = to.pulls[number];
  bool offered = false;
  std::optional<Lend> lend;
  {
    const std::lock_guard lock(mutex_);
    WorkerState& state = workers_[static_cast<std::size_t>(to.worker)];
    const auto known = std::find(lendable_.begin(), lendable_.end(), sum.region);
    const bool wanted = !to.muted && !to.failure && !state.standing.gone && !state.owes_broken && !broken_;
    if (wanted && state.fetches && pull.entry.region != kInlined && known != lendable_.end()) {
      const auto region = static_cast<std::uint32_t>(known - lendable_.begin());
      if (state.lent.size() <= region) state.lent.resize(lendable_.size(), false);
      if (!state.lent[region])
        lend = Lend{.head = {.kind = Kind::lend, .epoch = state.epoch}, .region = region, .memory = sum.region->key()};
      state.lent[region] = true;
      const Offer offer{.offset = sum.region_offset, .region = region};
      std::memcpy(to.reply.data() + pull.reply_offset, &offer, sizeof offer);
      if (to.responded_ns == 0) to.responded_ns = monotonic_ns();
      to.answering = true;
      to.offers.push_back(&from);
      ++from.holds;
      offered = true;
    }
  }
  if (lend) tell(to.worker, *lend);
  if (!offered) answer(to, number, sum.data, sum.region, sum.region_offset, &from);
}

/// With the lock: one reader less. What the slots' owner is to be told if it was the last.
std::optional<Release> ServerCore::let_go_of_hold(ServerFragment& from) noexcept {
  if (--from.holds > 0 || !std::exchange(from.retained, false)) return std::nullopt;
  let_go_of_slots(from);
  const WorkerState& state = workers_[static_cast<std::size_t>(from.worker)];
  // A later Worker has tickets of its own.
  if (state.epoch == 0 || state.standing.sessions != from.seq >> kSessionShift) return std::nullopt;
  return Release{.head = {.kind = Kind::release, .epoch = state.epoch}, .ticket = from.ticket};
}

/// The worker reads nothing of what was offered for this fragment any more.
void ServerCore::end_offers(ServerFragment& fragment) noexcept {
  bool more = true;
  while (more) {
    std::optional<Release> release;
    int owner = 0;
    {
      const std::lock_guard lock(mutex_);
      if (fragment.offers.empty()) return;
      ServerFragment& from = *fragment.offers.back();
      fragment.offers.pop_back();
      owner = from.worker;
      release = let_go_of_hold(from);
      if (&from != &fragment) recycle_if_over(from);
      more = !fragment.offers.empty();
      if (!more) recycle_if_over(fragment);
    }
    if (release) tell(owner, *release);
  }
}

void ServerCore::end_offers_of_past_sessions(int worker) noexcept {
  while (true) {
    ServerFragment* reader = nullptr;
    {
      const std::lock_guard lock(mutex_);
      const WorkerState& state = workers_[static_cast<std::size_t>(worker)];
      const auto found = std::find_if(state.live.begin(), state.live.end(), [&](const ServerFragment* fragment) {
        return !fragment->offers.empty() && fragment->seq >> kSessionShift < state.standing.sessions;
      });
      if (found == state.live.end()) return;
      reader = *found;
    }
    end_offers(*reader);
  }
}

void ServerCore::on_answered(fabric::Completion& completion) noexcept {
  auto& put = static_cast<PullAnswer&>(completion);
  put.core->answered(put);
}

void ServerCore::answered(PullAnswer& put) noexcept {
  ServerFragment& to = *put.to;
  ServerFragment* const from = put.from;
  const int to_worker = to.worker;
  const fabric::Status status = put.status();
  std::optional<Release> release;
  std::optional<Response> late;
  std::string late_words;
  Error failure;
  bool last = false;
  int from_worker = 0;
  if (!status.ok()) stop_response(to, status);
  {
    const std::lock_guard lock(mutex_);
    WorkerState& state = workers_[static_cast<std::size_t>(to_worker)];
    --to.answers;
    last = --state.puts == 0;
    if (!status.ok() && !state.standing.gone) {
      failure = error_or_bare(status.code, rank_of(to_worker), [&] {
        Error error = fabric_.explain(static_cast<fabric::PeerId>(rank_of(to_worker)), status, operation_);
        if (error.code == Errc::ok) error.code = status.code;  // the fabric does not know yet that the peer is gone
        error.message = "the answer could not be written: " + error.message;
        return error;
      });
      if (!to.responded) {
        if (!to.failure) to.failure = std::move(failure);
      } else {
        late = Response{.head = {.kind = Kind::response, .flags = Response::kRetained},
                        .ticket = to.ticket,
                        .code = static_cast<std::int32_t>(failure.code),
                        .peer = rank_of(to_worker)};
        late_words = std::move(failure.message);
      }
    }
    if (from != nullptr) {
      from_worker = from->worker;
      release = let_go_of_hold(*from);
      if (from != &to) recycle_if_over(*from);
    } else {
      consumer_puts_.fetch_sub(1, std::memory_order_release);
    }
    recycle_if_over(to);
  }
  if (late) tell(to_worker, *late, late_words);
  if (release) tell(from_worker, *release);
  if (last) say_farewells(to_worker);
  open_posts_.fetch_sub(1, std::memory_order_release);  // after this the object may be gone
}

/// A response that has not left does not leave any more.
void ServerCore::stop_response(ServerFragment& fragment, fabric::Status why) noexcept {
  {
    const std::lock_guard lock(mutex_);
    if (!fragment.response.open) return;
  }
  // If it has ended meanwhile, then this is one more end of it, which changes nothing.
  fragment.response.arm(1);
  fragment.response.finish(1, why);
}

/// Once nothing is being written to the worker any more: that it is so, and why.
void ServerCore::say_farewells(int worker) noexcept {
  std::optional<Error> broken;
  std::uint32_t parted = 0;
  {
    const std::lock_guard lock(mutex_);
    WorkerState& state = workers_[static_cast<std::size_t>(worker)];
    if (state.puts > 0) return;
    parted = std::exchange(state.owes_parted, 0);
    if (state.epoch != 0) broken.swap(state.owes_broken);
  }
  if (broken) {
    tell(worker, Broken{.code = static_cast<std::int32_t>(broken->code), .peer = broken->peer}, broken->message);
  }
  if (parted != 0) tell(worker, Parted{.head = {.kind = Kind::parted, .epoch = parted}});
}

void ServerCore::on_replied(fabric::Completion& completion) noexcept {
  auto& reply = static_cast<Reply&>(completion);
  reply.core->replied(reply);
}

void ServerCore::replied(Reply& reply) noexcept {
  const fabric::Status status = reply.status();
  const int worker = reply.of->worker;
  {
    const std::lock_guard lock(mutex_);
    if (!std::exchange(reply.open, false)) return;
    recycle_if_over(*reply.of);
  }
  // A worker that missed a response knows no longer where it stands.
  if (status.code == Errc::resource_exhausted || status.code == Errc::protocol_error)
    expel(worker, {.code = status.code});
  open_posts_.fetch_sub(1, std::memory_order_release);
}

void ServerCore::finish(ServerFragment& fragment) { respond(fragment); }

void ServerCore::finish(ServerFragment& fragment, const Error& error) {
  set_failure(fragment, error);
  respond(fragment);
}

void ServerCore::set_failure(ServerFragment& fragment, const Error& error) {
  const std::lock_guard lock(mutex_);
  if (!fragment.failure) fragment.failure = copy_of(error);
}

void ServerCore::respond(ServerFragment& fragment) {
  bool silent = false;
  while (true) {
    {
      const std::lock_guard lock(mutex_);
      const WorkerState& state = workers_[static_cast<std::size_t>(fragment.worker)];
      silent = fragment.cancelled || state.standing.gone || state.epoch == 0 ||
               state.standing.sessions != fragment.seq >> kSessionShift;
      if (!silent || fragment.offers.empty()) {
        make_response(fragment, state, silent);
        break;
      }
    }
    end_offers(fragment);  // it hears of none
  }
  if (!silent) {
    const auto request = fabric::WorkRequest::send(worker_port_, fragment.reply, &fragment.response).fenced();
    fabric_.submit(static_cast<fabric::PeerId>(rank_of(fragment.worker)), {&request, 1}, never());
  }
  {
    const std::lock_guard lock(mutex_);
    fragment.responded = true;
    recycle_if_over(fragment);
  }
  if (!silent) fragment.response.finish(1, {});
}

/// With the lock.
void ServerCore::make_response(ServerFragment& fragment, const WorkerState& state, bool silent) {
  fragment.retained = fragment.holds > 0;
  if (!fragment.retained) let_go_of_slots(fragment);
  Response response{.head = {.kind = Kind::response,
                             .flags = static_cast<std::uint8_t>((fragment.retained ? Response::kRetained : 0) |
                                                                (fragment.offers.empty() ? 0 : Response::kFetch)),
                             .epoch = state.epoch},
                    .ticket = fragment.ticket,
                    .received_ns = fragment.received_ns,
                    .processed_ns = fragment.processed_ns,
                    .responded_ns = fragment.responded_ns};
  if (fragment.failure) {
    const Error& error = *fragment.failure;
    response.code = static_cast<std::int32_t>(error.code);
    response.peer = error.peer;
    const auto words = std::string_view(error.message).substr(0, fabric_.max_message() - sizeof response);
    fragment.reply.resize(sizeof response + words.size());
    std::memcpy(fragment.reply.data() + sizeof response, words.data(), words.size());
  }
  response.posted_ns = monotonic_ns();
  if (response.responded_ns == 0) response.responded_ns = response.posted_ns;
  std::memcpy(fragment.reply.data(), &response, sizeof response);
  if (!silent) {
    fragment.response.open = true;
    fragment.response.arm(1);  // it does not end before this function lets it
    open_posts_.fetch_add(1, std::memory_order_relaxed);
  }
}

void ServerCore::break_all(const Error& error) noexcept {
  {
    const std::lock_guard lock(mutex_);
    if (!broken_) broken_ = copy_of(error);
    for (WorkerState& state : workers_) {
      if (state.epoch != 0 && !state.standing.gone) state.owes_broken = copy_of(error);
    }
  }
  for (int worker = 0; worker < workers(); ++worker) say_farewells(worker);
}

}  // namespace pushpull
}  // namespace dtr::inline v0
