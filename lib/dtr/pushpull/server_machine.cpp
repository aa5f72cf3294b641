#include "dtr/pushpull/server_machine.hpp"

#include <algorithm>

#include "dtr/base/clock.hpp"
#include "dtr/base/log.hpp"

namespace dtr::inline v0 {

using fabric::PeerId;
using fabric::WorkRequest;
using pushpull::Kind;

namespace {

constexpr std::uint64_t kSlotAlignment = 4096;
constexpr std::uint32_t kLongestDescription = 64U << 20;
constexpr std::size_t kLongestText = 1024;

}  // namespace

Server::Machine::Machine(Runtime& runtime, const ServerOptions& options)
    : rt_(runtime),
      port_(value_or_throw(runtime.service_port("pushpull server", options.group))),
      worker_port_(value_or_throw(runtime.service_port("pushpull worker", options.group))),
      slots_(static_cast<std::uint32_t>(runtime.config().integer("pushpull.slots"))),
      registrar_(runtime.fabric(), runtime.operation_timeout()) {
  if (!rt_.is_server()) throw Exception({.code = Errc::invalid_argument, .message = "this rank is no server"});
  for (int i = 0; i < rt_.workers(); ++i) {
    WorkerState& worker = workers_.emplace_back();
    worker.peer = static_cast<PeerId>(rt_.worker_rank(i));
    if (rt_.fabric().peer_state(worker.peer) != Errc::ok) {
      worker.down = rt_.fabric().peer_error(worker.peer, "push_pull");
    }
  }
  value_or_throw(rt_.fabric().open_port(port_, *this));
}

Server::Machine::~Machine() {
  rt_.fabric().close_port(port_);
  const Error closed{.code = Errc::closed, .message = "the Server has ended", .operation = "push_pull"};
  for (WorkerState& worker : workers_) {
    for (const auto* rounds : {&worker.waiting, &worker.handed}) {
      for (const auto& [sequence, open] : *rounds) {
        send(worker.peer, response(Kind::response, sequence, &closed, open.stamps));
      }
    }
  }
}

void Server::Machine::send(PeerId to, std::span<const std::byte> message) noexcept {
  const WorkRequest request = WorkRequest::send(worker_port_, message, nullptr);
  rt_.fabric().submit(to, std::span(&request, 1), rt_.operation_timeout());
}

Bytes Server::Machine::response(Kind kind, std::uint64_t sequence, const Error* error,
                                const pushpull::ServerStamps& stamps) {
  pushpull::Response out{.sequence = sequence, .stamps = stamps};
  std::string text;
  if (error != nullptr) {
    out.code = static_cast<std::int32_t>(error->code);
    out.peer = error->peer;
    text = error->message.substr(0, kLongestText);
  }
  return ByteWriter().value(kind).value(out).text(text).take();
}

// --- what comes in ---

void Server::Machine::on_notify(PeerId from, std::uint32_t) noexcept {
  DTR_LOG_WARN("a notification from rank ", from, " on a server's port has no meaning");
}

void Server::Machine::on_message(PeerId from, std::span<const std::byte> payload) noexcept {
  const auto found = std::find_if(workers_.begin(), workers_.end(), [&](const auto& w) { return w.peer == from; });
  if (found == workers_.end()) {
    DTR_LOG_WARN("rank ", from, " is no worker of this group; its message is dropped");
    return;
  }
  try {
    handle(*found, payload);
  } catch (const std::exception& e) {
    const Error error{.code = Errc::resource_exhausted, .message = e.what(), .operation = "push_pull"};
    send(from, response(Kind::failed, 0, &error, {}));
  }
}

void Server::Machine::handle(WorkerState& worker, std::span<const std::byte> message) {
  ByteReader in(message);
  switch (in.value<Kind>()) {
    case Kind::bind: {
      const auto wanted = in.value<pushpull::Bind>();
      if (!in.ok()) break;
      return bind(worker, wanted);
    }
    case Kind::region: {
      const auto number = in.value<pushpull::RegionNumber>();
      if (!in.ok()) break;
      auto imported = rt_.fabric().import(worker.peer, number.region);
      if (!imported) break;
      const std::lock_guard lock(mutex_);
      worker.regions[number.number] = *imported;
      return;
    }
    case Kind::round: {
      const auto piece = in.value<pushpull::RoundPiece>();
      const auto bytes = in.rest();
      if (!in.ok() || piece.total > kLongestDescription || piece.offset > piece.total ||
          bytes.size() > piece.total - piece.offset) {
        break;
      }
      const std::lock_guard lock(mutex_);
      std::optional<Open> open;
      if (bytes.size() == piece.total) {
        open = open_round(worker, piece.sequence, bytes);
      } else {
        Assembly& assembly = worker.assemblies[piece.sequence];
        assembly.description.resize(piece.total);
        std::copy(bytes.begin(), bytes.end(), assembly.description.begin() + static_cast<std::ptrdiff_t>(piece.offset));
        assembly.received += bytes.size();
        if (assembly.received < piece.total) return;
        open = open_round(worker, piece.sequence, assembly.description);
        worker.assemblies.erase(piece.sequence);
      }
      if (!open) break;
      worker.waiting.insert_or_assign(piece.sequence, std::move(*open));
      return;
    }
    case Kind::bye: {
      const std::lock_guard lock(mutex_);
      if (worker.waiting.empty() && worker.handed.empty()) {
        worker.finished = true;
      } else if (!worker.down) {
        worker.down = Error{.code = Errc::peer_left,
                            .message = "it ended while its round was open",
                            .operation = "push_pull",
                            .peer = static_cast<int>(worker.peer)};
      }
      return;
    }
    default:
      break;
  }
  DTR_LOG_WARN("a malformed message from worker rank ", worker.peer, "; its rounds end");
  const Error error{
      .code = Errc::protocol_error, .message = "the server did not understand a message", .operation = "push_pull"};
  send(worker.peer, response(Kind::failed, 0, &error, {}));
}

void Server::Machine::bind(WorkerState& worker, const pushpull::Bind& wanted) {
  pushpull::Bound bound{.key = wanted.key, .bytes = wanted.bytes};
  std::string why;
  const std::uint64_t stride = (wanted.bytes + kSlotAlignment - 1) / kSlotAlignment * kSlotAlignment;
  auto memory = wanted.bytes > 0 && wanted.bytes <= ~std::uint64_t{0} / 2 / slots_
                    ? rt_.allocate(static_cast<std::size_t>(stride * slots_))
                    : Result<Buffer>(fail(Errc::invalid_argument, std::to_string(wanted.bytes) + " bytes"));
  if (memory) {
    auto slots = std::make_shared<Slots>();
    slots->memory = std::move(*memory);
    slots->bytes = wanted.bytes;
    slots->stride = stride;
    bound.region = slots->memory.region()->key();
    bound.offset = slots->memory.offset();
    bound.stride = stride;
    bound.slots = slots_;
    const std::lock_guard lock(mutex_);
    // The worker asks again only when no round with the old size is open, so nothing can land in the old slots.
    worker.keys[wanted.key] = std::move(slots);
  } else {
    bound.code = static_cast<std::int32_t>(memory.error().code);
    why = memory.error().message.substr(0, kLongestText);
  }
  send(worker.peer, ByteWriter().value(Kind::bound).value(bound).text(why).take());
}

std::optional<Server::Machine::Open> Server::Machine::open_round(WorkerState& worker, std::uint64_t sequence,
                                                                 std::span<const std::byte> description) {
  ByteReader in(description);
  const auto counts = in.value<pushpull::RoundCounts>();
  Open open;
  open.request.worker = static_cast<int>(&worker - workers_.data());
  open.request.sequence = sequence;
  for (std::uint32_t i = 0; i < counts.pushes && in.ok(); ++i) {
    const auto entry = in.value<pushpull::PushEntry>();
    const auto key = worker.keys.find(entry.key);
    if (!in.ok() || key == worker.keys.end() || key->second->bytes != entry.bytes || entry.slot >= slots_) return {};
    const Slots& slots = *key->second;
    open.request.pushes.push_back(
        {.key = entry.key, .bytes = slots.memory.span().subspan(entry.slot * slots.stride, slots.bytes)});
    open.slots.push_back(key->second);
  }
  for (std::uint32_t i = 0; i < counts.pulls && in.ok(); ++i) {
    const auto entry = in.value<pushpull::PullEntry>();
    const auto region = worker.regions.find(entry.region);
    if (!in.ok() || region == worker.regions.end()) return {};
    open.request.pulls.push_back({.key = entry.key, .bytes = entry.bytes});
    open.pulls.push_back({.key = entry.key, .bytes = entry.bytes, .region = region->second, .offset = entry.offset});
  }
  if (!in.ok() || !in.at_end()) return {};
  open.stamps.received = monotonic_ns();
  return open;
}

void Server::Machine::on_peer_down(PeerId peer, const Error& error) noexcept {
  const std::lock_guard lock(mutex_);
  for (WorkerState& worker : workers_) {
    if (worker.peer != peer) continue;
    worker.down = error;
    worker.down->operation = "push_pull";
    // It will not look at answers, and reads from nothing of ours any more.
    worker.assemblies.clear();
  }
}

// --- handing out ---

Request Server::Machine::hand_out(WorkerState& worker, std::uint64_t sequence) {
  auto node = worker.waiting.extract(sequence);
  node.mapped().stamps.processed = monotonic_ns();
  Request request = node.mapped().request;
  worker.handed.insert(std::move(node));
  worker.next = sequence + 1;
  return request;
}

std::string Server::Machine::list(const std::vector<int>& workers) const {
  std::string text;
  for (const int worker : workers) {
    text += (text.empty() ? "rank " : ", ") + std::to_string(workers_[static_cast<std::size_t>(worker)].peer);
  }
  return text;
}

Result<std::vector<Request>> Server::Machine::get_batch(Deadline deadline) {
  constexpr const char* kOperation = "get_batch";
  std::size_t present = 0;
  std::size_t finished = 0;
  bool down = false;
  const auto settled = [&]() noexcept {
    const std::lock_guard lock(mutex_);
    present = finished = 0;
    down = false;
    for (const WorkerState& worker : workers_) {
      if (worker.finished) {
        ++finished;
      } else if (worker.down) {
        down = true;
      } else if (worker.waiting.contains(worker.next)) {
        ++present;
      }
    }
    return down || finished == workers_.size() || present == workers_.size() || (finished > 0 && present > 0);
  };
  const Errc outcome = rt_.fabric().progress().wait(settled, deadline);
  const std::lock_guard lock(mutex_);
  if (outcome == Errc::would_deadlock) return fail(outcome, "called from a callback", kOperation);
  if (present == workers_.size()) {
    std::vector<Request> batch;
    for (WorkerState& worker : workers_) batch.push_back(hand_out(worker, worker.next));
    return batch;
  }
  std::vector<int> missing;
  std::vector<int> gone;
  for (std::size_t i = 0; i < workers_.size(); ++i) {
    const WorkerState& worker = workers_[i];
    if (worker.down && !worker.finished) return fail(*worker.down);
    if (worker.waiting.contains(worker.next)) continue;
    (worker.finished ? gone : missing).push_back(static_cast<int>(i));
  }
  if (finished == workers_.size()) return fail(Errc::closed, "all workers have finished", kOperation);
  if (!gone.empty() && present > 0) {
    return fail(Errc::invalid_argument, list(gone) + " has finished while others go on", kOperation);
  }
  return fail(Errc::timed_out, "no round from " + list(missing), kOperation);
}

Result<Request> Server::Machine::get_any(Deadline deadline) {
  constexpr const char* kOperation = "get_any";
  WorkerState* found = nullptr;
  bool over = false;
  const auto settled = [&]() noexcept {
    const std::lock_guard lock(mutex_);
    over = true;
    for (std::size_t i = 0; i < workers_.size(); ++i) {
      WorkerState& worker = workers_[(any_from_ + i) % workers_.size()];
      if (worker.waiting.contains(worker.next)) {
        found = &worker;
        return true;
      }
      over = over && (worker.finished || worker.down);
    }
    return over;
  };
  const Errc outcome = rt_.fabric().progress().wait(settled, deadline);
  if (outcome == Errc::would_deadlock) return fail(outcome, "called from a callback", kOperation);
  if (found == nullptr && over) return fail(Errc::closed, "all workers have finished or are gone", kOperation);
  if (found == nullptr) return fail(Errc::timed_out, "no worker asks", kOperation);
  const std::lock_guard lock(mutex_);
  any_from_ = static_cast<std::size_t>(found - workers_.data()) + 1;
  return hand_out(*found, found->next);
}

// --- answering ---

std::optional<Server::Machine::Open> Server::Machine::take(const Request& request) {
  const std::lock_guard lock(mutex_);
  if (request.worker < 0 || static_cast<std::size_t>(request.worker) >= workers_.size()) return {};
  auto& handed = workers_[static_cast<std::size_t>(request.worker)].handed;
  auto node = handed.extract(request.sequence);
  if (node.empty()) return {};
  return std::move(node.mapped());
}

Result<void> Server::Machine::respond(const Request& request, std::span<const ConstTensor> tensors,
                                      fabric::Completion& sent) {
  constexpr const char* kOperation = "respond";
  if (tensors.size() != request.pulls.size()) {
    return fail(Errc::invalid_argument,
                std::to_string(tensors.size()) + " tensors for " + std::to_string(request.pulls.size()) + " pulls",
                kOperation, rt_.worker_rank(request.worker));
  }
  std::vector<pushpull::Registrar::Place> places;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    if (tensors[i].bytes().size() != request.pulls[i].bytes) {
      return fail(Errc::invalid_argument,
                  "key " + std::to_string(request.pulls[i].key) + ": the tensor has " +
                      std::to_string(tensors[i].bytes().size()) + " bytes, the worker wants " +
                      std::to_string(request.pulls[i].bytes),
                  kOperation, rt_.worker_rank(request.worker));
    }
    auto place = registrar_.locate(tensors[i].bytes());
    if (!place) return fail(std::move(place.error()));
    places.push_back(*place);
  }
  auto open = take(request);
  if (!open) {
    return fail(Errc::not_found, "no open request " + std::to_string(request.sequence) + "; answered already?",
                kOperation, rt_.worker_rank(request.worker));
  }
  open->stamps.responded = monotonic_ns();
  std::vector<WorkRequest> requests;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    requests.push_back(WorkRequest::put({places[i].region, places[i].offset},
                                        {open->pulls[i].region, open->pulls[i].offset}, open->pulls[i].bytes, &sent));
  }
  const Bytes answer = response(Kind::response, request.sequence, nullptr, open->stamps);
  requests.push_back(WorkRequest::send(worker_port_, answer, &sent).fenced());
  rt_.fabric().submit(static_cast<PeerId>(rt_.worker_rank(request.worker)), requests, rt_.operation_timeout());
  return {};
}

