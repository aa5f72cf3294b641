// What two ends of the verbs transport say to each other: over the control connection (tcp, authenticated, in order,
// exactly once) about their queue pairs, and in the small messages that the queue pairs carry themselves.
//
// A rail is a pair of ports, one at each end, with one queue pair at a time. Each queue pair of a rail has an epoch:
//
//   A -> B   connect{epoch, queue pair, PSN, GID}      and B -> A the same, whoever is first
//   A -> B   ready{epoch}: my queue pair takes requests   and B -> A the same; then the rail is open
//   A -> B   down{epoch, received}: my queue pair is in error and drained; so many messages and notifications arrived
//                                                       and B -> A the same; then the epoch is fenced at both ends
//   A -> B   refuse{epoch}: I gave this epoch up before I opened it; nothing has arrived in it, and no down follows
//
// Only then is what was under way sent again, on another rail or in the rail's next epoch: nothing of the old queue
// pair can land any more, and both know what has arrived.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "dtr/base/error.hpp"
#include "dtr/fabric/verbs/gid.hpp"
#include "dtr/memory/region.hpp"

namespace dtr::inline v0 {
namespace fabric::verbs {

/// One port as its owner describes it.
struct PortAddress {
  std::string name{};  ///< "mlx5_0:1"
  PortOffer offer{};
  std::uint16_t lid = 0;
  std::uint8_t mtu = 0;        ///< ibv_mtu
  std::uint8_t rd_atomic = 0;  ///< reads and atomics that it serves at a time
  std::uint64_t mailbox = 0;   ///< 8 bytes that a flush reads
  std::uint32_t mailbox_rkey = 0;
};

/// A queue pair that waits for its peer.
struct QueuePairName {
  std::uint32_t number = 0;  ///< 0 = none was made
  std::uint32_t psn = 0;
};

/// How peers reach this process. Exchanged at start, and sent with each `connect`.
struct Address {
  std::vector<std::byte> control{};
  std::string host{};
  std::uint32_t credits = 0;        ///< receives that it keeps for each of our queue pairs
  std::uint32_t message_bytes = 0;  ///< of the largest message that fits into one
  std::vector<PortAddress> ports{};
  /// At [rank * ports.size() + port]: for the first epoch, made at start. Empty beyond VerbsOptions::eager_world.
  std::vector<QueuePairName> early{};

  [[nodiscard]] std::vector<std::byte> encode() const;
  /// Errors: protocol_error.
  [[nodiscard]] static Result<Address> decode(std::span<const std::byte> bytes);
};

enum class ControlType : std::uint32_t { connect = 1, ready, down, refuse };

struct ControlMessage {
  ControlType type = ControlType::connect;
  std::uint32_t rail = 0;
  std::uint32_t epoch = 0;
  std::uint32_t queue_pair = 0;  ///< connect
  std::uint32_t psn = 0;         ///< connect
  std::uint32_t gid_index = 0;   ///< connect: the sender's entry, for logs
  std::uint64_t received = 0;    ///< down: receives that the queue pair has completed
  Gid gid{};                     ///< connect
};
static_assert(sizeof(ControlMessage) == 48);

/// nullptr if an honest peer could have sent this, else why not.
[[nodiscard]] const char* malformed(const ControlMessage& message) noexcept;

// --- in the queue pairs ---

enum class MessageType : std::uint8_t {
  message = 1,  ///< payload for a port
  atomic,       ///< AtomicBody: the target's CPU executes it
  result,       ///< ResultBody; needs no credit, the asker keeps a receive for it
  credit,       ///< nothing but the header; two receives are kept for it
};

struct MessageHeader {
  MessageType type = MessageType::message;
  std::uint8_t port = 0;
  std::uint16_t reserved = 0;
  std::uint32_t consumed = 0;  ///< credits that the sender has given back on this queue pair so far
};
static_assert(sizeof(MessageHeader) == 8);

struct AtomicBody {
  std::uint32_t slot = 0;  ///< slot, generation, secret: from the region's key
  std::uint32_t generation = 0;
  std::uint64_t secret = 0;
  std::uint64_t offset = 0;
  std::uint64_t operand = 0;
  std::uint64_t compare = 0;
  std::uint32_t operation = 0;  ///< comes back with the result
  std::uint32_t is_swap = 0;
};
static_assert(sizeof(AtomicBody) == 48);

struct ResultBody {
  std::uint64_t value = 0;  ///< the old one
  std::uint32_t operation = 0;
  std::int32_t code = 0;  ///< an Errc
};
static_assert(sizeof(ResultBody) == 16);

/// 8 bits port, 24 bits value.
[[nodiscard]] constexpr std::uint32_t pack_immediate(std::uint8_t port, std::uint32_t value) noexcept {
  return std::uint32_t{port} << 24 | (value & 0xFFFFFF);
}

}  // namespace fabric::verbs
}  // namespace dtr::inline v0
