// A lock for sections of some nanoseconds, mostly. Gives the core away when its holder seems to be off it.
#pragma once

#include <atomic>
#include <chrono>
#include <thread>

#include <sched.h>

#include "dtr/base/relax.hpp"

namespace dtr::inline v0 {
namespace fabric {

class SpinLock {
 public:
  void lock() noexcept {
    while (taken_.exchange(true, std::memory_order_acquire)) wait();
  }
  bool try_lock() noexcept {
    return !taken_.load(std::memory_order_relaxed) && !taken_.exchange(true, std::memory_order_acquire);
  }
  void unlock() noexcept { taken_.store(false, std::memory_order_release); }

 private:
  [[gnu::noinline, gnu::cold]] void wait() const noexcept {
    for (unsigned looks = 1; taken_.load(std::memory_order_relaxed); ++looks) {
      if (looks % kLooksAYield != 0) {
        cpu_relax();
      } else if (looks < kLooksAYield * kYields) {
        ::sched_yield();
      } else {  // it has a lower priority than we, or much to do
        std::this_thread::sleep_for(std::chrono::microseconds(50));
      }
    }
  }

  static constexpr unsigned kLooksAYield = 100;
  static constexpr unsigned kYields = 100;

  std::atomic<bool> taken_{false};
};

}  // namespace fabric
}  // namespace dtr::inline v0
