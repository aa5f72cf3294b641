// What Messengers say to each other, in messages of the fabric. All numbers little-endian, no padding.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <type_traits>

#include "dtr/memory/region.hpp"

namespace dtr::inline v0 {
namespace messaging {

enum class Kind : std::uint8_t {
  eager = 1,  ///< a whole message
  offer,      ///< the sender has one and keeps it
  withdraw,   ///< an offer is no more
  take,       ///< the receiver wants what was offered, through its slots
  done,       ///< the receiver has what was offered, or will not have it
  credit,     ///< room that the receiver has made
  bye,        ///< this Messenger ends: it puts nothing any more
  bye_seen,   ///< nor does the other towards it
};

struct Head {
  Kind kind = Kind::eager;
  std::array<std::uint8_t, 3> reserved{};
  std::uint32_t sequence = 0;  ///< of eager, offer, withdraw: counted for each peer, so that their order is known
};

struct Eager {
  Head head{};
  std::uint64_t tag = 0;
};  // then the payload

struct Offer {
  Head head{};
  std::uint64_t tag = 0;
  std::uint64_t bytes = 0;
  std::uint64_t id = 0;  ///< the sender's operation
};                       // then a Source, or nothing

/// Where an offered message lies, for a receiver that reads it there. What it has read is the message if the lease held
/// the offer's id afterwards: a sender that takes its memory back clears that first.
struct Source {
  std::uint64_t address = 0;  ///< in the sender's process
  RemoteKey memory{};         ///< of a region that holds it and can be mapped, if `mappable`
  std::uint64_t offset = 0;   ///< there
  std::uint64_t mappable = 0;
  RemoteKey lease{};
  std::uint64_t lease_offset = 0;
};

struct Withdraw {
  Head head{};
  std::uint64_t id = 0;
};

/// The pieces of all messages taken from one sender fill the slots one after the other, in the order of `number`.
struct Take {
  Head head{};
  std::uint64_t id = 0;
  std::uint64_t number = 0;
  std::uint64_t bytes = 0;  ///< of the message, as offered
  std::uint64_t offset = 0;
  RemoteKey key{};
  std::uint32_t slots = 0;
  std::uint32_t slot_bytes = 0;
  std::uint32_t piece = 0;
  std::uint32_t reserved = 0;
};

struct Done {
  Head head{};
  std::uint64_t id = 0;
  std::int64_t code = 0;  ///< an Errc
};

/// Since the two Messengers know each other.
struct Credit {
  Head head{};
  std::uint64_t freed = 0;   ///< cost of eager messages that somebody has received
  std::uint64_t pieces = 0;  ///< taken out of the slots
};

/// A notification: a piece is in its slot, or there will be no more pieces of this message.
struct PieceWord {
  static constexpr std::uint32_t kStop = 1U << 23;
  static constexpr std::uint32_t kNumbers = kStop - 1;
};

/// The largest of them that has no payload; fabric.eager_bytes has to hold it.
inline constexpr std::size_t kLargestHead = 256;
static_assert(sizeof(Take) <= kLargestHead && sizeof(Offer) + sizeof(Source) <= kLargestHead);

/// The front of a message, if it is long enough.
template <class T>
[[nodiscard]] std::optional<T> front(std::span<const std::byte> bytes) noexcept {
  static_assert(std::is_trivially_copyable_v<T>);
  if (bytes.size() < sizeof(T)) return std::nullopt;
  T value;
  std::memcpy(&value, bytes.data(), sizeof value);
  return value;
}

/// The whole message and nothing more.
template <class T>
[[nodiscard]] std::optional<T> whole(std::span<const std::byte> bytes) noexcept {
  return bytes.size() == sizeof(T) ? front<T>(bytes) : std::nullopt;
}

}  // namespace messaging
}  // namespace dtr::inline v0
