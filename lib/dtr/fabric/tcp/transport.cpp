#include "dtr/fabric/tcp/transport.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <utility>

#include "dtr/base/log.hpp"
#include "dtr/fabric/tcp/channel.hpp"
#include "dtr/fabric/tcp/tcp.hpp"

namespace dtr::inline v0 {
namespace fabric::tcp {

namespace {

constexpr const char* kOperation = "open tcp";
constexpr std::uint32_t kListenEvery = 64;
/// Several looks make up the time of grace: when this process itself stood still, a peer may be at the door unheard.
constexpr int kLooks = 4;
constexpr auto kGoodbyePatience = std::chrono::milliseconds(50);
constexpr std::int64_t kSettleNs = 20'000;  // longer than the round trip of a ping-pong, shorter than people notice
constexpr std::int64_t kLongestDebtNs = 500'000;  // though other peers never let it rest

Result<void> check(const TcpOptions& options) {
  const auto refuse = [](const std::string& what) { return fail(Errc::invalid_argument, what, kOperation); };
  if (!std::has_single_bit(options.queue_depth) || options.queue_depth < 2 || options.queue_depth > kMaxQueueDepth) {
    return refuse("queue_depth is not a power of two from 2 to " + std::to_string(kMaxQueueDepth));
  }
  if (options.eager_bytes > kMaxMessage) return refuse("eager_bytes is above " + std::to_string(kMaxMessage));
  if (options.max_pending_handshakes < 1) return refuse("max_pending_handshakes is 0");
  return {};
}

}  // namespace

Result<std::unique_ptr<Transport>> make_tcp(const TransportContext& context, const TcpOptions& options) {
  if (auto good = check(options); !good) return fail(std::move(good.error()));
  auto poller = Poller::create();
  if (!poller) return fail(std::move(poller.error()));
  auto listening = listen_on(options);
  if (!listening) return fail(std::move(listening.error()));
  auto endpoints = local_endpoints(options, listening->port);
  if (!endpoints) return fail(std::move(endpoints.error()));
  TcpOptions chosen = options;
  chosen.reconnect_grace = std::min(options.reconnect_grace, options.failure_detect / 2);
  auto transport =
      std::make_unique<TcpTransport>(context, chosen, std::move(*endpoints), std::move(*poller), std::move(*listening));
  if (auto started = transport->start(); !started) return fail(std::move(started.error()));
  return transport;
}

PeerRecord::PeerRecord(PeerId peer) : id(peer) {}
PeerRecord::~PeerRecord() = default;

TcpTransport::TcpTransport(const TransportContext& shared, const TcpOptions& chosen, std::vector<Endpoint> own,
                           Poller set, ListeningSocket listening)
    : Hub(shared, chosen, std::move(own), std::move(set)), lobby_(*this, std::move(listening.fd)) {}

Result<void> TcpTransport::start() {
  if (const int error = lobby_.open(); error != 0) return fail(errno_error(error, "epoll_ctl", kOperation));
  return {};
}

TcpTransport::~TcpTransport() {
  // Channel objects may outlive us: they keep an initiator that is over and does not look here again.
  for (auto& [id, peer] : peers_) {
    if (peer->channel != nullptr) peer->channel->end(Errc::closed, "the transport was closed");
  }
}

PeerRecord& TcpTransport::record_of(PeerId peer) {
  const std::lock_guard lock(mutex_);
  auto& record = peers_[peer];
  if (record == nullptr) {
    record = std::make_unique<PeerRecord>(peer);
    newcomers_.push_back(record.get());
  }
  return *record;
}

const std::vector<PeerRecord*>& TcpTransport::everybody() {
  const std::lock_guard lock(mutex_);
  round_.insert(round_.end(), newcomers_.begin(), newcomers_.end());
  newcomers_.clear();
  return round_;
}

std::shared_ptr<Initiator> TcpTransport::channel_of(const PeerRecord& peer) {
  const std::lock_guard lock(mutex_);
  return peer.channel;
}

Result<std::unique_ptr<Channel>> TcpTransport::connect(PeerId peer, std::span<const std::byte> address,
                                                       Deadline deadline) {
  auto decoded = decode(address);
  if (!decoded) return fail(std::move(decoded.error()));
  PeerRecord& record = record_of(peer);
  std::shared_ptr<Initiator> initiator;
  {
    const std::lock_guard lock(mutex_);
    if (record.channel != nullptr && !record.channel->over()) {
      return fail(Errc::already_exists, "there is a channel", "connect", static_cast<int>(peer), "tcp");
    }
    if (record.channel != nullptr) retired_.push_back(std::move(record.channel));
    initiator = std::make_shared<Initiator>(static_cast<Hub&>(*this), record, std::move(*decoded), deadline);
    record.channel = initiator;
  }
  in_use_.store(true, std::memory_order_relaxed);
  auto channel = std::make_unique<TcpChannel>(initiator);
  initiator->start();
  return channel;
}

int TcpTransport::progress(int /*budget*/) noexcept {
  const bool slept = asleep_.load(std::memory_order_relaxed);
  if (slept) asleep_.store(false, std::memory_order_relaxed);
  // Where all peers share the host nobody ever connects here: a system call among so many looks at their memory.
  const bool unused = !in_use_.load(std::memory_order_relaxed) && next_call_.load(std::memory_order_relaxed) == kNever;
  if (unused && !slept && ++rounds_ % kListenEvery != 0) return 0;
  std::array<epoll_event, 64> room;
  const auto ready = poller.poll(room);
  for (const epoll_event& event : ready) static_cast<Pollable*>(event.data.ptr)->on_ready(event.events);
  const std::int64_t now = now_ns();
  if (now >= next_call_.load(std::memory_order_relaxed)) on_time(now);
  if (!ready.empty()) {
    last_ready_ = now;
    in_use_.store(true, std::memory_order_relaxed);
  }
  if (!owing_.empty() && (now - last_ready_ >= kSettleNs || now - owing_since_ >= kLongestDebtNs)) settle();
  graveyard_.clear();
  return static_cast<int>(ready.size());
}

void TcpTransport::settle() noexcept {
  for (PeerRecord* peer : owing_) {
    if (peer->link != nullptr) peer->link->settle();
  }
  owing_.clear();
}

bool TcpTransport::prepare_sleep() noexcept {
  settle();
  asleep_.store(true, std::memory_order_seq_cst);
  return true;  // level-triggered: what is there already keeps the descriptor readable
}

Deadline::Clock::time_point TcpTransport::next_deadline() const noexcept {
  const std::int64_t when = next_call_.load(std::memory_order_seq_cst);
  if (when == kNever) return Deadline::Clock::time_point::max();
  return Deadline::Clock::time_point(std::chrono::nanoseconds(when));
}

void TcpTransport::on_time(std::int64_t now) noexcept {
  // Whoever wants an earlier call from here on lowers it again.
  next_call_.store(kNever, std::memory_order_seq_cst);
  call_at(lobby_.on_time(now));
  std::int64_t next = kNever;
  for (PeerRecord* peer : everybody()) {
    if (const std::int64_t when = peer->next_call.load(std::memory_order_seq_cst); when > now) {
      next = std::min(next, when);
    } else {
      peer->next_call.store(kNever, std::memory_order_seq_cst);
      call_at(*peer, peer_on_time(*peer, now));
    }
  }
  call_at(next);
  const std::lock_guard lock(mutex_);
  retired_.clear();
}

std::int64_t TcpTransport::peer_on_time(PeerRecord& peer, std::int64_t now) noexcept {
  std::int64_t next = kNever;
  const std::shared_ptr<Initiator> channel = channel_of(peer);
  if (peer.fence_wanted.exchange(false, std::memory_order_acq_rel)) {
    bury(peer);
    if (channel != nullptr) channel->end(Errc::peer_failed, "this process has declared the peer failed");
  }
  if (peer.link != nullptr) next = std::min(next, peer.link->on_time(now));
  if (channel != nullptr) next = std::min(next, channel->on_time(now));
  if (peer.look_at == kNever) return next;
  if (now >= peer.look_at) {
    if (--peer.looks_left == 0) {
      judge_lost_peer(peer, channel.get());
      return next;
    }
    peer.look_at = now + look_pause();
  }
  return std::min(next, peer.look_at);
}

std::int64_t TcpTransport::look_pause() const noexcept { return to_ns(options.reconnect_grace) / kLooks; }

void TcpTransport::judge_lost_peer(PeerRecord& peer, const Initiator* channel) noexcept {
  peer.look_at = kNever;
  // Our own connection to it knows better: it stands, or it is finding out.
  if (channel != nullptr && !channel->over()) return;
  if (channel != nullptr && channel->leaving()) return;  // we have parted
  peer_down(peer, Errc::peer_failed, peer.lost_why + ", and it did not come back");
}

void TcpTransport::bury(PeerRecord& peer) noexcept {
  if (peer.link == nullptr) return;
  peer.link->close();
  graveyard_.push_back(std::move(peer.link));
}

void TcpTransport::admit(UniqueFd fd, const Hello& hello, const Endpoint& from) noexcept {
  PeerRecord& peer = record_of(hello.peer);
  if (peer.inbound.shut_out.load(std::memory_order_acquire)) {
    Verdict verdict{.code = static_cast<std::int32_t>(Errc::fenced)};
    iovec piece{&verdict, sizeof verdict};
    static_cast<void>(send_from(fd.get(), &piece, 1));
    DTR_LOG_INFO("tcp: rank ", hello.peer, " at ", from.to_string(), " is fenced and was turned away");
    return;
  }
  if (hello.connection <= peer.accepted) {
    DTR_LOG_DEBUG("tcp: an overtaken connection of rank ", hello.peer, " was dropped");
    return;
  }
  // What the old connection has not delivered yet is not read any more: the welcome tells the peer where we stand.
  bury(peer);
  peer.accepted = hello.connection;
  peer.look_at = kNever;
  peer.link = std::make_unique<Responder>(static_cast<Hub&>(*this), peer, std::move(fd), from);
  DTR_LOG_INFO("tcp: rank ", hello.peer, " connected from ", from.to_string());
  peer.link->start();
}

void TcpTransport::link_lost(PeerRecord& peer, std::string why) noexcept {
  bury(peer);
  if (peer.left || peer.told_down) return;
  DTR_LOG_INFO("tcp: the connection from rank ", peer.id, " broke: ", why);
  peer.look_at = now_ns() + look_pause();
  peer.looks_left = kLooks;
  peer.lost_why = std::move(why);
  call_at(peer, peer.look_at);
}

void TcpTransport::peer_down(PeerRecord& peer, Errc code, const std::string& why) noexcept {
  if (code == Errc::peer_failed) {
    peer.inbound.shut_out.store(true, std::memory_order_release);
    bury(peer);
  }
  if (const auto channel = channel_of(peer); channel != nullptr) channel->end(code, why);
  if (std::exchange(peer.told_down, true)) return;
  context.receiver.on_peer_down(peer.id, code, why);
}

void TcpTransport::leave() noexcept {
  const Deadline patience(kGoodbyePatience);  // with all of them together
  for (PeerRecord* peer : everybody()) {
    if (peer->link != nullptr) peer->link->say_goodbye(patience);
  }
}

void TcpTransport::fence(PeerId peer) noexcept {
  PeerRecord& record = record_of(peer);
  record.inbound.shut_out.store(true, std::memory_order_release);
  record.fence_wanted.store(true, std::memory_order_release);
  call_at(record, 0);
}

}  // namespace fabric::tcp
}  // namespace dtr::inline v0
