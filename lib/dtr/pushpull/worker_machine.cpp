#include "dtr/pushpull/worker_machine.hpp"

#include <algorithm>
#include <string>

#include "dtr/base/clock.hpp"
#include "dtr/base/log.hpp"

namespace dtr::inline v0 {

using fabric::PeerId;
using fabric::WorkRequest;
using pushpull::Kind;

namespace {

constexpr const char* kOperation = "push_pull";

}  // namespace

bool Worker::Machine::Round::posted() const noexcept {
  return std::all_of(parts.begin(), parts.end(), [](const auto& part) { return part->posted.done(); });
}

Worker::Machine::Machine(Runtime& runtime, const WorkerOptions& options)
    : rt_(runtime),
      options_(options),
      port_(value_or_throw(runtime.service_port("pushpull worker", options.group))),
      server_port_(value_or_throw(runtime.service_port("pushpull server", options.group))),
      registrar_(runtime.fabric(), runtime.operation_timeout()) {
  if (!rt_.is_worker()) throw Exception({.code = Errc::invalid_argument, .message = "this rank is no worker"});
  if (rt_.servers() == 0) throw Exception({.code = Errc::invalid_argument, .message = "the Runtime has no servers"});
  for (int i = 0; i < rt_.servers(); ++i) {
    Server& server = servers_.emplace_back();
    server.peer = static_cast<PeerId>(rt_.server_rank(i));
    if (rt_.fabric().peer_state(server.peer) != Errc::ok) {
      server.broken = rt_.fabric().peer_error(server.peer, kOperation);
    }
  }
  value_or_throw(rt_.fabric().open_port(port_, *this));
}

Worker::Machine::~Machine() {
  const auto idle = [this]() noexcept {
    const std::lock_guard lock(mutex_);
    return std::all_of(rounds_.begin(), rounds_.end(), [](const auto& round) {
      return round->open.load(std::memory_order_acquire) == 0 && round->posted();
    });
  };
  if (rt_.fabric().progress().wait(idle, rt_.operation_timeout()) == Errc::timed_out) {
    DTR_LOG_WARN("a Worker goes while rounds are open");
  }
  const Bytes bye = ByteWriter().value(Kind::bye).take();
  for (const Server& server : servers_) send(server.peer, bye);
  rt_.fabric().close_port(port_);
  for (const auto& round : rounds_) {
    for (const auto& part : round->parts) {
      if (part->posted.done()) continue;
      // The fabric still refers to it: take it back by force before the memory goes.
      const auto peer = servers_[static_cast<std::size_t>(part->server)].peer;
      rt_.fabric().cancel(peer, part->posted);
      static_cast<void>(rt_.fabric().quiesce(peer, rt_.operation_timeout(), true));
    }
  }
}

// --- starting ---

Result<void> Worker::Machine::check(std::span<const PushPull> tensors) const {
  if (tensors.empty()) return fail(Errc::invalid_argument, "no tensors", kOperation);
  std::vector<Key> keys;
  std::size_t pulls = 0;
  for (const PushPull& tensor : tensors) {
    if (tensor.push.empty() && tensor.pull.empty()) {
      return fail(Errc::invalid_argument,
                  "key " + std::to_string(tensor.key) + " has nothing to push and nothing to pull", kOperation);
    }
    if (!tensor.push.empty() || options_.route == Route::partition) keys.push_back(tensor.key);
    pulls += tensor.pull.empty() ? 0 : 1;
  }
  std::sort(keys.begin(), keys.end());
  if (const auto twice = std::adjacent_find(keys.begin(), keys.end()); twice != keys.end()) {
    return fail(Errc::invalid_argument, "key " + std::to_string(*twice) + " stands twice in the round", kOperation);
  }
  if (options_.route == Route::broadcast && pulls % servers_.size() != 0) {
    return fail(Errc::invalid_argument,
                std::to_string(pulls) + " pulls do not divide by " + std::to_string(servers_.size()) + " servers",
                kOperation);
  }
  return {};
}

Result<std::vector<std::unique_ptr<Worker::Machine::Part>>> Worker::Machine::cut(std::span<const PushPull> tensors) {
  std::vector<std::unique_ptr<Part>> parts(servers_.size());
  const auto part_of = [&](std::size_t server) -> Part& {
    if (parts[server] == nullptr) {
      parts[server] = std::make_unique<Part>();
      parts[server]->server = static_cast<int>(server);
    }
    return *parts[server];
  };
  std::size_t pulls = 0;
  for (const PushPull& tensor : tensors) pulls += tensor.pull.empty() ? 0 : 1;
  const std::size_t pulls_a_server = std::max<std::size_t>(1, pulls / servers_.size());
  std::size_t pull_number = 0;
  for (const PushPull& tensor : tensors) {
    if (!tensor.push.empty()) {
      auto place = registrar_.locate(tensor.push.bytes());
      if (!place) return fail(std::move(place.error()));
      const Item item{.key = tensor.key, .place = *place, .bytes = tensor.push.bytes().size()};
      if (options_.route == Route::partition) {
        part_of(tensor.key % servers_.size()).pushes.push_back(item);
      } else {
        for (std::size_t server = 0; server < servers_.size(); ++server) part_of(server).pushes.push_back(item);
      }
    }
    if (!tensor.pull.empty()) {
      auto place = registrar_.locate(tensor.pull.bytes());
      if (!place) return fail(std::move(place.error()));
      const std::size_t server =
          options_.route == Route::partition ? tensor.key % servers_.size() : pull_number / pulls_a_server;
      ++pull_number;
      part_of(server).pulls.push_back({.key = tensor.key, .place = *place, .bytes = tensor.pull.bytes().size()});
    }
  }
  std::erase(parts, nullptr);
  return parts;
}

Result<RoundHandle> Worker::Machine::start(std::span<const PushPull> tensors) {
  if (auto good = check(tensors); !good) return fail(std::move(good.error()));
  const std::int64_t now = monotonic_ns();
  auto parts = cut(tensors);
  if (!parts) return fail(std::move(parts.error()));

  RoundHandle handle;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& part : *parts) {
      if (const auto& broken = servers_[static_cast<std::size_t>(part->server)].broken) return fail(*broken);
    }
    const std::uint32_t index = next_round_ % kMaxRounds;
    if (index == rounds_.size()) rounds_.push_back(std::make_unique<Round>());
    Round& round = *rounds_[index];
    if (round.open.load(std::memory_order_acquire) != 0 || !round.posted()) {
      return fail(Errc::busy, std::to_string(kMaxRounds) + " rounds are open; wait for some", kOperation);
    }
    ++next_round_;
    ++round.generation;
    round.error.reset();
    round.parts = std::move(*parts);
    round.open.store(static_cast<std::uint32_t>(round.parts.size()), std::memory_order_release);
    for (auto& part : round.parts) {
      part->trace.server = part->server;
      part->trace.started = now;
      servers_[static_cast<std::size_t>(part->server)].queue.emplace_back(&round, part.get());
    }
    handle = {.index = index, .generation = round.generation};
  }
  pump();
  return handle;
}

