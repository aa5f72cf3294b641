#include "dtr/pushpull/detail/server_state.hpp"

#include <algorithm>

#include "dtr/base/clock.hpp"

namespace dtr::inline v0 {

namespace {

constexpr const char* kOperation = "serve";
constexpr std::size_t kRemembered = 64;

}  // namespace

using pushpull::Gathered;
using pushpull::ServerCore;
using pushpull::ServerFragment;
using pushpull::UserMemory;

Result<void> Server::State::flush(Deadline deadline) {
  const Errc waited = core.fabric().progress().wait([this]() noexcept { return core.flushed(); }, deadline);
  if (waited == Errc::timed_out) return fail(waited, "an answer is still being sent", kOperation);
  if (waited != Errc::ok) return fail(waited, "called from a callback", kOperation);
  for (const UserMemory::Place& place : held) place.release();
  held.clear();
  return {};
}

void Server::State::gather() {
  arrived.clear();
  core.take(arrived);
  for (ServerFragment* fragment : arrived) {
    auto& mine = waiting[static_cast<std::size_t>(fragment->worker)];
    Gathered& round = mine[fragment->seq];
    round.seq = fragment->seq;
    round.worker = fragment->worker;
    round.fragments.resize(fragment->count, nullptr);  // the core sees to it that all tell the same, each once
    round.spoilt = round.spoilt || fragment->cancelled;
    round.fragments[fragment->index] = fragment;
    ++round.seen;
    if (!fragment->cancelled) round.expires_ns = std::min(round.expires_ns, fragment->expires_ns);
  }
}

void Server::State::finish(const Gathered& round, const Error* error) {
  for (ServerFragment* fragment : round.fragments) {
    if (fragment == nullptr) continue;
    if (error != nullptr) {
      core.finish(*fragment, *error);
    } else {
      core.finish(*fragment);
    }
  }
}

/// The dead and the expelled end everything.
std::optional<Error> Server::State::dead_worker() {
  for (int worker = 0; worker < core.workers(); ++worker) {
    auto standing = core.standing(worker);
    if (!standing.gone || (standing.gone->code == Errc::peer_left && standing.sessions > 0)) continue;
    standing.gone->message = "rank " + std::to_string(core.rank_of(worker)) + ": " + standing.gone->message;
    return std::move(standing.gone);
  }
  return std::nullopt;
}

/// What came after its round had ended for everybody else.
void Server::State::turn_away_stragglers() {
  for (auto& mine : waiting) {
    while (!mine.empty() && mine.begin()->first < next_number && mine.begin()->second.complete()) {
      const auto known = ended_ill.find(mine.begin()->first);
      const Error error = known != ended_ill.end()
                              ? known->second
                              : Error{.code = Errc::timed_out, .message = "the others' round has ended before"};
      finish(mine.begin()->second, &error);
      mine.erase(mine.begin());
    }
  }
}

/// The lowest number of which something has come.
std::optional<std::uint64_t> Server::State::oldest_round() const {
  std::optional<std::uint64_t> oldest;
  for (const auto& mine : waiting) {
    const auto first = mine.lower_bound(next_number);
    if (first != mine.end() && (!oldest || first->first < *oldest)) oldest = first->first;
  }
  return oldest;
}

/// Why this round will never be whole; nothing while it may, or if it is.
std::optional<Error> Server::State::spoilt(std::uint64_t number) {
  std::optional<Error> reason;
  std::int64_t expires = std::numeric_limits<std::int64_t>::max();
  for (int worker = 0; worker < core.workers() && !reason; ++worker) {
    const auto& mine = waiting[static_cast<std::size_t>(worker)];
    const auto round = mine.find(number);
    const std::string who = "rank " + std::to_string(core.rank_of(worker));
    if (round != mine.end()) {
      expires = std::min(expires, round->second.expires_ns);
      if (round->second.spoilt) reason = Error{.code = Errc::cancelled, .message = who + " gave up this round"};
    } else if (core.standing(worker).sessions > number >> ServerCore::kSessionShift) {
      reason = Error{.code = Errc::peer_left, .message = who + " has ended its Worker before this round"};
    }
    if (reason) reason->peer = core.rank_of(worker);
  }
  if (!reason && !whole(number) && monotonic_ns() >= expires) reason = still_missing();
  wake_ns = expires;
  if (reason) reason->operation = kOperation;
  return reason;
}

bool Server::State::whole(std::uint64_t number) const {
  return std::all_of(waiting.begin(), waiting.end(), [&](const auto& mine) {
    const auto round = mine.find(number);
    return round != mine.end() && round->second.complete();
  });
}

/// True with a batch, false when something is still to come.
Result<bool> Server::State::next_batch(std::vector<Request>& batch) {
  wake_ns = std::numeric_limits<std::int64_t>::max();
  if (const auto dead = dead_worker()) {
    core.break_all(*dead);
    for (auto& mine : waiting) {
      for (auto& [seq, round] : mine) finish(round, &*dead);
      mine.clear();
    }
    return fail(*dead);
  }
  turn_away_stragglers();
  const auto number = oldest_round();
  if (!number) {
    for (int worker = 0; worker < core.workers(); ++worker) {
      if (core.standing(worker).sessions == 0 || !waiting[static_cast<std::size_t>(worker)].empty()) return false;
    }
    return fail(Errc::closed, "all workers have ended", kOperation);
  }
  const auto reason = spoilt(*number);
  if (!reason && !whole(*number)) return false;
  next_number = *number + 1;
  if (reason) {
    ended_ill.emplace(*number, *reason);
    if (ended_ill.size() > kRemembered) ended_ill.erase(ended_ill.begin());
  }
  for (auto& mine : waiting) {
    const auto round = mine.find(*number);
    if (round == mine.end() || !round->second.complete()) continue;  // the rest of it is turned away when it comes
    if (reason) {
      finish(round->second, &*reason);
    } else {
      batch.push_back(open(std::move(round->second)));
    }
    mine.erase(round);
  }
  if (reason) return fail(*reason);
  return true;
}

Request Server::State::open(Gathered round) {
  Request request{.handle = {next_request++},
                  .worker = core.rank_of(round.worker),
                  .round = round.seq & ((std::uint64_t{1} << ServerCore::kSessionShift) - 1)};
  for (const ServerFragment* fragment : round.fragments) {
    for (const auto& push : fragment->pushes) {
      request.pushes.push_back({.key = push.entry.key,
                                .data = {push.data, push.entry.bytes},
                                .dtype = static_cast<DType>(push.entry.dtype),
                                .offset = push.entry.offset,
                                .total = push.entry.total});
    }
    for (const auto& pull : fragment->pulls) {
      request.pulls.push_back({.key = pull.entry.key,
                               .bytes = pull.entry.bytes,
                               .dtype = static_cast<DType>(pull.entry.dtype),
                               .offset = pull.entry.offset,
                               .total = pull.entry.total});
    }
  }
  requests.emplace(request.handle.id, std::move(round));
  return request;
}

Error Server::State::still_missing() const {
  std::string late;
  Error error{.code = Errc::timed_out, .operation = kOperation};
  const std::uint64_t next = oldest_round().value_or(std::numeric_limits<std::uint64_t>::max());
  for (std::size_t worker = 0; worker < waiting.size(); ++worker) {
    const auto round = waiting[worker].find(next);
    if (round != waiting[worker].end() && round->second.complete()) continue;
    const int rank = core.rank_of(static_cast<int>(worker));
    if (error.peer < 0) error.peer = rank;
    late += (late.empty() ? "no request from rank " : ", rank ") + std::to_string(rank);
  }
  error.message = std::move(late);
  return error;
}

Result<std::map<std::uint64_t, Gathered>::iterator> Server::State::find(RequestHandle request) {
  const auto found = requests.find(request.id);
  if (found != requests.end()) return found;
  return fail(Errc::stale_handle, "request " + std::to_string(request.id) + " is answered or never was", kOperation);
}

Result<void> Server::State::check_sizes(const Gathered& round, std::span<const PushView> tensors) const {
  std::size_t number = 0;
  for (const ServerFragment* fragment : round.fragments) {
    for (const auto& pull : fragment->pulls) {
      if (number < tensors.size() && tensors[number].bytes != pull.entry.bytes) {
        return fail(Errc::invalid_argument,
                    "key " + std::to_string(pull.entry.key) + " is pulled with " + std::to_string(pull.entry.bytes) +
                        " bytes, the answer has " + std::to_string(tensors[number].bytes),
                    kOperation, core.rank_of(round.worker));
      }
      ++number;
    }
  }
  if (number != tensors.size()) {
    return fail(Errc::invalid_argument,
                std::to_string(tensors.size()) + " tensors answer " + std::to_string(number) + " pulls", kOperation,
                core.rank_of(round.worker));
  }
  return {};
}

/// Where a tensor of an answer lies; `from` is the request whose slot it is in.
Result<UserMemory::Place> Server::State::place_of(const PushView& tensor, ServerFragment*& from) {
  for (auto& [id, round] : requests) {
    for (ServerFragment* fragment : round.fragments) {
      for (const auto& push : fragment->pushes) {
        if (push.region == nullptr || tensor.data < push.data) continue;
        const auto offset = static_cast<std::uint64_t>(tensor.data - push.data);
        if (offset > push.entry.bytes || tensor.bytes > push.entry.bytes - offset) continue;
        from = fragment;
        return UserMemory::Place{push.region, push.region_offset + offset, nullptr};
      }
    }
  }
  return memory.locate({tensor.data, tensor.bytes}, Access::none);
}

}  // namespace dtr::inline v0
