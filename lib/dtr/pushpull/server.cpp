#include "dtr/pushpull/server.hpp"

#include <algorithm>
#include <map>
#include <string>

#include "dtr/pushpull/detail/server_state.hpp"

namespace dtr::inline v0 {

namespace {

constexpr const char* kOperation = "serve";
using pushpull::Gathered;
using pushpull::ServerFragment;
using pushpull::UserMemory;

}  // namespace

Server::Server(Runtime& runtime, const ServerOptions& options) : state_(std::make_unique<State>(runtime, options)) {
  state_->core.start();
}

Server::~Server() {
  if (!state_->core.check_fork()) return;
  const EndWait wait(state_->core.runtime(), std::chrono::seconds(2));
  static_cast<void>(state_->flush(wait.deadline()));
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
    const Deadline expiry{Deadline::Clock::time_point(std::chrono::nanoseconds(state.wake_ns))};
    const Errc waited = state.core.fabric().progress().wait([&]() noexcept { return state.core.has_news(); },
                                                            std::min(deadline, expiry));
    if (waited == Errc::timed_out && expiry < deadline && !deadline.passed()) continue;  // the round has expired
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

Result<void> Server::fail_all(const Error& error) {
  State& state = *state_;
  const pushpull::OneThread::Visit visit(state.door);
  if (auto good = state.enter(visit); !good) return good;
  state.core.break_all(error);
  for (auto& mine : state.waiting) {
    for (auto& [seq, round] : mine) state.finish(round, &error);
    mine.clear();
  }
  for (auto& [id, round] : state.requests) state.finish(round, &error);
  state.requests.clear();
  return {};
}

Result<void> Server::register_recv_buffer(const PullView& tensor, std::span<const int> workers,
                                          std::span<const std::uint64_t> keys) {
  State& state = *state_;
  const pushpull::OneThread::Visit visit(state.door);
  if (auto good = state.enter(visit); !good) return good;
  return state.register_buffer({tensor.data, tensor.bytes}, workers, keys);
}

Result<void> Server::unregister_recv_buffer(const PullView& tensor, Deadline deadline) {
  State& state = *state_;
  const pushpull::OneThread::Visit visit(state.door);
  if (auto good = state.enter(visit); !good) return good;
  return state.unregister_buffer({tensor.data, tensor.bytes}, deadline);
}

Result<void> Server::flush(Deadline deadline) {
  State& state = *state_;
  const pushpull::OneThread::Visit visit(state.door);
  if (auto good = state.enter(visit); !good) return good;
  return state.flush(deadline);
}

}  // namespace dtr::inline v0
