// What crosses a TCP connection after the handshake. Little-endian, fixed width, self-delimiting.
//
// A connection carries the requests of one side only: each rank opens its own towards each peer that it asks
// something of, so that two ranks that connect at the same time need no agreement. Replies come back on the same
// connection, in the order of the requests.
//
//   initiator -> target   RequestHeader [payload], RequestHeader [payload], ...
//   target -> initiator   ReplyHeader [payload], ...; the first ones after a handshake are `refused`* `welcome`
//
// Requests are numbered from 0 for each pair of processes, over all their connections; numbers are not sent but
// counted at both ends. A reply with number n also says that all requests before n have ended well, except for those
// that were refused by name. `welcome` tells how many requests the target has worked off in all: after a broken
// connection, what the initiator still has open below that number is not sent again.
#pragma once

#include <cstdint>

namespace dtr::inline v0 {
namespace fabric::tcp {

inline constexpr std::uint32_t kTransportLetters = 0x20706374;  // "tcp "
inline constexpr std::uint64_t kMaxTransfer = 1ULL << 46;       // beyond it a length is nonsense, not a request
inline constexpr std::uint64_t kMaxMessage = 1 << 20;
inline constexpr std::uint32_t kMaxQueueDepth = 65536;
inline constexpr std::uint32_t kMaxNotifyValue = 0xFFFFFF;

enum class RequestType : std::uint8_t {
  put = 1,
  put_notify,
  notify,  ///< no memory, no payload
  get,
  send,
  fetch_add,
  compare_swap,
  nothing,  ///< a flush, or a request that ended before it was sent
  goodbye,  ///< the sender leaves; nothing follows
};

struct RequestHeader {
  RequestType type = RequestType::nothing;
  std::uint8_t port = 0;
  std::uint16_t reserved = 0;
  std::uint32_t value = 0;  ///< of the notification, 24 bits
  std::uint32_t slot = 0;   ///< slot, generation, secret: from the region's key
  std::uint32_t generation = 0;
  std::uint64_t secret = 0;
  std::uint64_t offset = 0;
  std::uint64_t length = 0;   ///< put, put_notify, get, send; compare_swap: the expected value
  std::uint64_t operand = 0;  ///< fetch_add, compare_swap
};
static_assert(sizeof(RequestHeader) == 48);

enum class ReplyType : std::uint8_t {
  welcome = 1,  ///< sequence = requests worked off so far
  ack,          ///< sequence and all before it have ended well
  refused,      ///< sequence ended with `code`
  data,         ///< answer to a get; `value` bytes follow
  result,       ///< answer to an atomic: `value` is the old value
  goodbye,      ///< the target leaves: nothing more will be answered
};

struct ReplyHeader {
  ReplyType type = ReplyType::ack;
  std::uint8_t reserved = 0;
  std::int16_t code = 0;
  std::uint32_t reserved2 = 0;
  std::uint64_t sequence = 0;
  std::uint64_t value = 0;
};
static_assert(sizeof(ReplyHeader) == 24);

[[nodiscard]] constexpr bool is_atomic(RequestType type) noexcept {
  return type == RequestType::fetch_add || type == RequestType::compare_swap;
}

/// Bytes that follow this header.
[[nodiscard]] constexpr std::uint64_t payload_bytes(const RequestHeader& header) noexcept {
  const bool carries =
      header.type == RequestType::put || header.type == RequestType::put_notify || header.type == RequestType::send;
  return carries ? header.length : 0;
}
[[nodiscard]] constexpr std::uint64_t payload_bytes(const ReplyHeader& header) noexcept {
  return header.type == ReplyType::data ? header.value : 0;
}

/// nullptr if an honest peer could have sent this, else why not.
[[nodiscard]] constexpr const char* malformed(const RequestHeader& header) noexcept {
  if (header.type < RequestType::put || header.type > RequestType::goodbye) return "unknown request type";
  if (header.reserved != 0) return "reserved field of a request is not zero";
  if (header.value > kMaxNotifyValue) return "notification value beyond 24 bits";
  if (header.type == RequestType::send && header.length > kMaxMessage) return "impossible message length";
  if (header.type != RequestType::compare_swap && header.length > kMaxTransfer) return "impossible length";
  return nullptr;
}

[[nodiscard]] constexpr const char* malformed(const ReplyHeader& header) noexcept {
  if (header.type < ReplyType::welcome || header.type > ReplyType::goodbye) return "unknown reply type";
  if (header.reserved != 0 || header.reserved2 != 0) return "reserved field of a reply is not zero";
  if ((header.code != 0) != (header.type == ReplyType::refused)) return "code does not fit the reply's type";
  if (payload_bytes(header) > kMaxTransfer) return "impossible length";
  return nullptr;
}

}  // namespace fabric::tcp
}  // namespace dtr::inline v0
