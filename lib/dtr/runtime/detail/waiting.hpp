// How a rank waits, by how many ranks want its CPUs. Internal to runtime/.
#pragma once

#include <chrono>
#include <cstdint>

#include "dtr/fabric/progress.hpp"

namespace dtr::inline v0 {

/// As long as 1 MiB takes to be copied, and some: a rank that sleeps meanwhile is woken by a system call of the one
/// that copies, and its going to sleep interrupts it. Where ranks share cores a look is followed by a turn of the
/// others. As long as these only send and look as well, that takes a few microseconds, and less than to sleep and be
/// woken; once they compute, this ends with one turn.
inline constexpr std::chrono::microseconds kSpin{50};
inline constexpr std::chrono::microseconds kThreadSpin{20};
inline constexpr std::chrono::microseconds kShortWait{3};

/// A rank has two threads: the application's and that of progress. Where there are cores for the ranks and not for all
/// threads, a short wait keeps the core, and a longer one is for the threads of others.
/// `spin_us`: progress.spin_us; -1 = automatic.
[[nodiscard]] inline fabric::Waiting waiting_for(double ranks_per_cpu, std::int64_t spin_us) noexcept {
  const bool crowded = ranks_per_cpu > 1.001;  // thirds do not add up to 1
  const bool tight = 2 * ranks_per_cpu > 1.001;
  fabric::Waiting made{.spin = kSpin, .thread_spin = kThreadSpin};
  if (crowded) made.thread_spin = std::chrono::microseconds(0);
  if (spin_us >= 0) made.spin = made.thread_spin = std::chrono::microseconds(spin_us);
  if (tight) made.keeps_core = crowded ? std::chrono::microseconds(0) : kShortWait;
  made.thread_yields = tight;
  return made;
}

}  // namespace dtr::inline v0
