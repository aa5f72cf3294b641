// The seam between libdtr and a way to move bytes. Every transport is a Transport and its Channels; nothing above
// this header knows which one it has. Written with RC queue pairs in mind: one-sided requests, ordered per channel.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dtr/base/deadline.hpp"
#include "dtr/base/error.hpp"
#include "dtr/fabric/completion.hpp"
#include "dtr/fabric/identity.hpp"
#include "dtr/fabric/traffic.hpp"
#include "dtr/fabric/work_request.hpp"
#include "dtr/memory/region_table.hpp"

namespace dtr::inline v0 {

namespace fabric {

/// A peer's region as one channel reaches it. Made by Channel::import, owned by the channel.
struct RemoteRegion {
  RemoteKey key{};
  std::atomic<std::byte*> mapped{nullptr};                     ///< the region in this address space, if it is here
  std::atomic<std::atomic<std::uint32_t>*> validity{nullptr};  ///< holds key.generation while the key is valid
};

/// What a transport tells the fabric. Called only from inside Transport::progress.
class Receiver {
 public:
  virtual ~Receiver() = default;
  virtual void on_notify(PeerId from, Port port, std::uint32_t value) noexcept = 0;
  virtual void on_message(PeerId from, Port port, std::span<const std::byte> payload) noexcept = 0;
  /// Something came that only a running peer sends, such as a part of a long transfer. Notifications and messages
  /// need not be told twice.
  virtual void on_arrival(PeerId /*from*/) noexcept {}
  /// The peer is dead (peer_failed) or said goodbye (peer_left). Told once a transport and peer.
  virtual void on_peer_down(PeerId peer, Errc code, std::string_view why) noexcept = 0;
};

enum class ChannelState : std::uint8_t { connecting, open, closed, failed };

/// The way to one peer: a queue of work requests. post and cancel: any thread. All calls are non-blocking;
/// waiting is done above by making progress.
class Channel {
 public:
  virtual ~Channel() = default;

  /// Takes requests in order until one cannot be taken; see PostResult. Allocates nothing. While `connecting` it
  /// takes none (`again`). A request still open at the deadline ends with timed_out (not quiesced unless its status
  /// says so). Runs no continuation for a single request: the caller may hold a lock.
  [[nodiscard]] virtual PostResult post(std::span<const WorkRequest> requests, Deadline deadline) noexcept = 0;

  /// True: post runs no continuation for several requests either.
  [[nodiscard]] virtual bool posts_silently() const noexcept { return false; }

  /// Makes a peer's key usable in requests on this channel; the same key gives the same object, which lives as long
  /// as the channel. Checks nothing at the peer: a revoked or forged key is refused when it is used.
  [[nodiscard]] virtual Result<const RemoteRegion*> import(const RemoteKey& key) = 0;

  /// Memory of the peer's process can be read by its address there, registered or not (Linux: process_vm_readv).
  [[nodiscard]] virtual bool reads_process() const noexcept { return false; }

  /// Copies from there, inside of the call. Whether it still holds what the peer meant is for the caller to find out.
  /// Errors: out_of_range (no such memory), permission_denied, peer_failed, closed, unsupported.
  [[nodiscard]] virtual Status read_process(std::uint64_t /*address*/, std::span<std::byte> /*to*/) noexcept {
    return {.code = Errc::unsupported};
  }

  /// Ends every open request of this completion with `cancelled`; returns how many. What has not started is
  /// quiesced at once, the rest when quiesced() says so.
  virtual std::uint32_t cancel(Completion& completion) noexcept = 0;

  /// True when no request that already ended (timed_out, cancelled) can still touch memory of this process.
  [[nodiscard]] virtual bool quiesced() const noexcept = 0;

  /// Forces quiescence: drops the connection and makes a new one. Open puts, gets and messages are replayed,
  /// open atomics end with `cancelled`, fate unknown.
  virtual void reset() noexcept = 0;

  /// Starts an orderly end: what is open finishes, the peer learns that we leave. state() becomes closed.
  virtual void close() noexcept = 0;

  /// Ends everything at once with this code; state() becomes failed.
  virtual void abort(Errc code) noexcept = 0;

