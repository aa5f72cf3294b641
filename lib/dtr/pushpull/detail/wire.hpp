// What workers and servers say to each other: small messages on the ports of a group. Data goes by put; the message
// that speaks of it is fenced behind it. Nothing else relies on messages arriving in order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string_view>
#include <type_traits>

#include "dtr/memory/region.hpp"

namespace dtr::inline v0 {
namespace pushpull {

constexpr std::uint32_t kVersion = 3;
constexpr std::size_t kSmallestMessage = 512;   ///< fabric.eager_bytes has to allow this
constexpr std::uint32_t kInlined = 0xFFFFFFFF;  ///< the data travels inside of the message
constexpr std::uint32_t kInPlace = 0xFFFFFFFD;  ///< pushed to a Reducer of this process, which reads it where it is
constexpr std::uint32_t kWritten = 0xFFFFFFFE;  ///< the server has put the answer where it belongs
constexpr std::size_t kInlineAlignment = 16;
constexpr std::uint32_t kMostFragments = 1 << 18;  ///< of a round to one server
constexpr std::uint32_t kMostRounds = 1 << 16;     ///< between the oldest open round and the youngest

[[nodiscard]] constexpr bool is_slot(std::uint32_t slot) noexcept { return slot < kInPlace; }
[[nodiscard]] constexpr std::size_t inline_size(std::size_t bytes) noexcept {
  return (bytes + kInlineAlignment - 1) / kInlineAlignment * kInlineAlignment;
}

enum class Kind : std::uint8_t {
  // worker -> server
  hello = 1,  ///< a Worker is there
  bind,       ///< wants one more receive slot for a key
  unbind,     ///< gives a key's slots back
  give_back,  ///< one slot, as the server asked
  announce,   ///< memory that will be pulled into
  round,      ///< a fragment of a round
  cancel,     ///< do not answer this round any more
  fetched,    ///< what a response offered has been read, or is not wanted any more
  bye,        ///< the Worker ends
  // server -> worker
  welcome = 32,
  bound,
  bind_failed,
  known,     ///< the announced memory can be named
  lend,      ///< memory of the server that responses will offer
  response,  ///< a fragment has ended, well or not
  muted,     ///< nothing of a cancelled fragment's answer will be written
  release,   ///< the slots of a fragment that was answered before
  broken,    ///< all rounds fail, now and later; nothing of an answer will be written any more
  parted,    ///< the same after a bye
  rebind,    ///< the slots of a key are wanted back; ask again for the next push
};

/// In front of everything.
struct Head {
  Kind kind{};
  std::uint8_t flags = 0;
  std::uint16_t reserved = 0;
  std::uint32_t epoch = 0;  ///< of the Worker object: answers to an earlier one are dropped
};

struct Hello {
  Head head{.kind = Kind::hello};
  std::uint32_t version = kVersion;
  std::uint32_t workers = 0;  ///< as the worker counts them
};

struct Welcome {
  Head head{.kind = Kind::welcome};
  std::uint32_t slots = 0;     ///< receive slots a key may have
  std::uint32_t in_place = 0;  ///< 1: the server is in the worker's process and reads and writes tensors where they are
};

/// A key or a part of it: [offset, offset + bytes) of its tensor.
struct Bind {
  Head head{.kind = Kind::bind};
  std::uint64_t key = 0;
  std::uint64_t offset = 0;
  std::uint64_t bytes = 0;
};

struct Unbind {
  Head head{.kind = Kind::unbind};
  std::uint64_t key = 0;
  std::uint64_t offset = 0;
};

struct GiveBack {
  Head head{.kind = Kind::give_back};
  std::uint32_t slot = 0;
  std::uint32_t reserved = 0;
};

struct Rebind {
  Head head{.kind = Kind::rebind};
  std::uint64_t key = 0;
};

struct Bound {
  Head head{.kind = Kind::bound};
  std::uint64_t key = 0;
  std::uint64_t offset = 0;
  std::uint64_t slot_offset = 0;  ///< in `memory`
  std::uint32_t slot = 0;
  std::uint32_t reserved = 0;
  RemoteKey memory{};
};

/// The words follow.
struct BindFailed {
  Head head{.kind = Kind::bind_failed};
  std::uint64_t key = 0;
  std::uint64_t offset = 0;
  std::int32_t code = 0;
  std::uint32_t reserved = 0;
};

struct Announce {
  Head head{.kind = Kind::announce};
  std::uint32_t region = 0;  ///< the worker's number for it
  std::uint32_t turn = 0;    ///< counts what the number has meant
  RemoteKey memory{};
};

struct Known {
  Head head{.kind = Kind::known};
  std::uint32_t region = 0;
  std::uint32_t turn = 0;
  std::int32_t code = 0;
  std::uint32_t reserved = 0;
};

/// Then the push entries, the pull entries, and the data of inlined pushes at multiples of kInlineAlignment.
struct Round {
  static constexpr std::uint8_t kCancelled = 1;  ///< the worker gave it up: no entries, no answer expected