// --- launching ---

void Worker::Machine::pump() noexcept {
  std::unique_lock lock(mutex_);
  if (launching_) return;  // that thread looks again before it stops
  launching_ = true;
  for (bool launched = true; launched;) {
    launched = false;
    for (Server& server : servers_) {
      while (!server.queue.empty()) {
        auto [round, part] = server.queue.front();
        if (!ready(server, *part)) break;
        server.queue.pop_front();
        prepare(server, *part);
        server.unanswered.emplace(part->sequence, std::pair(round, part));
        part->state = Part::State::launched;
        part->trace.posted = monotonic_ns();
        launched = true;
        fabric::Completion& posted = part->posted;
        posted.arm(1);  // holds the part while it is posted without the lock
        lock.unlock();
        rt_.fabric().submit(server.peer, requests_, rt_.operation_timeout());
        posted.finish(1, {});
        lock.lock();
      }
    }
  }
  launching_ = false;
}

bool Worker::Machine::ready(Server& server, const Part& part) {
  bool all = true;
  for (const Item& push : part.pushes) {
    const KeyState& key = server.keys[push.key];
    if (key.bytes != push.bytes || key.in_use >= key.slots) all = false;
  }
  if (!all) ask_for_slots(server, part);
  return all;
}

void Worker::Machine::ask_for_slots(Server& server, const Part& part) {
  for (const Item& push : part.pushes) {
    KeyState& key = server.keys[push.key];
    if (key.bytes == push.bytes || key.asked == push.bytes) continue;
    if (key.in_use > 0) continue;  // earlier rounds with the old size first
    key.asked = push.bytes;
    send(server.peer,
         ByteWriter().value(Kind::bind).value(pushpull::Bind{.key = push.key, .bytes = push.bytes}).take());
  }
}

