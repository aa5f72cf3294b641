#include "dtr/pushpull/server.hpp"

#include <algorithm>
#include <deque>
#include <map>
#include <string>
#include <unordered_map>

#include "dtr/pushpull/detail/one_thread.hpp"
#include "dtr/pushpull/detail/server_core.hpp"
#include "dtr/pushpull/detail/user_memory.hpp"

namespace dtr::inline v0 {

namespace {

constexpr const char* kOperation = "serve";
using pushpull::ServerCore;
using pushpull::ServerFragment;
using pushpull::UserMemory;

/// One worker's round: its fragments in order.
struct Gathered {
  std::uint64_t seq = 0;
  int worker = 0;
  bool spoilt = false;  ///< the worker gave it up
  std::uint32_t seen = 0;
  std::vector<ServerFragment*> fragments{};

  [[nodiscard]] bool complete() const noexcept { return !fragments.empty() && seen == fragments.size(); }
};

}  // namespace

struct Server::State {
  State(Runtime& runtime, const ServerOptions& options)
      : core(runtime, options.group, kOperation),
        memory(core.fabric()),
        waiting(static_cast<std::size_t>(core.workers())) {}

  Result<void> enter(const pushpull::OneThread::Visit& visit) const {
    if (auto good = visit.check(kOperation); !good) return good;
    return core.check_fork();
  }

  Result<void> flush(Deadline deadline);
  void gather();
  void finish(const Gathered& round, const Error* error);
  Result<bool> next_batch(std::vector<Request>& batch);
  Request open(Gathered round);
  Result<std::map<std::uint64_t, Gathered>::iterator> find(RequestHandle request);
  Result<void> check_sizes(const Gathered& round, std::span<const PushView> tensors) const;
  Result<UserMemory::Place> place_of(const PushView& tensor, ServerFragment*& from);
  Error still_missing() const;

