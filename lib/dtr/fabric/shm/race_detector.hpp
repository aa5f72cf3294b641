// A race detector sees two mappings of one page as two places, and so misses the order that a ring makes between
// them. These say it; without the detector they are nothing.
#pragma once

#include <cstdint>

#if defined(__SANITIZE_THREAD__)
#define DTR_SHM_RACE_DETECTOR 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define DTR_SHM_RACE_DETECTOR 1
#endif
#endif

#ifdef DTR_SHM_RACE_DETECTOR
#include <array>

#include <sanitizer/tsan_interface.h>
#endif

namespace dtr::inline v0 {
namespace fabric::shm {

#ifdef DTR_SHM_RACE_DETECTOR

/// Stands for the same shared word in both mappings.
inline void* race_detector_place(std::uint64_t tag) noexcept {
  static std::array<char, 4096> places{};
  return &places[tag % places.size()];
}
inline void order_before(std::uint64_t tag) noexcept { __tsan_release(race_detector_place(tag)); }
inline void order_after(std::uint64_t tag) noexcept { __tsan_acquire(race_detector_place(tag)); }

#else

inline void order_before(std::uint64_t /*tag*/) noexcept {}
inline void order_after(std::uint64_t /*tag*/) noexcept {}

#endif

}  // namespace fabric::shm
}  // namespace dtr::inline v0
