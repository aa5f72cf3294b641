// What all links of one transport share.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string_view>
#include <vector>

#include "dtr/base/fork_guard.hpp"
#include "dtr/fabric/shm/barrier.hpp"
#include "dtr/fabric/shm/control.hpp"
#include "dtr/fabric/shm/flag_lines.hpp"
#include "dtr/fabric/shm/poller.hpp"
#include "dtr/fabric/shm/shm.hpp"

namespace dtr::inline v0 {
namespace fabric::shm {

/// Shared segments that hold registered regions. Any thread.
class SharedSegments {
 public:
  void add(const Region& region);
  void remove(const Region& region) noexcept;
  [[nodiscard]] std::shared_ptr<Segment> find(std::uint64_t id) const;
  /// Segments that have lost their last region since the last call.
  [[nodiscard]] std::vector<std::uint64_t> take_gone();

 private:
  struct Held {
    std::shared_ptr<Segment> segment;
    std::size_t regions = 0;
  };
  mutable std::mutex mutex_;
  std::map<std::uint64_t, Held> held_;
  std::vector<std::uint64_t> gone_;
};

/// Peers that are down, each told once. Progress thread only, but for fence.
class PeerBook {
 public:
  explicit PeerBook(Receiver& receiver) : receiver_(receiver) {}

  void left(PeerId peer) { leaving_.insert(peer); }
  [[nodiscard]] bool has_left(PeerId peer) const { return leaving_.contains(peer); }

  /// Tells the fabric, the first time.
  void down(PeerId peer, Errc code, std::string_view why);

  void fence(PeerId peer);
  [[nodiscard]] bool fenced(PeerId peer) const;

 private:
  Receiver& receiver_;
  std::set<PeerId> leaving_;
  std::set<PeerId> down_;
  mutable std::mutex mutex_;
  std::set<PeerId> fenced_;
};

struct Local {
  Local(const TransportContext& context, const ShmOptions& shm_options)
      : identity(context.identity),
        regions(context.regions),
        receiver(context.receiver),
        traffic(context.traffic),
        options(shm_options),
        peers(context.receiver) {}

  const Identity& identity;
  RegionTable& regions;
  Receiver& receiver;
  const std::shared_ptr<TrafficMeter> traffic;
  const ShmOptions options;
  const ForkGuard fork_guard{};

  Control control{};
  std::shared_ptr<FlagLines> lines{};
  UniqueFd doorbell{};
  std::array<std::byte, 32> probe{};  ///< peers read it to find out whether they can read our memory

  Poller poller{};
  SharedSegments segments{};
  PeerBook peers;

  /// Wakes our own progress, if it sleeps.
  void wake() noexcept { ring(*control, doorbell.get(), reached_by(control->barriers != 0)); }

  /// The peer's heavy barriers, if it makes them, reach our threads. Until then these fence themselves.
  [[nodiscard]] bool reached_by(bool makes_barriers) const noexcept { return makes_barriers && registration.reached(); }

  BarrierRegistration registration{};
};

}  // namespace fabric::shm
}  // namespace dtr::inline v0