  Head head{.kind = Kind::round};
  std::uint64_t seq = 0;     ///< counts the worker's rounds to this server
  std::uint64_t ticket = 0;  ///< names the fragment in what the server says about it
  std::uint32_t fragment = 0;
  std::uint32_t fragments = 0;  ///< of this round to this server
  std::uint16_t pushes = 0;
  std::uint16_t pulls = 0;
  std::uint32_t reserved = 0;
  std::int64_t started_ns = 0;
  std::int64_t posted_ns = 0;
  std::int64_t patience_ns = 0;  ///< from posted_ns to the round's deadline
};

struct PushEntry {
  std::uint64_t key = 0;
  std::uint64_t offset = 0;  ///< of this part in the tensor
  std::uint64_t bytes = 0;   ///< of this part
  std::uint64_t total = 0;   ///< of the tensor
  std::uint32_t slot = kInlined;
  std::uint8_t dtype = 0;
  std::uint8_t both = 0;  ///< the round pulls this part too
  std::uint8_t reserved[2] = {};
  std::uint64_t address = 0;  ///< of what is pushed in place
};

struct PullEntry {
  std::uint64_t key = 0;
  std::uint64_t offset = 0;
  std::uint64_t bytes = 0;
  std::uint64_t total = 0;
  std::uint64_t region_offset = 0;
  std::uint32_t region = kInlined;
  std::uint8_t dtype = 0;
  std::uint8_t both = 0;  ///< the round pushes this part too
  std::uint8_t reserved[2] = {};
};

struct Cancel {
  Head head{.kind = Kind::cancel};
  std::uint64_t seq = 0;
};

struct Bye {
  static constexpr std::uint8_t kUnclean = 1;  ///< puts into the slots may still be under way
  static constexpr std::uint8_t kFailed = 2;   ///< one of its rounds has failed

  Head head{.kind = Kind::bye};
  std::uint64_t rounds = 0;  ///< as many as it sent to this server
};

struct Parted {
  Head head{.kind = Kind::parted};
};

/// Where the answer to a pull is: in memory that was lent, until the worker says `fetched`; or written already.
struct Offer {
  std::uint64_t offset = 0;
  std::uint32_t region = kWritten;
  std::uint32_t reserved = 0;
};

/// Sent once before the first response that offers some of it.
struct Lend {
  Head head{.kind = Kind::lend};
  std::uint32_t region = 0;  ///< the server's number for it
  std::uint32_t reserved = 0;
  RemoteKey memory{};
};

/// Then for each pull in the entries' order the data, padded, where it is inlined, and else an Offer; or, after a
/// failure, the words.
struct Response {
  static constexpr std::uint8_t kRetained = 1;  ///< the slots come back with a `release`
  static constexpr std::uint8_t kFetch = 2;     ///< something is offered: a `fetched` is expected

  Head head{.kind = Kind::response};
  std::uint64_t ticket = 0;
  std::int32_t code = 0;
  std::int32_t peer = -1;  ///< whom the failure is about
  std::int64_t received_ns = 0;
  std::int64_t processed_ns = 0;
  std::int64_t responded_ns = 0;
  std::int64_t posted_ns = 0;
};

struct Fetched {
  Head head{.kind = Kind::fetched};
  std::uint64_t ticket = 0;
};

struct Muted {
  Head head{.kind = Kind::muted};
  std::uint64_t ticket = 0;
};

struct Release {
  Head head{.kind = Kind::release};
  std::uint64_t ticket = 0;
};

/// The words follow.
struct Broken {
  Head head{.kind = Kind::broken};
  std::int32_t code = 0;
  std::int32_t peer = -1;
};

/// The structure at the front of a message, if it is long enough. A copy: the message may lie at any address.
template <class T>
[[nodiscard]] std::optional<T> front(std::span<const std::byte> message) noexcept {
  static_assert(std::has_unique_object_representations_v<T>, "no padding on the wire");
  if (message.size() < sizeof(T)) return std::nullopt;
  T value;
  std::memcpy(&value, message.data(), sizeof value);
  return value;
}

/// What follows the structure, as words.
template <class T>
[[nodiscard]] std::string_view words_after(std::span<const std::byte> message) noexcept {
  const auto rest = message.subspan(sizeof(T));
  return {reinterpret_cast<const char*>(rest.data()), rest.size()};
}

}  // namespace pushpull
}  // namespace dtr::inline v0
