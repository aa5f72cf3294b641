// What a channel is asked to do, and how it ends.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "dtr/base/error.hpp"
#include "dtr/memory/region.hpp"

namespace dtr::inline v0 {
namespace fabric {

class Completion;
struct RemoteRegion;

/// Dense number of a peer: 0 .. N-1 are the ranks, later ones came by address.
using PeerId = std::uint32_t;

/// The service on the target that a notification or message is for.
using Port = std::uint8_t;

enum class Opcode : std::uint8_t {
  put,           ///< local -> remote
  get,           ///< remote -> local
  put_notify,    ///< put, then a notification at the target; length 0 notifies only
  send,          ///< small message to a port; the payload is copied before post returns
  fetch_add,     ///< remote word += operand; the old value goes to the local 8 bytes
  compare_swap,  ///< remote word = operand if it equals compare; the old value goes to the local 8 bytes
  flush,         ///< finishes when everything posted before it has finished and is visible to the target's CPU
};

/// How a request ended. Fits a register: the words for people are made by Channel::explain.
struct Status {
  Errc code = Errc::ok;
  bool quiesced = true;  ///< this process's memory will not be touched by the request any more
  bool fenced = true;    ///< nothing of the request can still land at the target
  std::int32_t cause =
      0;  ///< completion status of the device, or the number of a refusal (< 0, see Refusals); 0 = none

  [[nodiscard]] bool ok() const noexcept { return code == Errc::ok; }
};
static_assert(sizeof(Status) == 8);

/// One transfer. Trivially copyable, one cache line. The factories below say which fields an operation uses.
struct WorkRequest {
  /// Starts after all earlier ones to that peer have finished; not at all (`cancelled`) if by then one of its own
  /// Completion is known to have failed, so that no message speaks of data that did not arrive.
  static constexpr std::uint8_t kFence = 1;
  static constexpr std::uint32_t kMaxValue = 0xFFFFFF;

  Opcode opcode = Opcode::put;
  std::uint8_t flags = 0;
  Port port = 0;
  std::uint8_t reserved = 0;
  std::uint32_t value = 0;           ///< 24 bits that come with a notification
  Completion* completion = nullptr;  ///< told once when the request ends; nullptr = nobody asks
  union {
    Region* local = nullptr;   ///< this process's side of put, get and atomics
    const std::byte* payload;  ///< send: any readable memory
  };
  std::uint64_t local_offset = 0;
  const RemoteRegion* remote = nullptr;
  std::uint64_t remote_offset = 0;
  union {
    std::uint64_t length = 0;  ///< bytes; atomics always move 8
    std::uint64_t compare;
  };
  std::uint64_t operand = 0;

  struct Range {
    Region* region = nullptr;
    std::uint64_t offset = 0;
  };
  struct RemoteRange {
    const RemoteRegion* region = nullptr;
    std::uint64_t offset = 0;
  };

  [[nodiscard]] static WorkRequest put(Range from, RemoteRange to, std::uint64_t bytes, Completion* done) noexcept {
    return make(Opcode::put, from, to, bytes, done);
  }
  [[nodiscard]] static WorkRequest get(RemoteRange from, Range to, std::uint64_t bytes, Completion* done) noexcept {
    return make(Opcode::get, to, from, bytes, done);
  }
  [[nodiscard]] static WorkRequest put_notify(Range from, RemoteRange to, std::uint64_t bytes, Port port,
                                              std::uint32_t value, Completion* done) noexcept {
    WorkRequest request = make(Opcode::put_notify, from, to, bytes, done);
    request.port = port;
    request.value = value;
    return request;
  }
  [[nodiscard]] static WorkRequest notify(Port port, std::uint32_t value, Completion* done) noexcept {
    return put_notify({}, {}, 0, port, value, done);
  }
  [[nodiscard]] static WorkRequest send(Port port, std::span<const std::byte> payload, Completion* done) noexcept {
    WorkRequest request;
    request.opcode = Opcode::send;
    request.port = port;
    request.completion = done;
    request.payload = payload.data();
    request.length = payload.size();
    return request;
  }
  [[nodiscard]] static WorkRequest fetch_add(RemoteRange word, std::uint64_t add, Range old,
                                             Completion* done) noexcept {
    WorkRequest request = make(Opcode::fetch_add, old, word, 8, done);
    request.operand = add;
    return request;
  }
  [[nodiscard]] static WorkRequest compare_swap(RemoteRange word, std::uint64_t expected, std::uint64_t desired,
                                                Range old, Completion* done) noexcept {
    WorkRequest request = make(Opcode::compare_swap, old, word, expected, done);
    request.operand = desired;
    return request;
  }
  [[nodiscard]] static WorkRequest flush(Completion* done) noexcept {
    WorkRequest request;
    request.opcode = Opcode::flush;
    request.completion = done;
    return request;
  }
  [[nodiscard]] WorkRequest fenced() const noexcept {
    WorkRequest request = *this;
    request.flags |= kFence;
    return request;
  }

  [[nodiscard]] bool is_atomic() const noexcept {
    return opcode == Opcode::fetch_add || opcode == Opcode::compare_swap;
  }
  [[nodiscard]] bool moves_memory() const noexcept { return opcode <= Opcode::put_notify || is_atomic(); }
  /// Bytes moved between the two regions.
  [[nodiscard]] std::uint64_t bytes() const noexcept { return is_atomic() ? 8 : length; }

 private:
  static WorkRequest make(Opcode opcode, Range local, RemoteRange remote, std::uint64_t length,
                          Completion* done) noexcept {
    WorkRequest request;
    request.opcode = opcode;
    request.completion = done;
    request.local = local.region;
    request.local_offset = local.offset;
    request.remote = remote.region;
    request.remote_offset = remote.offset;
    request.length = length;
    return request;
  }
};
static_assert(sizeof(WorkRequest) == 64);

/// What became of a posted span. Requests [0, accepted) end exactly once: the first `finished` of them have ended
/// well inside the call and tell nobody; each of the others tells its Completion.
struct PostResult {
  std::uint32_t accepted = 0;
  std::uint32_t finished = 0;
  /// Why request [accepted] was not taken, if it was not: `again` = no room now, post it again after some progress;
  /// anything else is how that one request ended (it tells nobody, and is quiesced).
  Status status{};
};

}  // namespace fabric
}  // namespace dtr::inline v0
