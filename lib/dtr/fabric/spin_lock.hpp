// A lock for sections of some nanoseconds. Gives the core away when its holder seems to be off it.
#pragma once

#include <atomic>

#include <sched.h>

namespace dtr::inline v0 {
namespace fabric {

class SpinLock {
 public:
  void lock() noexcept {
    while (taken_.exchange(true, std::memory_order_acquire)) wait();
  }
  bool try_lock() noexcept { return !taken_.exchange(true, std::memory_order_acquire); }
  void unlock() noexcept { taken_.store(false, std::memory_order_release); }

 private:
  void wait() const noexcept {
    for (int spins = 0; taken_.load(std::memory_order_relaxed); ++spins) {
      if (spins >= 100) {
        ::sched_yield();
        spins = 0;
      }
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
  }

  std::atomic<bool> taken_{false};
};

}  // namespace fabric
}  // namespace dtr::inline v0