void Worker::Machine::prepare(Server& server, Part& part) {
  requests_.clear();
  messages_.clear();
  part.sequence = server.next_sequence++;
  ByteWriter description;
  description.value(pushpull::RoundCounts{.pushes = static_cast<std::uint32_t>(part.pushes.size()),
                                          .pulls = static_cast<std::uint32_t>(part.pulls.size())});
  for (const Item& push : part.pushes) {
    KeyState& key = server.keys[push.key];
    const auto slot = static_cast<std::uint32_t>(key.uses++ % key.slots);
    ++key.in_use;
    requests_.push_back(WorkRequest::put({push.place.region, push.place.offset},
                                         {key.region, key.offset + slot * key.stride}, push.bytes, &part.posted));
    description.value(pushpull::PushEntry{.key = push.key, .bytes = push.bytes, .slot = slot});
  }
  for (const Item& pull : part.pulls) {
    const RemoteKey& region = pull.place.region->key();
    const auto [known, is_new] =
        server.regions.try_emplace({region.slot, region.generation}, static_cast<std::uint32_t>(server.regions.size()));
    if (is_new) {
      messages_.push_back(ByteWriter()
                              .value(Kind::region)
                              .value(pushpull::RegionNumber{.number = known->second, .region = region})
                              .take());
    }
    description.value(pushpull::PullEntry{
        .key = pull.key, .bytes = pull.bytes, .offset = pull.place.offset, .region = known->second});
  }
  const auto whole = description.view();
  const std::size_t room = rt_.fabric().max_message() - sizeof(Kind) - sizeof(pushpull::RoundPiece);
  for (std::size_t at = 0; at < whole.size(); at += room) {
    const auto piece = whole.subspan(at, std::min(room, whole.size() - at));
    Bytes message = ByteWriter()
                        .value(Kind::round)
                        .value(pushpull::RoundPiece{.sequence = part.sequence,
                                                    .total = static_cast<std::uint32_t>(whole.size()),
                                                    .offset = static_cast<std::uint32_t>(at)})
                        .take();
    message.insert(message.end(), piece.begin(), piece.end());
    messages_.push_back(std::move(message));
  }
  // The description says that the data are there, so it starts after the puts have finished.
  for (const Bytes& message : messages_) {
    requests_.push_back(WorkRequest::send(server_port_, message, &part.posted).fenced());
  }
}

void Worker::Machine::send(PeerId to, std::span<const std::byte> message) noexcept {
  const WorkRequest request = WorkRequest::send(server_port_, message, nullptr);
  rt_.fabric().submit(to, std::span(&request, 1), rt_.operation_timeout());
}

// --- answers ---

int Worker::Machine::server_of(PeerId peer) const noexcept {
  for (std::size_t i = 0; i < servers_.size(); ++i) {
    if (servers_[i].peer == peer) return static_cast<int>(i);
  }
  return -1;
}

void Worker::Machine::on_notify(PeerId from, std::uint32_t) noexcept {
  DTR_LOG_WARN("a notification from rank ", from, " on a worker's port has no meaning");
}

