// Which server keeps a key. A function of the key and the number of servers only: all workers agree without a word.
#pragma once

#include <cstdint>

namespace dtr::inline v0 {
namespace pushpull {

/// Consecutive keys go round the servers, so that few keys are spread evenly too; what is above the low byte is
/// hashed, so that keys at a stride do not all meet on one server. Part p of a cut tensor is p servers further on.
[[nodiscard]] constexpr std::uint32_t server_of(std::uint64_t key, std::uint64_t part, std::uint32_t servers) noexcept {
  std::uint64_t high = (key >> 8) * 0x9E37'79B9'7F4A'7C15ULL;
  high ^= high >> 32;
  return static_cast<std::uint32_t>((high % servers + (key & 0xFF) + part % servers) % servers);
}

}  // namespace pushpull
}  // namespace dtr::inline v0
