// For how long the ranks that this one watches have been silent. Internal to runtime/.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <map>
#include <vector>

#include "dtr/base/deadline.hpp"
#include "dtr/fabric/work_request.hpp"

namespace dtr::inline v0 {

/// Silence is counted in the watcher's own ticks, each at most one interval: time in which the watcher did not run
/// itself (stopped, suspended, starved) is held against nobody. One thread at a time.
class SilenceTable {
 public:
  using Duration = Deadline::Clock::duration;
  struct Silent {
    fabric::PeerId peer = 0;
    Duration silence{};
  };

  SilenceTable(Duration interval, Duration timeout) : interval_(interval), timeout_(timeout) {}

  /// `heard`: see tick. `speaks`: it has promised signs of life; who has not is never found silent.
  void watch(fabric::PeerId peer, std::uint64_t heard, bool speaks) {
    watched_.try_emplace(peer, Watched{.heard = heard, .silence = {}, .speaks = speaks});
  }
  /// True if it was watched.
  bool forget(fabric::PeerId peer) { return watched_.erase(peer) > 0; }
  [[nodiscard]] bool watches(fabric::PeerId peer) const { return watched_.contains(peer); }

  void promises(fabric::PeerId peer) {
    if (const auto found = watched_.find(peer); found != watched_.end()) found->second.speaks = true;
  }

  template <class Visit>
  void for_each(Visit&& visit) const {
    for (const auto& [peer, state] : watched_) visit(peer);
  }

  /// Once an interval. `heard(peer)` is a number that grows with everything that comes from the peer. Returns who has
  /// been silent for the time-out. A tick that comes late judges more mildly: the others have to get a turn first.
  template <class Heard>
  [[nodiscard]] std::vector<Silent> tick(Deadline::Clock::time_point now, Heard&& heard) {
    const Duration gap = last_ == Deadline::Clock::time_point{} ? interval_ : now - last_;
    last_ = now;
    const Duration counted = std::min(gap, interval_);
    const Duration limit = gap > 2 * interval_ ? timeout_ + interval_ : timeout_;
    std::vector<Silent> silent;
    for (auto& [peer, state] : watched_) {
      const std::uint64_t total = heard(peer);
      state.silence = total == state.heard && state.speaks ? state.silence + counted : Duration{};
      state.heard = total;
      if (state.silence >= limit) silent.push_back({.peer = peer, .silence = state.silence});
    }
    return silent;
  }

 private:
  struct Watched {
    std::uint64_t heard = 0;
    Duration silence{};
    bool speaks = true;
  };

  Duration interval_;
  Duration timeout_;
  Deadline::Clock::time_point last_{};
  std::map<fabric::PeerId, Watched> watched_;
};

}  // namespace dtr::inline v0
