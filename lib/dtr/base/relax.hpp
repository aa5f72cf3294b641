// For loops that wait for another core.
#pragma once

namespace dtr::inline v0 {

/// Between two looks: lets the other thread of this core, which may be the one that is waited for, go first.
inline void cpu_relax() noexcept {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield" ::: "memory");
#endif
}

}  // namespace dtr::inline v0