void Worker::Machine::on_message(PeerId from, std::span<const std::byte> payload) noexcept {
  const int server = server_of(from);
  if (server < 0) {
    DTR_LOG_WARN("rank ", from, " is no server of this group; its message is dropped");
    return;
  }
  try {
    handle(server, payload);
  } catch (const std::exception& e) {
    const std::lock_guard lock(mutex_);
    break_server(servers_[static_cast<std::size_t>(server)], {.code = Errc::resource_exhausted,
                                                              .message = e.what(),
                                                              .operation = kOperation,
                                                              .peer = static_cast<int>(from)});
  }
  pump();
}

void Worker::Machine::handle(int server_index, std::span<const std::byte> message) {
  Server& server = servers_[static_cast<std::size_t>(server_index)];
  const int rank = static_cast<int>(server.peer);
  ByteReader in(message);
  const auto kind = in.value<Kind>();
  if (kind == Kind::bound) {
    const auto bound = in.value<pushpull::Bound>();
    const std::string why = in.text();
    if (in.ok()) {
      const fabric::RemoteRegion* region = nullptr;
      if (bound.slots > 0) {
        auto imported = rt_.fabric().import(server.peer, bound.region);
        if (imported) region = *imported;
      }
      const std::lock_guard lock(mutex_);
      KeyState& key = server.keys[bound.key];
      if (bound.slots == 0 || region == nullptr) {
        return break_server(server, {.code = bound.slots == 0 ? static_cast<Errc>(bound.code) : Errc::unreachable,
                                     .message = "no slots for key " + std::to_string(bound.key) + " of " +
                                                std::to_string(bound.bytes) + " bytes: " + why,
                                     .operation = kOperation,
                                     .peer = rank});
      }
      if (bound.bytes != key.asked) return;  // asked for another size since
      key.bytes = bound.bytes;
      key.region = region;
      key.offset = bound.offset;
      key.stride = bound.stride;
      key.slots = bound.slots;
      key.uses = 0;
      return;
    }
  } else if (kind == Kind::response) {
    const auto response = in.value<pushpull::Response>();
    const std::string why = in.text();
    if (in.ok()) {
      const std::lock_guard lock(mutex_);
      const auto found = server.unanswered.find(response.sequence);
      if (found == server.unanswered.end()) return;  // the round ended otherwise before
      auto [round, part] = found->second;
      server.unanswered.erase(found);
      part->trace.server_received = response.stamps.received;
      part->trace.server_processed = response.stamps.processed;
      part->trace.server_responded = response.stamps.responded;
      std::optional<Error> error;
      if (response.code != 0) {
        error = Error{.code = static_cast<Errc>(response.code),
                      .message = why,
                      .operation = kOperation,
                      .peer = response.peer >= 0 ? response.peer : rank};
      }
      for (const Item& push : part->pushes) --server.keys[push.key].in_use;
      return end_part(server, *round, *part, std::move(error));
    }
  } else if (kind == Kind::failed) {
    const auto response = in.value<pushpull::Response>();
    const std::string why = in.text();
    if (in.ok()) {
      const std::lock_guard lock(mutex_);
      return break_server(server, {.code = static_cast<Errc>(response.code),
                                   .message = why,
                                   .operation = kOperation,
                                   .peer = response.peer >= 0 ? response.peer : rank});
    }
  }
  DTR_LOG_WARN("a malformed message from server rank ", rank, " is dropped");
}

void Worker::Machine::end_part(Server&, Round& round, Part& part, std::optional<Error> error) {
  part.state = Part::State::answered;
  part.trace.answered = monotonic_ns();
  if (error && !round.error) round.error = std::move(error);
  round.open.fetch_sub(1, std::memory_order_acq_rel);
}

void Worker::Machine::break_server(Server& server, const Error& error) {
  if (!server.broken) server.broken = error;
  for (auto& [sequence, entry] : server.unanswered) end_part(server, *entry.first, *entry.second, *server.broken);
  server.unanswered.clear();
  for (auto& [round, part] : server.queue) end_part(server, *round, *part, *server.broken);
  server.queue.clear();
}

