// All data paths of one process: its memory, its peers, the path to each and why, and the progress that drives them.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "dtr/base/deadline.hpp"
#include "dtr/base/error.hpp"
#include "dtr/base/fork_guard.hpp"
#include "dtr/fabric/ports.hpp"
#include "dtr/fabric/progress.hpp"
#include "dtr/fabric/transport.hpp"
#include "dtr/memory/region_table.hpp"

namespace dtr::inline v0 {
namespace fabric {

struct FabricOptions {
  Identity identity{};
  /// Ways to other ranks, best first. Loopback is always there.
  std::vector<TransportFactory> transports{};
  /// Names of transports that may be used between ranks, empty = all.
  std::vector<std::string> allow{};
  std::chrono::milliseconds connect_timeout{10000};
  std::size_t eager_bytes = 4096;     ///< largest message; the transports are made with as much or more
  std::size_t hold_bytes = 64 << 20;  ///< messages kept for ports that nobody has opened
  ProgressOptions progress{};
};

/// Why a transport is or is not there, for dtr_info.
struct TransportReport {
  std::string name;
  bool viable = false;
  std::string reason;  ///< "allowed", "not in transport.allow", or why it cannot work here
};

/// The way chosen to a peer.
struct PathReport {
  PeerId peer = 0;
  std::string transport;
  std::string reason;
  std::string detail;  ///< address or device once connected
};

/// What went over a transport.
struct TrafficReport {
  std::string transport;
  TrafficTotals totals;
};

/// Any thread, except where a call waits: not from callbacks (Errc::would_deadlock).
class Fabric final : public Receiver {
 public:
  [[nodiscard]] static Result<std::unique_ptr<Fabric>> create(FabricOptions options);
  ~Fabric() override;

  [[nodiscard]] const Identity& identity() const noexcept { return identity_; }
  [[nodiscard]] PeerId self() const noexcept { return identity_.self; }
  [[nodiscard]] std::uint32_t size() const noexcept { return identity_.world; }
  /// The largest message that goes to every rank, in bytes.
  [[nodiscard]] std::size_t max_message() const noexcept { return options_.eager_bytes; }
  /// To one rank: as much or more.
  [[nodiscard]] std::size_t max_message(PeerId peer) const noexcept;

  // --- start and end ---

  /// How peers reach this process, over all its transports. Exchanged by the caller.
  [[nodiscard]] std::vector<std::byte> address() const;

  /// Takes everybody's address by PeerId and the job's token, chooses paths, and starts progress. Connections are
  /// made on first use. Errors: unreachable (names the ranks and what each side offers), truncated.
  [[nodiscard]] Result<void> start(std::span<const std::vector<std::byte>> addresses, const JobToken& token);

  /// Finishes what is open and ends all channels, but goes on serving peers: they may still be connecting to us.
  /// Nothing can be submitted any more. Errors: timed_out (names who did not take part), would_deadlock.
  [[nodiscard]] Result<void> close_channels(Deadline deadline);

  /// Says goodbye to connected peers after finishing what is open, then stops. Peers then get `peer_left`.
  /// Errors: timed_out (names who did not take part; stopped all the same).
  [[nodiscard]] Result<void> stop(Deadline deadline);

  // --- memory ---

  /// Registers memory on every transport. `segment` holds it if peers may map it.
  /// Errors: invalid_argument, overlap, resource_exhausted, unsupported.
  [[nodiscard]] Result<Region*> register_memory(std::span<std::byte> memory, const RegionOptions& options = {},
                                                std::shared_ptr<Segment> segment = {});

  /// New shared memory of at least `bytes`, registered. Unregistering frees it.
  [[nodiscard]] Result<Region*> allocate_segment(std::size_t bytes, const RegionOptions& options = {});

  /// Takes the region back: peers are refused from now on, and when this returns ok nobody touches the memory.
  /// Errors: busy (somebody still may; the region stays quarantined: call again), would_deadlock.
  [[nodiscard]] Result<void> unregister_memory(Region& region, Deadline deadline);

  [[nodiscard]] RegionTable& regions() noexcept { return *regions_; }

  // --- work ---