  ServerCore core;
  UserMemory memory;
  pushpull::OneThread door;
  std::vector<ServerFragment*> arrived;
  std::vector<std::map<std::uint64_t, Gathered>> waiting;  ///< by worker, then by number of the round
  std::map<std::uint64_t, Gathered> requests;              ///< handed out, by handle
  std::vector<UserMemory::Place> held;                     ///< memory of answers under way
  std::uint64_t next_request = 1;
};

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
    round.fragments.resize(fragment->count, nullptr);
    round.spoilt = round.spoilt || fragment->cancelled;
    if (fragment->index < round.fragments.size() && round.fragments[fragment->index] == nullptr) {
      round.fragments[fragment->index] = fragment;
      ++round.seen;
    }
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

/// True with a batch, false when something is still to come.
Result<bool> Server::State::next_batch(std::vector<Request>& batch) {
  std::optional<Error> dead;
  std::uint64_t next = std::numeric_limits<std::uint64_t>::max();
  bool all_ended = true;
  for (int worker = 0; worker < core.workers(); ++worker) {
    const auto standing = core.standing(worker);
    auto& mine = waiting[static_cast<std::size_t>(worker)];
    if (!mine.empty()) next = std::min(next, mine.begin()->first);
    const bool left_in_order = standing.gone && standing.gone->code == Errc::peer_left && standing.sessions > 0;
    all_ended = all_ended && standing.sessions > 0 && mine.empty();
    if (standing.gone && !left_in_order && !dead) {
      dead = standing.gone;
      dead->message = "rank " + std::to_string(core.rank_of(worker)) + ": " + dead->message;
    }
  }
  if (dead) {
    core.break_all(*dead);
    for (auto& mine : waiting) {
      for (auto& [seq, round] : mine) finish(round, &*dead);
      mine.clear();
    }
    return fail(*dead);
  }
  if (next == std::numeric_limits<std::uint64_t>::max()) {
    if (all_ended) return fail(Errc::closed, "all workers have ended", kOperation);
    return false;
  }
  std::optional<Error> spoilt;
  for (int worker = 0; worker < core.workers() && !spoilt; ++worker) {
    auto& mine = waiting[static_cast<std::size_t>(worker)];
    const auto round = mine.find(next);
    const std::string who = "rank " + std::to_string(core.rank_of(worker));
    if (round == mine.end()) {
      const auto standing = core.standing(worker);
      if (standing.sessions <= next >> ServerCore::kSessionShift) return false;
      spoilt = Error{.code = Errc::peer_left, .message = who + " has ended its Worker before this round"};
    } else if (round->second.spoilt) {
      spoilt = Error{.code = Errc::cancelled, .message = who + " gave up this round"};
    } else if (!round->second.complete()) {
      return false;
    }
    if (spoilt) {
      spoilt->operation = kOperation;
      spoilt->peer = core.rank_of(worker);
    }
  }
  for (auto& mine : waiting) {
    auto node = mine.extract(next);
    if (node.empty()) continue;
    if (spoilt) {
      finish(node.mapped(), &*spoilt);
    } else {
      batch.push_back(open(std::move(node.mapped())));
    }
  }
  if (spoilt) return fail(*spoilt);
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
  std::uint64_t next = std::numeric_limits<std::uint64_t>::max();
  for (const auto& mine : waiting) {
    if (!mine.empty()) next = std::min(next, mine.begin()->first);
  }
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

Server::Server(Runtime& runtime, const ServerOptions& options) : state_(std::make_unique<State>(runtime, options)) {
  state_->core.start();
}

Server::~Server() {
  if (state_->core.check_fork()) static_cast<void>(state_->flush(std::chrono::seconds(2)));
}

Result<std::vector<Request>> Server::get_batch(Deadline deadline) {
  State& state = *state_;
  const pushpull::OneThread::Visit visit(state.door);
  if (auto good = state.enter(visit); !good) return fail(std::move(good.error()));
  if (auto flushed = state.flush(deadline); !flushed) return fail(std::move(flushed.error()));
  std::vector<Request> batch;
  while (true) {
    state.gather();
    auto got = state.next_batch(batch);
    if (!got) return fail(std::move(got.error()));
    if (*got) return batch;
    const Errc waited = state.core.fabric().progress().wait([&]() noexcept { return state.core.has_news(); }, deadline);
    if (waited == Errc::timed_out) return fail(state.still_missing());
    if (waited != Errc::ok) return fail(waited, "called from a callback", kOperation);
  }
}

Result<Request> Server::get_any(Deadline deadline) {
  State& state = *state_;
  const pushpull::OneThread::Visit visit(state.door);
  if (auto good = state.enter(visit); !good) return fail(std::move(good.error()));
  if (auto flushed = state.flush(deadline); !flushed) return fail(std::move(flushed.error()));
  while (true) {
    state.gather();
    bool all_over = true;
    // The request that waits longest: so that a busy worker does not starve the others.
    std::map<std::uint64_t, Gathered>* best = nullptr;
    std::int64_t oldest = 0;
    for (int worker = 0; worker < state.core.workers(); ++worker) {
      auto& mine = state.waiting[static_cast<std::size_t>(worker)];
      const auto standing = state.core.standing(worker);
      if (standing.gone) {
        for (auto& [seq, round] : mine) state.finish(round, &*standing.gone);
        mine.clear();
        continue;
      }
      while (!mine.empty() && mine.begin()->second.spoilt && mine.begin()->second.complete()) {
        state.finish(mine.begin()->second, nullptr);
        mine.erase(mine.begin());
      }
      if (standing.sessions == 0 || !mine.empty()) all_over = false;
      if (mine.empty() || !mine.begin()->second.complete()) continue;
      const std::int64_t since = mine.begin()->second.fragments.front()->received_ns;
      if (best == nullptr || since < oldest) {
        best = &mine;
        oldest = since;
      }
    }
    if (best != nullptr) return state.open(std::move(best->extract(best->begin()).mapped()));
    if (all_over) return fail(Errc::closed, "all workers have ended", kOperation);
    const Errc waited = state.core.fabric().progress().wait([&]() noexcept { return state.core.has_news(); }, deadline);
    if (waited == Errc::timed_out) return fail(waited, "no request from any worker", kOperation);
    if (waited != Errc::ok) return fail(waited, "called from a callback", kOperation);
  }
}

Result<void> Server::respond(RequestHandle request, std::span<const PushView> tensors) {
  State& state = *state_;
  const pushpull::OneThread::Visit visit(state.door);
  if (auto good = state.enter(visit); !good) return good;
  auto found = state.find(request);
  if (!found) return fail(std::move(found.error()));
  const Gathered& round = (*found)->second;
  if (auto good = state.check_sizes(round, tensors); !good) return good;

  struct Source {
    UserMemory::Place place{};
    ServerFragment* from = nullptr;
  };
  std::vector<Source> sources(tensors.size());
  std::size_t number = 0;
  for (const ServerFragment* fragment : round.fragments) {
    for (const auto& pull : fragment->pulls) {
      Source& source = sources[number];
      if (pull.entry.region != pushpull::kInlined) {
        auto place = state.place_of(tensors[number], source.from);
        if (!place) return fail(std::move(place.error()));
        source.place = *place;
        source.place.hold();
        state.held.push_back(source.place);
      }
      ++number;
    }
  }
  number = 0;
  for (ServerFragment* fragment : round.fragments) {
    for (std::size_t pull = 0; pull < fragment->pulls.size(); ++pull, ++number) {
      const Source& source = sources[number];
      state.core.answer(*fragment, pull, tensors[number].data, source.place.region, source.place.offset, source.from);
    }
    state.core.finish(*fragment);
  }
  state.requests.erase(*found);
  return {};
}

Result<void> Server::respond_vec(const PushView& buffer, std::span<const PushView> tensors,
                                 std::span<const RequestHandle> requests) {
  std::uint64_t total = 0;
  for (const PushView& tensor : tensors) total += tensor.bytes;
  if (tensors.size() != requests.size() || total > buffer.bytes) {
    return fail(Errc::invalid_argument,
                std::to_string(requests.size()) + " requests, " + std::to_string(tensors.size()) + " tensors of " +
                    std::to_string(total) + " bytes together, a buffer of " + std::to_string(buffer.bytes),
                kOperation);
  }
  std::uint64_t offset = 0;
  for (std::size_t i = 0; i < requests.size(); ++i) {
    const PushView slice(std::span(buffer.data + offset, tensors[i].bytes), buffer.dtype);
    if (auto done = respond(requests[i], {slice}); !done) return done;
    offset += tensors[i].bytes;
  }
  return {};
}

Result<void> Server::refuse(RequestHandle request, const Error& error) {
  State& state = *state_;
  const pushpull::OneThread::Visit visit(state.door);
  if (auto good = state.enter(visit); !good) return good;
  auto found = state.find(request);
  if (!found) return fail(std::move(found.error()));
  state.finish((*found)->second, &error);
  state.requests.erase(*found);
  return {};
}

void Server::fail_all(const Error& error) {
  State& state = *state_;
  state.core.break_all(error);
  for (auto& mine : state.waiting) {
    for (auto& [seq, round] : mine) state.finish(round, &error);
    mine.clear();
  }
  for (auto& [id, round] : state.requests) state.finish(round, &error);
  state.requests.clear();
}

Result<void> Server::flush(Deadline deadline) {
  State& state = *state_;
  const pushpull::OneThread::Visit visit(state.door);
  if (auto good = state.enter(visit); !good) return good;
  return state.flush(deadline);
}

}  // namespace dtr::inline v0
