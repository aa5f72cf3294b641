// Two processes, each of which writes its own word and then reads the other's: one of them must see the other. On
// the frequent side that would take a full fence; instead the rare side makes the kernel run one on all cores.
#pragma once

#include <atomic>

namespace dtr::inline v0 {
namespace fabric::shm {

/// This kernel makes them. Where it does not, both sides fence.
[[nodiscard]] bool has_barriers() noexcept;

/// From now on those of other processes reach this one. False: the kernel refuses. Takes until all cores have passed
/// the scheduler, 8 to 20 ms.
[[nodiscard]] bool register_for_barriers() noexcept;

/// Rare side, between its write and its read. Every thread of every registered process runs a full fence meanwhile.
void heavy_barrier() noexcept;

/// Frequent side, between its write and its read, when the peer's heavy_barrier reaches us.
inline void light_barrier() noexcept { std::atomic_signal_fence(std::memory_order_seq_cst); }

}  // namespace fabric::shm
}  // namespace dtr::inline v0