  /// The channel to a peer, made on first use. Errors: unreachable, peer_failed, peer_left, not_found.
  [[nodiscard]] Result<Channel*> channel(PeerId peer);

  /// A peer's key, ready for requests to that peer.
  [[nodiscard]] Result<const RemoteRegion*> import(PeerId peer, const RemoteKey& key);

  /// Posts all requests; what finds no room now waits in order. Each ends exactly once in its Completion, which this
  /// call arms. Payloads of `send` are copied. Never blocks.
  void submit(PeerId peer, std::span<const WorkRequest> requests, Deadline deadline) noexcept;

  /// Progress until the completion is done. Its failure, or timed_out, as an Error with path and cause.
  [[nodiscard]] Result<void> wait(Completion& completion, PeerId peer, std::string_view operation, Deadline deadline);

  /// Ends the completion's open requests with `cancelled`; returns how many.
  std::uint32_t cancel(PeerId peer, Completion& completion) noexcept;

  /// Waits until nothing that has ended can still touch this process's memory. `force` drops the connection for it.
  /// Errors: busy (at the deadline), would_deadlock.
  [[nodiscard]] Result<void> quiesce(PeerId peer, Deadline deadline, bool force = false);

  /// A Status as an Error for people.
  [[nodiscard]] Error explain(PeerId peer, const Status& status, std::string_view operation) const;

  // --- events ---

  [[nodiscard]] Result<void> open_port(Port port, PortHandler& handler);
  /// After this returns the handler is not called any more.
  void close_port(Port port) noexcept;

  // --- peers ---

  /// ok, or why operations to this peer end at once: peer_failed, peer_left, fenced.
  [[nodiscard]] Errc peer_state(PeerId peer) const noexcept;
  [[nodiscard]] Error peer_error(PeerId peer, std::string_view operation) const;

  /// A number that grows whenever something comes from the peer that its process has sent.
  [[nodiscard]] std::uint64_t heard(PeerId peer) const noexcept;

  /// Declares a peer down on someone else's word: its operations end, its connections are refused with `fenced`.
  /// Nothing is refused with the code `peer_left`, or `fenced`: then it is the peer that has shut this process out.
  void declare_down(PeerId peer, Errc code, std::string_view why) noexcept;

  // --- progress and self-description ---

  [[nodiscard]] ProgressEngine& progress() noexcept { return *engine_; }
  [[nodiscard]] std::vector<TransportReport> transports() const { return reports_; }
  [[nodiscard]] PathReport path(PeerId peer) const;
  /// Operations that this process began and how they failed, by transport.
  [[nodiscard]] std::vector<TrafficReport> traffic() const;

  // Receiver
  void on_notify(PeerId from, Port port, std::uint32_t value) noexcept override;
  void on_message(PeerId from, Port port, std::span<const std::byte> payload) noexcept override;
  void on_arrival(PeerId from) noexcept override;
  void on_peer_down(PeerId peer, Errc code, std::string_view why) noexcept override;

 private:
  struct Peer;
  class Waiters;
  class Backlog;

  explicit Fabric(FabricOptions options);
  Result<void> make_transports();
  Result<void> choose_path(PeerId peer, std::span<const std::byte> address, std::span<const std::string> domains);
  Result<Channel*> connect(Peer& peer);
  std::size_t post_now(Peer& peer, std::span<const WorkRequest> requests, Deadline deadline) noexcept;

  Identity identity_;
  FabricOptions options_;
  ForkGuard fork_guard_;
  std::unique_ptr<RegionTable> regions_;
  std::unique_ptr<ProgressEngine> engine_;
  Ports ports_;
  std::vector<std::shared_ptr<TrafficMeter>> meters_;  ///< one a transport
  std::vector<std::unique_ptr<Transport>> transports_;
  std::vector<TransportReport> reports_;
  std::unique_ptr<Waiters> waiters_;
  std::set<std::string> reasons_;  ///< for the paths chosen; many peers have one in common
  std::vector<std::unique_ptr<Peer>> peers_;
  std::unique_ptr<Backlog> backlog_;
  std::atomic<std::uint64_t> next_segment_{1};
  bool started_ = false;
};

}  // namespace fabric
}  // namespace dtr::inline v0
