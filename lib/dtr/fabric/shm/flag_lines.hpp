// Which thread owns which flag line. A thread raises its line before it looks whether a region is still valid, and
// lowers it after the copy; the region's owner revokes, and then waits for the lines that show it to fall.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "dtr/base/fork_guard.hpp"
#include "dtr/fabric/shm/barrier.hpp"
#include "dtr/fabric/shm/control.hpp"

namespace dtr::inline v0 {
namespace fabric::shm {

/// The lines of one transport. A thread takes one at its first copy and gives it back when it ends.
class FlagLines : public std::enable_shared_from_this<FlagLines> {
 public:
  explicit FlagLines(Control control);

  /// Is any thread of this process inside the memory of `peer`? Call after a heavy barrier.
  [[nodiscard]] bool inside(PeerId peer) const noexcept;

  /// The transport is gone: threads forget their line when they next look.
  void retire() noexcept { retired_.store(true, std::memory_order_relaxed); }

  /// This thread's line. nullptr: there are more threads than lines, the last line is shared under a mutex.
  [[nodiscard]] FlagLine* mine() noexcept;
  /// The same if this thread copied with this transport last; nullptr: ask mine().
  [[nodiscard]] FlagLine* recent() const noexcept;

 private:
  friend class RaisedFlag;
  friend struct ThreadLines;

  [[nodiscard]] FlagLine* find_or_take() noexcept;
  void give_back(FlagLine& line) noexcept;

  const std::uint64_t id_;  ///< never used twice in a process
  Control control_;
  ForkGuard fork_guard_;
  std::atomic<bool> retired_{false};
  std::mutex mutex_;
  std::vector<FlagLine*> free_;
  std::mutex shared_line_;
};

/// The last transport this thread copied with, and its line there.
struct RecentLine {
  std::uint64_t lines = 0;
  FlagLine* line = nullptr;
};
/// Every copy looks at it: a place fixed when the library is loaded takes no call to find.
extern thread_local constinit RecentLine recent_line [[gnu::tls_model("initial-exec")]];

inline FlagLine* FlagLines::recent() const noexcept {
  const RecentLine& last = recent_line;
  return last.lines == id_ ? last.line : nullptr;
}

inline FlagLine* FlagLines::mine() noexcept {
  const RecentLine& last = recent_line;
  return last.lines == id_ ? last.line : find_or_take();
}

/// A raised flag. While it is up, what a look at the region's validity allows stays allowed.
class RaisedFlag {
 public:
  RaisedFlag(FlagLines& lines, std::uint64_t value, bool barriers) noexcept : line_(lines.mine()) {
    if (line_ == nullptr) share(lines);
    if (barriers) {
      line_->raised.store(value, std::memory_order_relaxed);
      light_barrier();
    } else {
      line_->raised.store(value, std::memory_order_seq_cst);
    }
  }
  ~RaisedFlag() {
    line_->raised.store(0, std::memory_order_release);
    if (shared_ != nullptr) shared_->unlock();
  }
  RaisedFlag(const RaisedFlag&) = delete;
  RaisedFlag& operator=(const RaisedFlag&) = delete;

 private:
  void share(FlagLines& lines) noexcept;

  FlagLine* line_;
  std::mutex* shared_ = nullptr;
};

}  // namespace fabric::shm
}  // namespace dtr::inline v0
