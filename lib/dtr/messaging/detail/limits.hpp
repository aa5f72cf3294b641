// How much one Messenger may make another keep.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "dtr/messaging/thresholds.hpp"

namespace dtr::inline v0 {
namespace messaging {

/// Eager messages that a receiver keeps from one sender, in bytes of cost_of(). The same in every Messenger.
inline constexpr std::uint64_t kRoom = 1 << 20;
/// The same of Messengers of that rank which have ended.
inline constexpr std::uint64_t kLeft = 16 * kRoom;
/// Offers of one sender that nobody has asked for yet.
inline constexpr std::uint32_t kOffers = 1024;
/// Messages of one Messenger that receivers may read in its memory, at a time.
inline constexpr std::uint32_t kLeases = 4096;
/// Messages that may be known before one that was sent earlier.
inline constexpr std::uint32_t kEarly = 1 << 15;
/// The most slots, and the largest, that a peer may describe.
inline constexpr std::uint32_t kMostSlots = 4096;
inline constexpr std::uint32_t kLargestSlot = 64 << 20;

/// Of the receiver's room: the payload, and what keeping it takes besides.
[[nodiscard]] constexpr std::uint64_t cost_of(std::uint64_t bytes) noexcept { return bytes + 64; }

/// The largest message that goes as one of the fabric.
[[nodiscard]] inline std::uint64_t largest_eager(const std::vector<ThresholdRow>& rows) noexcept {
  return !rows.empty() && rows.front().way == MessageWay::eager ? rows.front().up_to : 0;
}

[[nodiscard]] inline std::string too_long(std::uint64_t message, std::uint64_t buffer) {
  return "the message has " + std::to_string(message) + " bytes, the buffer " + std::to_string(buffer);
}

}  // namespace messaging
}  // namespace dtr::inline v0