void Worker::Machine::on_peer_down(PeerId peer, const Error& error) noexcept {
  const int server = server_of(peer);
  if (server < 0) return;  // the servers tell what a dead worker means for a round
  Error cause = error;
  cause.operation = kOperation;
  const std::lock_guard lock(mutex_);
  break_server(servers_[static_cast<std::size_t>(server)], cause);
}

// --- waiting ---

Worker::Machine::Round* Worker::Machine::find(RoundHandle handle) const noexcept {
  const std::lock_guard lock(mutex_);
  if (handle.index >= rounds_.size()) return nullptr;
  Round* round = rounds_[handle.index].get();
  return round->generation == handle.generation ? round : nullptr;
}

Result<void> Worker::Machine::wait(RoundHandle handle, Deadline deadline) {
  Round* round = find(handle);
  if (round == nullptr) return fail(Errc::stale_handle, "the round's handle was used again", kOperation);
  const auto over = [&]() noexcept {
    if (round->open.load(std::memory_order_acquire) != 0) return false;
    return round->posted();
  };
  const Errc outcome = rt_.fabric().progress().wait(over, deadline);
  const std::lock_guard lock(mutex_);
  if (outcome == Errc::timed_out) {
    std::string late;
    int first = -1;
    for (const auto& part : round->parts) {
      if (part->state == Part::State::answered && part->posted.done()) continue;
      const int rank = rt_.server_rank(part->server);
      late += (late.empty() ? "" : ", ") + std::to_string(rank);
      if (first < 0) first = rank;
    }
    return fail(Errc::timed_out, "no answer from server rank " + late + "; the round goes on", kOperation, first,
                first >= 0 ? rt_.fabric().path(static_cast<PeerId>(first)).transport : "");
  }
  if (outcome != Errc::ok) return fail(outcome, "called from a callback", kOperation);
  if (round->error) {
    Error error = *round->error;
    if (error.peer >= 0 && error.path.empty()) {
      error.path = rt_.fabric().path(static_cast<PeerId>(error.peer)).transport;
    }
    return fail(std::move(error));
  }
  for (const auto& part : round->parts) {
    if (!part->posted.status().ok()) {
      return fail(
          rt_.fabric().explain(static_cast<PeerId>(rt_.server_rank(part->server)), part->posted.status(), kOperation));
    }
  }
  return {};
}

Result<void> Worker::Machine::cancel(RoundHandle handle) {
  Round* round = find(handle);
  if (round == nullptr) return fail(Errc::stale_handle, "the round's handle was used again", "cancel");
  const std::lock_guard lock(mutex_);
  const Error cancelled{.code = Errc::cancelled, .message = "by the caller", .operation = kOperation};
  for (const auto& part : round->parts) {
    if (part->state == Part::State::answered) continue;
    Server& server = servers_[static_cast<std::size_t>(part->server)];
    if (part->state == Part::State::queued) {
      std::erase_if(server.queue, [&](const auto& entry) { return entry.second == part.get(); });
      end_part(server, *round, *part, cancelled);
    } else if (!round->error) {
      round->error = cancelled;  // the server has it: its slots come back with the answer
    }
  }
  return {};
}

Result<void> Worker::Machine::quiesce(RoundHandle handle, Deadline deadline) {
  Round* round = find(handle);
  if (round == nullptr) return fail(Errc::stale_handle, "the round's handle was used again", "quiesce");
  const auto quiet = [&]() noexcept { return round->open.load(std::memory_order_acquire) == 0 && round->posted(); };
  if (rt_.fabric().progress().wait(quiet, deadline) == Errc::ok) return {};
  return fail(Errc::busy, "a server may still write the round's pulls", "quiesce");
}

Result<std::vector<RoundTrace>> Worker::Machine::trace(RoundHandle handle) const {
  const Round* round = find(handle);
  if (round == nullptr) return fail(Errc::stale_handle, "the round's handle was used again", "trace");
  if (round->open.load(std::memory_order_acquire) != 0) return fail(Errc::busy, "the round is not over", "trace");
  const std::lock_guard lock(mutex_);
  std::vector<RoundTrace> traces;
  for (const auto& part : round->parts) traces.push_back(part->trace);
  return traces;
}

}  // namespace dtr::inline v0
