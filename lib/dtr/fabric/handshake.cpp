#include "dtr/fabric/handshake.hpp"

#include <cstdio>
#include <string>

#include <sodium.h>

#include "dtr/fabric/work_request.hpp"

namespace dtr::inline v0 {
namespace fabric {

namespace {

constexpr const char* kOperation = "handshake";

std::string hex(std::uint64_t value) {
  char text[24];
  std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(value));
  return text;
}

tl::unexpected<Error> rejected(const Hello& hello, const std::string& what) {
  return fail(Errc::handshake_rejected, what, kOperation, static_cast<int>(hello.peer));
}

}  // namespace

std::uint64_t build_id() noexcept {
  // The sizes of what crosses the wire as it is, and a number to count up when a meaning changes.
  constexpr std::uint64_t kWireRevision = 2;
  return kWireRevision << 32 | sizeof(Hello) << 16 | sizeof(RemoteKey);
}

Hello make_hello(const Identity& identity, std::uint32_t transport, std::uint32_t target, std::uint32_t connection) {
  Hello hello;
  hello.build = build_id();
  hello.transport = transport;
  hello.peer = identity.self;
  hello.target = target;
  hello.connection = connection;
  randombytes_buf(hello.nonce.data(), hello.nonce.size());
  return hello;
}

Result<void> check_hello(const Hello& hello, const Identity& identity, std::uint32_t transport,
                         std::int64_t expected_peer) {
  if (hello.magic != kHelloMagic) return fail(Errc::handshake_rejected, "not a libdtr peer", kOperation);
  if (hello.byte_order != kByteOrderMark) {
    return fail(Errc::handshake_rejected, "the peer is not little-endian, this process is", kOperation);
  }
  if (hello.version != kProtocolVersion) {
    return rejected(hello, "the peer speaks protocol " + std::to_string(hello.version) + ", this process " +
                               std::to_string(kProtocolVersion));
  }
  if (hello.build != build_id()) {
    return rejected(hello,
                    "the peer's libdtr has build id " + hex(hello.build) + ", this process's " + hex(build_id()));
  }
  if (hello.transport != transport) return rejected(hello, "the peer means another transport");
  if (hello.target != identity.self) {
    return rejected(hello, "the peer wants rank " + std::to_string(hello.target) + ", this is rank " +
                               std::to_string(identity.self));
  }
  if (hello.peer >= identity.world || hello.peer == identity.self) {
    return rejected(hello,
                    "rank " + std::to_string(hello.peer) + " is no peer in a job of " + std::to_string(identity.world));
  }
  if (expected_peer >= 0 && hello.peer != static_cast<std::uint64_t>(expected_peer)) {
    return rejected(hello, "rank " + std::to_string(expected_peer) + " was expected");
  }
  return {};
}

Proof make_proof(const Identity& identity, Side side, const Hello& initiator, const Hello& responder) {
  Proof proof;
  const auto* key = reinterpret_cast<const unsigned char*>(identity.token.data());
  crypto_generichash_state state;
  crypto_generichash_init(&state, key, identity.token.size(), proof.mac.size());
  const unsigned char name = side == Side::initiator ? 'I' : 'R';
  crypto_generichash_update(&state, &name, 1);
  crypto_generichash_update(&state, reinterpret_cast<const unsigned char*>(&initiator), sizeof initiator);
  crypto_generichash_update(&state, reinterpret_cast<const unsigned char*>(&responder), sizeof responder);
  crypto_generichash_final(&state, reinterpret_cast<unsigned char*>(proof.mac.data()), proof.mac.size());
  return proof;
}

Result<void> check_proof(const Proof& proof, const Identity& identity, Side side, const Hello& initiator,
                         const Hello& responder) {
  const Proof expected = make_proof(identity, side, initiator, responder);
  if (sodium_memcmp(proof.mac.data(), expected.mac.data(), expected.mac.size()) != 0) {
    const Hello& from = side == Side::initiator ? initiator : responder;
    return rejected(from, "the proof does not match this job's token");
  }
  return {};
}

}  // namespace fabric
}  // namespace dtr::inline v0
