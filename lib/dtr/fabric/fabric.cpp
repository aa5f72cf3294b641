#include "dtr/fabric/fabric.hpp"

#include <algorithm>
#include <deque>
#include <string_view>

#include "dtr/base/bytes.hpp"
#include "dtr/base/log.hpp"
#include "dtr/fabric/detail/peer.hpp"
#include "dtr/fabric/loopback/loopback.hpp"
#include "dtr/fabric/refusals.hpp"

namespace dtr::inline v0 {
namespace fabric {

namespace {

/// Tells the completions of a run of requests how they ended.
void finish_all(std::span<const WorkRequest> requests, Status status) noexcept {
  while (!requests.empty()) {
    Completion* completion = requests.front().completion;
    std::size_t run = 1;
    while (run < requests.size() && requests[run].completion == completion) ++run;
    if (completion != nullptr) completion->finish(static_cast<std::uint32_t>(run), status);
    requests = requests.subspan(run);
  }
}

/// How many requests of the front may be posted: not what is fenced behind a request that has failed.
std::size_t worth_posting(std::span<const WorkRequest> requests) noexcept {
  std::size_t count = 0;
  while (count < requests.size() && !is_in_vain(requests[count])) ++count;
  return count;
}

void arm_all(std::span<const WorkRequest> requests) noexcept {
  while (!requests.empty()) {
    Completion* completion = requests.front().completion;
    std::size_t run = 1;
    while (run < requests.size() && requests[run].completion == completion) ++run;
    if (completion != nullptr) completion->arm(static_cast<std::uint32_t>(run));
    requests = requests.subspan(run);
  }
}

}  // namespace

Fabric::Fabric(FabricOptions options)
    : identity_(options.identity),
      options_(std::move(options)),
      ports_(options_.hold_bytes),
      waiters_(std::make_unique<Waiters>()) {}

Result<std::unique_ptr<Fabric>> Fabric::create(FabricOptions options) {
  if (options.identity.self >= options.identity.world) {
    return fail(Errc::invalid_argument, "rank outside of the world", "start fabric");
  }
  try {
    std::unique_ptr<Fabric> fabric(new Fabric(std::move(options)));
    auto regions = RegionTable::create();
    if (!regions) return fail(std::move(regions.error()));
    fabric->regions_ = std::move(*regions);
    fabric->engine_ = std::make_unique<ProgressEngine>(fabric->options_.progress);
    if (auto made = fabric->make_transports(); !made) return fail(std::move(made.error()));
    return fabric;
  } catch (const Exception& e) {
    return fail(e.error());
  }
}

Fabric::~Fabric() {
  if (fork_guard_.in_forked_child()) {
    // Threads and connections belong to the parent; the memory goes with the child's exit.
    for (auto& peer : peers_) static_cast<void>(peer->channel_owner.release());
    for (auto& transport : transports_) static_cast<void>(transport.release());
    static_cast<void>(engine_.release());
    return;
  }
  engine_->stop();
  for (auto& peer : peers_) peer->end_backlog({.code = Errc::closed});
  for (auto& peer : peers_) {
    if (peer->channel_owner != nullptr) peer->channel_owner->abort(Errc::closed);
  }
  for (auto& peer : peers_) peer->channel_owner.reset();
  transports_.clear();
  for (const auto& meter : meters_) meter->retire();
}

std::vector<TrafficReport> Fabric::traffic() const {
  std::vector<TrafficReport> reports;
  for (std::size_t i = 0; i < transports_.size(); ++i) {
    reports.push_back({.transport = std::string(transports_[i]->name()), .totals = meters_[i]->totals()});
  }
  return reports;
}

Result<void> Fabric::start(std::span<const std::vector<std::byte>> addresses, const JobToken& token) {
  if (started_) return fail(Errc::already_exists, "started already", "start fabric");
  if (addresses.size() != identity_.world) {
    return fail(Errc::invalid_argument,
                std::to_string(addresses.size()) + " addresses for " + std::to_string(identity_.world) + " ranks",
                "start fabric");
  }
  identity_.token = token;
  std::vector<std::string> domains;
  for (const auto& transport : transports_) domains.push_back(transport->domain());
  peers_.reserve(identity_.world);
  for (PeerId id = 0; id < identity_.world; ++id) {
    if (auto chosen = choose_path(id, addresses[id], domains); !chosen) return chosen;
  }
  backlog_ = std::make_unique<Backlog>(*waiters_);
  for (auto& transport : transports_) {
    if (auto added = engine_->add(*transport); !added) return added;
  }
  if (auto added = engine_->add(*backlog_); !added) return added;
  started_ = true;
  return engine_->start();
}

Result<void> Fabric::close_channels(Deadline deadline) {
  if (auto alive = fork_guard_.check("stop fabric"); !alive) return alive;
  std::vector<Peer*> open;
  for (auto& peer : peers_) {
    Channel* channel = peer->channel.load(std::memory_order_acquire);
    if (channel == nullptr || peer->down.load() != Errc::ok) continue;
    open.push_back(peer.get());
  }
  const auto pending = [&](const Peer& peer) {
    const ChannelState state = peer.channel.load(std::memory_order_acquire)->state();
    return state != ChannelState::closed && state != ChannelState::failed;
  };
  // First what waits for room, then the channels' own end.
  const auto backlog_empty = [&]() noexcept {
    return std::none_of(open.begin(), open.end(), [](const Peer* peer) { return peer->has_backlog.load(); });
  };
  Errc outcome = engine_->wait(backlog_empty, deadline);
  for (Peer* peer : open) peer->channel.load(std::memory_order_acquire)->close();
  if (outcome == Errc::ok) {
    outcome = engine_->wait(
        [&]() noexcept { return std::none_of(open.begin(), open.end(), [&](const Peer* p) { return pending(*p); }); },
        deadline);
  }
  if (outcome == Errc::would_deadlock) return fail(outcome, "called from a callback", "stop fabric");
  std::string late;
  for (const Peer* peer : open) {
    if (pending(*peer)) late += (late.empty() ? "" : ", ") + std::to_string(peer->id);
  }
  if (outcome != Errc::ok) return fail(outcome, "not flushed: rank " + late, "stop fabric");
  return {};
}

Result<void> Fabric::stop(Deadline deadline) {
  if (engine_->in_progress()) return fail(Errc::would_deadlock, "called from a callback", "stop fabric");
  auto closed = close_channels(deadline);
  if (!closed && (closed.error().code == Errc::would_deadlock || closed.error().code == Errc::forked)) return closed;
  engine_->exclusively([&] {
    for (auto& transport : transports_) transport->leave();
  });
  engine_->stop();
  return closed;
}

// --- memory ---

Result<Region*> Fabric::register_memory(std::span<std::byte> memory, const RegionOptions& options,
                                        std::shared_ptr<Segment> segment) {
  if (auto alive = fork_guard_.check("register memory"); !alive) return fail(std::move(alive.error()));
  auto region = regions_->add(memory, options, std::move(segment));
  if (!region) return region;
  for (std::size_t i = 0; i < transports_.size(); ++i) {
    auto registered = transports_[i]->register_region(**region);
    if (registered) continue;
    for (std::size_t k = 0; k < i; ++k) transports_[k]->deregister_region(**region);
    regions_->revoke(**region);
    regions_->remove(**region);
    return fail(std::move(registered.error()));
  }
  return region;
}

Result<Region*> Fabric::allocate_segment(std::size_t bytes, const RegionOptions& options) {
  auto segment = Segment::create(next_segment_.fetch_add(1), bytes);
  if (!segment) return fail(std::move(segment.error()));
  const std::span<std::byte> memory((*segment)->data(), (*segment)->length());
  return register_memory(memory, options, std::move(*segment));
}

Result<void> Fabric::unregister_memory(Region& region, Deadline deadline) {
  if (auto alive = fork_guard_.check("unregister memory"); !alive) return alive;
  regions_->revoke(region);
  const auto quiet = [&]() noexcept {
    if (region.uses() != 0) return false;
    return engine_->exclusively([&]() noexcept {
      return std::all_of(transports_.begin(), transports_.end(),
                         [&](const auto& transport) { return transport->drained(region); });
    });
  };
  if (engine_->in_progress()) return fail(Errc::would_deadlock, "called from a callback", "unregister memory");
  if (engine_->wait(quiet, deadline) != Errc::ok) {
    return fail(Errc::busy,
                std::to_string(region.length()) +
                    " bytes may still be touched by a peer or an open operation; the memory stays quarantined",
                "unregister memory");
  }
  for (auto& transport : transports_) transport->deregister_region(region);
  regions_->remove(region);
  return {};
}

// --- work ---

Result<Channel*> Fabric::connect(Peer& peer) {
  const std::lock_guard lock(peer.mutex);
  if (Channel* present = peer.channel.load(std::memory_order_acquire); present != nullptr) return present;
  if (!started_) return fail(Errc::closed, "the fabric is not started", "connect", static_cast<int>(peer.id));
  auto channel = peer.transport->connect(peer.id, peer.address, options_.connect_timeout);
  if (!channel) return fail(std::move(channel.error()));
  peer.channel_owner = std::move(*channel);
  peer.channel.store(peer.channel_owner.get(), std::memory_order_release);
  return peer.channel_owner.get();
}

Result<Channel*> Fabric::channel(PeerId id) {
  if (auto alive = fork_guard_.check("connect"); !alive) return fail(std::move(alive.error()));
  if (id >= peers_.size()) {
    return fail(Errc::not_found, "there are " + std::to_string(peers_.size()) + " ranks", "connect",
                static_cast<int>(id));
  }
  Peer& peer = *peers_[id];
  if (peer.down.load(std::memory_order_acquire) != Errc::ok) return fail(peer_error(id, "connect"));
  if (Channel* present = peer.channel.load(std::memory_order_acquire); present != nullptr) return present;
  return connect(peer);
}

Result<const RemoteRegion*> Fabric::import(PeerId id, const RemoteKey& key) {
  auto way = channel(id);
  if (!way) return fail(std::move(way.error()));
  return (*way)->import(key);
}

std::size_t Fabric::post_now(Peer& peer, std::span<const WorkRequest> requests, Deadline deadline) noexcept {
  Channel* channel = peer.channel.load(std::memory_order_acquire);
  std::size_t done = 0;
  bool failed = false;
  while (done < requests.size()) {
    auto rest = requests.subspan(done);
    if (failed || is_in_vain(rest.front())) {
      rest = rest.first(worth_posting(rest));
      if (rest.empty()) {
        finish_all(requests.subspan(done, 1), {.code = Errc::cancelled});
        ++done;
        continue;
      }
    }
    const PostResult result = channel->post(rest, deadline);
    finish_all(rest.first(result.finished), {});
    done += result.accepted;
    if (result.accepted == rest.size()) continue;
    if (result.status.code == Errc::again) break;
    finish_all(rest.subspan(result.accepted, 1), result.status);
    failed = true;
    ++done;
  }
  return done;
}

void Fabric::submit(PeerId id, std::span<const WorkRequest> requests, Deadline deadline) noexcept {
  arm_all(requests);
  Errc refused = Errc::ok;
  if (fork_guard_.in_forked_child()) {
    refused = Errc::forked;
  } else if (id >= peers_.size()) {
    refused = Errc::not_found;
  } else {
    Peer& peer = *peers_[id];
    refused = peer.down.load(std::memory_order_acquire);
    if (refused == Errc::ok && peer.channel.load(std::memory_order_acquire) == nullptr) {
      if (auto connected = connect(peer); !connected) {
        refused = connected.error().code;
        peer.set_connect_failure(connected.error().message);
      }
    }
    if (refused == Errc::ok) {
      std::size_t posted = 0;
      if (!peer.has_backlog.load(std::memory_order_acquire)) posted = post_now(peer, requests, deadline);
      if (posted < requests.size()) {
        const Errc kept = peer.keep(requests.subspan(posted), deadline);
        kept == Errc::ok ? engine_->wake() : finish_all(requests.subspan(posted), {.code = kept});
      }
    }
  }
  if (refused != Errc::ok) finish_all(requests, {.code = refused});
}

Result<void> Fabric::wait(Completion& completion, PeerId peer, std::string_view operation, Deadline deadline) {
  if (auto alive = fork_guard_.check(std::string(operation)); !alive) return alive;
  const Errc outcome = engine_->wait([&]() noexcept { return completion.done(); }, deadline);
  if (outcome == Errc::timed_out) {
    return fail(explain(peer, {.code = outcome, .quiesced = false, .fenced = false}, operation));
  }
  if (outcome != Errc::ok) return fail(outcome, "called from a callback", std::string(operation));
  const Status status = completion.status();
  if (!status.ok()) return fail(explain(peer, status, operation));
  return {};
}

std::uint32_t Fabric::cancel(PeerId id, Completion& completion) noexcept {
  if (id >= peers_.size() || fork_guard_.in_forked_child()) return 0;
  Peer& peer = *peers_[id];
  std::uint32_t ended = peer.cancel_backlog(completion);
  if (Channel* channel = peer.channel.load(std::memory_order_acquire); channel != nullptr) {
    ended += channel->cancel(completion);
  }
  if (ended > 0) engine_->announce();
  return ended;
}

Result<void> Fabric::quiesce(PeerId id, Deadline deadline, bool force) {
  if (auto alive = fork_guard_.check("quiesce"); !alive) return alive;
  if (id >= peers_.size()) return fail(Errc::not_found, "no such rank", "quiesce", static_cast<int>(id));
  Channel* channel = peers_[id]->channel.load(std::memory_order_acquire);
  if (channel == nullptr) return {};
  if (force && !channel->quiesced()) channel->reset();
  const Errc outcome = engine_->wait([&]() noexcept { return channel->quiesced(); }, deadline);
  if (outcome == Errc::ok) return {};
  if (outcome == Errc::would_deadlock) return fail(outcome, "called from a callback", "quiesce");
  return fail(Errc::busy, "an ended operation may still touch memory", "quiesce", static_cast<int>(id),
              channel->path());
}

Error Fabric::explain(PeerId id, const Status& status, std::string_view operation) const {
  Error error{.code = status.code, .operation = std::string(operation), .peer = static_cast<int>(id)};
  if (id >= peers_.size()) {
    error.message = "there are " + std::to_string(peers_.size()) + " ranks";
    return error;
  }
  const Peer& peer = *peers_[id];
  const bool gone = status.code == Errc::peer_failed || status.code == Errc::peer_left || status.code == Errc::fenced;
  // A transport ends the requests to a dead peer, and then tells us: until it has, only the channel knows.
  if (gone && peer.down.load(std::memory_order_acquire) != Errc::ok) return peer_error(id, operation);
  if (const Channel* channel = peer.channel.load(std::memory_order_acquire); channel != nullptr) {
    error.path = channel->path();
    error.message = channel->explain(status);
  } else {
    error.path = peer.transport != nullptr ? std::string(peer.transport->name()) : "no path";
    error.message = peer.connect_failure();
  }
  if (error.message.empty()) error.message = words_for(status.code);
  if (!status.quiesced) error.message += error.message.empty() ? "not quiesced" : "; not quiesced";
  if (!status.fenced) error.message += "; whether it lands at the target is unknown";
  return error;
}

// --- events ---

Result<void> Fabric::open_port(Port port, PortHandler& handler) {
  if (engine_->in_progress()) return ports_.open(port, handler);
  return engine_->exclusively([&] { return ports_.open(port, handler); });
}

void Fabric::close_port(Port port) noexcept {
  if (engine_->in_progress()) {
    ports_.close(port);
  } else {
    engine_->exclusively([&] { ports_.close(port); });
  }
}

void Fabric::on_arrival(PeerId from) noexcept {
  if (from >= peers_.size()) return;
  auto& heard = peers_[from]->heard;  // progress alone writes it
  heard.store(heard.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
}

void Fabric::on_notify(PeerId from, Port port, std::uint32_t value) noexcept {
  on_arrival(from);
  if (!ports_.notify(from, port, value)) {
    on_peer_down(from, Errc::resource_exhausted, "its notifications for an unopened port exceed fabric.hold_bytes");
  }
}

void Fabric::on_message(PeerId from, Port port, std::span<const std::byte> payload) noexcept {
  on_arrival(from);
  if (!ports_.message(from, port, payload)) {
    on_peer_down(from, Errc::resource_exhausted, "its messages for an unopened port exceed fabric.hold_bytes");
  }
}

// --- peers ---

void Fabric::on_peer_down(PeerId id, Errc code, std::string_view why) noexcept {
  if (id >= peers_.size()) return;
  Peer& peer = *peers_[id];
  if (!peer.set_down(code, why)) return;
  DTR_LOG_INFO("rank ", id, " is down: ", dtr::to_string(code), ": ", why);
  peer.end_backlog({.code = code});
  if (Channel* channel = peer.channel.load(std::memory_order_acquire); channel != nullptr) channel->abort(code);
  ports_.peer_down(id, peer_error(id, {}));
}

void Fabric::declare_down(PeerId id, Errc code, std::string_view why) noexcept {
  if (id >= peers_.size() || id == self() || fork_guard_.in_forked_child()) return;
  const auto act = [&] {
    const bool to_be_kept_out = code != Errc::fenced && code != Errc::peer_left;
    if (to_be_kept_out && peers_[id]->transport != nullptr) peers_[id]->transport->fence(id);
    on_peer_down(id, code, why);
  };
  if (engine_->in_progress()) {
    act();
  } else {
    engine_->exclusively(act);
    engine_->announce();
  }
}

Errc Fabric::peer_state(PeerId peer) const noexcept {
  return peer < peers_.size() ? peers_[peer]->down.load(std::memory_order_acquire) : Errc::not_found;
}

std::uint64_t Fabric::heard(PeerId peer) const noexcept {
  return peer < peers_.size() ? peers_[peer]->heard.load(std::memory_order_relaxed) : 0;
}

Error Fabric::peer_error(PeerId id, std::string_view operation) const {
  const Peer& peer = *peers_.at(id);
  return {.code = peer.down.load(std::memory_order_acquire),
          .message = peer.down_reason(),
          .operation = std::string(operation),
          .peer = static_cast<int>(id),
          .path = peer.transport != nullptr ? std::string(peer.transport->name()) : std::string()};
}

}  // namespace fabric
}  // namespace dtr::inline v0
