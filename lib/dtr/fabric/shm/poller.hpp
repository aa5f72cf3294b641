// The descriptors that progress sleeps on, and who is to be told about each.
#pragma once

#include <cstdint>
#include <vector>

#include "dtr/base/error.hpp"
#include "dtr/base/fd.hpp"
#include "dtr/base/fork_guard.hpp"

namespace dtr::inline v0 {
namespace fabric::shm {

class Poller;

/// Told from Poller::poll. May add and drop watches, its own too, but must live until the call returns.
class Watcher {
 public:
  virtual ~Watcher() = default;
  virtual void on_readable(int fd) noexcept = 0;
};

/// While it lives, the descriptor is watched. Drop it before the descriptor.
class Watch {
 public:
  Watch() = default;
  Watch(Watch&& other) noexcept;
  Watch& operator=(Watch&& other) noexcept;
  ~Watch() { reset(); }
  void reset() noexcept;

 private:
  friend class Poller;
  Watch(Poller* poller, std::uint32_t entry) noexcept : poller_(poller), entry_(entry) {}
  Poller* poller_ = nullptr;
  std::uint32_t entry_ = 0;
};

/// Used by one thread at a time.
class Poller {
 public:
  [[nodiscard]] Result<void> open();
  [[nodiscard]] Result<Watch> add(int fd, Watcher& watcher);
  /// Tells watchers what is readable now; returns how many it told.
  int poll() noexcept;
  [[nodiscard]] int fd() const noexcept { return epoll_.get(); }

 private:
  friend class Watch;
  void remove(std::uint32_t entry) noexcept;

  struct Entry {
    Watcher* watcher = nullptr;
    int fd = -1;
    std::uint32_t generation = 0;  ///< an event of an earlier use is recognised
  };
  UniqueFd epoll_;
  std::vector<Entry> entries_;
  std::vector<std::uint32_t> free_;
  ForkGuard fork_guard_;
};

}  // namespace fabric::shm
}  // namespace dtr::inline v0
