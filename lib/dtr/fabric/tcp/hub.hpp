// What the parts of the transport share: settings, the epoll set, the clock's next appointment, and the peers.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "dtr/base/deadline.hpp"
#include "dtr/fabric/handshake.hpp"
#include "dtr/fabric/tcp/options.hpp"
#include "dtr/fabric/tcp/poller.hpp"
#include "dtr/fabric/tcp/request_reader.hpp"
#include "dtr/fabric/tcp/send_queue.hpp"
#include "dtr/fabric/tcp/socket.hpp"
#include "dtr/fabric/transport.hpp"

namespace dtr::inline v0 {
namespace fabric::tcp {

class Initiator;
class Responder;

[[nodiscard]] inline std::int64_t to_ns(Deadline::Clock::time_point at) noexcept {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(at.time_since_epoch()).count();
}
[[nodiscard]] inline std::int64_t now_ns() noexcept { return to_ns(Deadline::Clock::now()); }
[[nodiscard]] inline std::int64_t to_ns(std::chrono::milliseconds span) noexcept {
  return std::chrono::nanoseconds(span).count();
}

/// One peer, over all connections in both directions. Progress thread, except where it says otherwise.
struct PeerRecord {
  explicit PeerRecord(PeerId peer);
  ~PeerRecord();

  const PeerId id;
  Inbound inbound{};
  std::uint32_t accepted = 0;            ///< number of its latest connection to us
  std::atomic<std::uint32_t> dialed{0};  ///< number of our latest connection to it; any thread
  std::unique_ptr<Responder> link;       ///< its connection to us
  std::shared_ptr<Initiator> channel;    ///< ours to it; under the transport's mutex
  std::int64_t look_at = kNever;         ///< its connection broke without a goodbye: when to see whether it is back
  int looks_left = 0;                    ///< then it is taken for dead
  std::string lost_why{};
  std::atomic<bool> fence_wanted{false};        ///< any thread
  std::atomic<std::int64_t> next_call{kNever};  ///< when this peer is to be looked at; any thread
  bool left = false;
  bool told_down = false;
};

/// Tells a host that has vanished from a process that is merely silent.
class SilenceWatch {
 public:
  /// True once the other kernel has owed an answer at every look for `limit_ns`.
  [[nodiscard]] bool vanished(bool owes_answer, std::int64_t now, std::int64_t limit_ns) noexcept {
    if (!owes_answer) {
      since_ = kNever;
      return false;
    }
    if (since_ == kNever) since_ = now;
    return now - since_ >= limit_ns;
  }

 private:
  std::int64_t since_ = kNever;
};

class Hub {
 public:
  Hub(const TransportContext& shared, TcpOptions chosen, std::vector<Endpoint> own, Poller set)
      : context(shared), options(std::move(chosen)), endpoints(std::move(own)), poller(std::move(set)) {}

  const TransportContext context;
  const TcpOptions options;
  const std::vector<Endpoint> endpoints;  ///< where we can be reached
  Poller poller;

  /// progress wants to be called at this time. Any thread.
  void call_at(std::int64_t when_ns) noexcept {
    if (lower(next_call_, when_ns) && asleep_.load(std::memory_order_seq_cst)) poller.ring();
  }

  /// The same, to look at this peer: the others are left alone then.
  void call_at(PeerRecord& peer, std::int64_t when_ns) noexcept {
    lower(peer.next_call, when_ns);  // first: whoever forgets the transport's next call looks at the peers' after that
    call_at(when_ns);
  }

  // The rest happens inside progress.

  /// A peer has proved itself on this connection.
  virtual void admit(UniqueFd fd, const Hello& hello, const Endpoint& from) noexcept = 0;

  /// A peer's connection to us is over. The link is not used any more once its function has returned.
  virtual void link_lost(PeerRecord& peer, std::string why) noexcept = 0;

  virtual void peer_down(PeerRecord& peer, Errc code, const std::string& why) noexcept = 0;

  /// This peer's link owes an acknowledgement that can wait: settle() is called when nothing else is to be done.
  virtual void settle_later(PeerRecord& peer) noexcept = 0;

 protected:
  ~Hub() = default;

  static bool lower(std::atomic<std::int64_t>& next, std::int64_t when_ns) noexcept {
    std::int64_t present = next.load(std::memory_order_seq_cst);
    while (when_ns < present) {
      if (next.compare_exchange_weak(present, when_ns, std::memory_order_seq_cst)) return true;
    }
    return false;
  }

  std::atomic<std::int64_t> next_call_{kNever};
  std::atomic<bool> asleep_{false};
};

}  // namespace fabric::tcp
}  // namespace dtr::inline v0