  [[nodiscard]] virtual ChannelState state() const noexcept = 0;

  /// For people: "shm", "tcp 10.0.0.2:4711".
  [[nodiscard]] virtual std::string path() const = 0;

  /// The cause of a failure in words: errno, device status, what the peer said.
  [[nodiscard]] virtual std::string explain(const Status& status) const = 0;
};

/// What every transport is given when it is made.
struct TransportContext {
  const Identity& identity;  ///< who we are; the token is there before the first progress
  RegionTable& regions;
  Receiver& receiver;
  std::shared_ptr<TrafficMeter> traffic = std::make_shared<TrafficMeter>();  ///< where it counts what it does
};

/// Something that the progress engine drives. All calls come from one thread at a time, except wait_descriptor.
class ProgressSource {
 public:
  virtual ~ProgressSource() = default;

  /// Moves things on; returns how many events it handled, about `budget` at most.
  virtual int progress(int budget) noexcept = 0;

  /// Readable when progress has something to do, provided prepare_sleep returned true before. -1 = never rings.
  [[nodiscard]] virtual int wait_descriptor() const noexcept = 0;

  /// Asks peers to ring. False: there is work already, do not sleep.
  [[nodiscard]] virtual bool prepare_sleep() noexcept = 0;

  /// When progress wants to be called although nothing arrives (deadlines, retries); time_point::max() = never.
  [[nodiscard]] virtual Deadline::Clock::time_point next_deadline() const noexcept = 0;
};

/// One kind of data path in this process. It counts what its channels take, and what does not end well. Its factory
/// returns the reason as an Error where it is not viable. As a ProgressSource, and `drained` too, it is called by one
/// thread at a time; the rest by any.
class Transport : public ProgressSource {
 public:
  [[nodiscard]] virtual std::string_view name() const noexcept = 0;

  /// What it works with here, for dtr_info: devices, addresses.
  [[nodiscard]] virtual std::string describe() const { return "works here"; }

  /// Two ranks can use this transport between them if and only if their domains are equal.
  [[nodiscard]] virtual std::string domain() const = 0;

  /// Kinds of memory that it reads and writes without staging.
  [[nodiscard]] virtual bool moves(MemoryKind kind) const noexcept = 0;

  /// The largest message that its channels send, in bytes; fabric.eager_bytes or more.
  [[nodiscard]] virtual std::size_t max_message() const noexcept = 0;

  /// How peers reach this process; exchanged at start.
  [[nodiscard]] virtual std::vector<std::byte> address() const = 0;

  /// This peer will be reached by this transport. Called once for each, before progress starts; connections that both
  /// ends prepared with their addresses come up now.
  [[nodiscard]] virtual Result<void> introduce(PeerId /*peer*/, std::span<const std::byte> /*address*/) { return {}; }

  /// Does what the device needs before the region can be used, and fills its part of the key.
  [[nodiscard]] virtual Result<void> register_region(Region& region) = 0;

  /// True when no peer can touch the revoked region through this transport any more. Called until it is.
  [[nodiscard]] virtual bool drained(const Region& region) noexcept = 0;

  /// Undoes register_region. The region is revoked and drained.
  virtual void deregister_region(Region& region) noexcept = 0;

  /// Starts to connect; the channel is `connecting` until progress has finished it, or `failed` at the deadline.
  [[nodiscard]] virtual Result<std::unique_ptr<Channel>> connect(PeerId peer, std::span<const std::byte> address,
                                                                 Deadline deadline) = 0;

  /// Tells every peer that is linked to this process, in either direction, that it leaves: they get
  /// on_peer_down(peer_left) instead of peer_failed. Called once, before destruction, after channels are closed.
  virtual void leave() noexcept = 0;

  /// From now on this peer's connections are refused with `fenced`, and present ones are dropped.
  virtual void fence(PeerId peer) noexcept = 0;
};

/// Makes one kind of transport, or says why it cannot work here.
struct TransportFactory {
  std::string name;
  std::function<Result<std::unique_ptr<Transport>>(const TransportContext&)> make;
};

}  // namespace fabric
}  // namespace dtr::inline v0
