// Two processes, each of which writes its own word and then reads the other's: one of them must see the other. On
// the frequent side that would take a full fence; instead the rare side makes the kernel run one on all cores.
#pragma once

#include <atomic>

#include "dtr/base/thread.hpp"

namespace dtr::inline v0 {
namespace fabric::shm {

/// This kernel makes them. Where it does not, both sides fence.
[[nodiscard]] bool has_barriers() noexcept;

/// From when on the barriers of other processes reach this one. The kernel takes 8 to 20 ms to register it, until all
/// cores have passed the scheduler: a thread waits for that, nobody else does.
class BarrierRegistration {
 public:
  void begin();
  /// Any thread. Stays false where the kernel refuses.
  [[nodiscard]] bool reached() const noexcept { return reached_.load(std::memory_order_acquire); }
  /// Lets go of the thread when it is through; to be called by progress, now and then.
  void tidy() noexcept {
    if (running_ && over_.load(std::memory_order_acquire)) end();
  }

 private:
  void run() noexcept;
  void end() noexcept;

  std::atomic<bool> reached_{false};
  std::atomic<bool> over_{false};
  bool running_ = false;
  Thread thread_{};
};

/// Rare side, between its write and its read. Every thread of every registered process runs a full fence meanwhile.
void heavy_barrier() noexcept;

/// Frequent side, between its write and its read, when the peer's heavy_barrier reaches us.
inline void light_barrier() noexcept { std::atomic_signal_fence(std::memory_order_seq_cst); }

}  // namespace fabric::shm
}  // namespace dtr::inline v0
