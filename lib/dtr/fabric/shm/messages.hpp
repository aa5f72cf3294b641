// What goes over a link's socket: the offers that end the handshake, and afterwards messages of one size.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace dtr::inline v0 {
namespace fabric::shm {

inline constexpr std::uint32_t kTransportId = 0x206D6873;  // "shm "

/// Initiator, after its Proof. With descriptors: control segment, link memory, doorbell.
struct Offer {
  static constexpr std::size_t kFds = 3;
  std::uint64_t forward_slots = 0;
  std::uint64_t backward_slots = 0;
};

/// Target, after its Verdict. With descriptors: control segment, validity segment, doorbell.
struct Welcome {
  static constexpr std::size_t kFds = 3;
  std::uint64_t probe_address = 0;    ///< in the target's memory, where `probe` stands
  std::array<std::byte, 32> probe{};  ///< read from there by the initiator: then it can reach all memory
};

enum class MessageType : std::uint32_t {
  ask = 1,   ///< initiator: may I have this segment?
  answer,    ///< target: with the segment's descriptor, or an Errc
  unmap,     ///< target: nothing is registered in this segment any more
  farewell,  ///< either: this link ends, and why
};

struct Message {
  MessageType type = MessageType::ask;
  std::int32_t code = 0;
  std::uint64_t segment = 0;
};
static_assert(sizeof(Message) == 16);

}  // namespace fabric::shm
}  // namespace dtr::inline v0
