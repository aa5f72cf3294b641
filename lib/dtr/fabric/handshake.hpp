// How two processes of one job recognise each other on a byte stream: challenge and response over the job token.
//
//   initiator -> responder   Hello
//   responder -> initiator   Hello, Proof
//   initiator -> responder   Proof
//   responder -> initiator   Verdict
//
// The messages are fixed-size and self-contained, so that a transport reads them with its own loop. All checks are
// pure functions; a test or a fuzzer needs no socket.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "dtr/base/error.hpp"
#include "dtr/fabric/identity.hpp"

namespace dtr::inline v0 {
namespace fabric {

inline constexpr std::uint64_t kHelloMagic = 0x0A30'7274'6462'696CULL;  // "libdtr0\n"
inline constexpr std::uint32_t kProtocolVersion = 1;
inline constexpr std::uint32_t kByteOrderMark = 0x01020304;

struct Hello {
  std::uint64_t magic = kHelloMagic;
  std::uint32_t byte_order = kByteOrderMark;
  std::uint32_t version = kProtocolVersion;
  std::uint64_t build = 0;       ///< layout of everything that follows the handshake
  std::uint32_t transport = 0;   ///< four letters: a tcp peer cannot end in a shm socket
  std::uint32_t peer = 0;        ///< sender's PeerId
  std::uint32_t target = 0;      ///< whom the sender believes to talk to
  std::uint32_t connection = 0;  ///< counts the sender's connections to this peer; a replay is told from a new one
  std::array<std::byte, 32> nonce{};
};
static_assert(sizeof(Hello) == 72);

struct Proof {
  std::array<std::byte, 32> mac{};
};

struct Verdict {
  std::int32_t code = 0;  ///< an Errc; ok = the connection stands
  std::uint32_t reserved = 0;
};

enum class Side : std::uint8_t { initiator, responder };

/// This process's Hello to `target`, with a fresh nonce.
[[nodiscard]] Hello make_hello(const Identity& identity, std::uint32_t transport, std::uint32_t target,
                               std::uint32_t connection);

/// Is this Hello from a process that we can talk to? `expected_peer` is checked when >= 0.
/// Errors: handshake_rejected, naming what differs on both sides.
[[nodiscard]] Result<void> check_hello(const Hello& hello, const Identity& identity, std::uint32_t transport,
                                       std::int64_t expected_peer);

/// The MAC that only a holder of the token can make over both Hellos, in the name of one side.
[[nodiscard]] Proof make_proof(const Identity& identity, Side side, const Hello& initiator, const Hello& responder);

/// Constant-time comparison. Errors: handshake_rejected.
[[nodiscard]] Result<void> check_proof(const Proof& proof, const Identity& identity, Side side, const Hello& initiator,
                                       const Hello& responder);

/// Changes with the layout of wire structures; two builds talk only if theirs are equal.
[[nodiscard]] std::uint64_t build_id() noexcept;

}  // namespace fabric
}  // namespace dtr::inline v0