Result<void> Server::Machine::wait_sent(const Request& request, fabric::Completion& sent, Deadline deadline) {
  const auto peer = static_cast<PeerId>(rt_.worker_rank(request.worker));
  auto done = rt_.fabric().wait(sent, peer, "respond", deadline);
  if (!done && !sent.done()) {
    // The Completion is the caller's: nothing may refer to it after this.
    rt_.fabric().cancel(peer, sent);
    static_cast<void>(rt_.fabric().quiesce(peer, rt_.operation_timeout(), true));
  }
  return done;
}

Result<void> Server::Machine::answer_with(const Request& request, const Error& error) {
  auto open = take(request);
  if (!open) return fail(Errc::not_found, "answered already", "refuse", rt_.worker_rank(request.worker));
  open->stamps.responded = monotonic_ns();
  send(static_cast<PeerId>(rt_.worker_rank(request.worker)),
       response(Kind::response, request.sequence, &error, open->stamps));
  return {};
}

void Server::Machine::fail_all(const Error& error) {
  const Bytes message = response(Kind::failed, 0, &error, {});
  for (WorkerState& worker : workers_) {
    if (worker.down) continue;
    send(worker.peer, message);
    const std::lock_guard lock(mutex_);
    worker.waiting.clear();
    worker.handed.clear();
  }
}

}  // namespace dtr::inline v0
