// Ranks on one host: copies by the caller into mapped or foreign memory, messages through rings in shared memory.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "dtr/fabric/transport.hpp"

namespace dtr::inline v0 {
namespace fabric::shm {

/// Whether memory that peers cannot map is copied by process_vm_readv and writev.
enum class CmaUse : std::uint8_t {
  automatic,  ///< where the kernel allows it, found out by a probe when a peer connects
  on,         ///< a peer for which it is forbidden is an Error
  off,        ///< always through the ring
};

struct ShmOptions {
  std::size_t ring_bytes = 256 << 10;  ///< messages under way to one peer; rounded up to a power of two
  std::size_t eager_bytes = 4096;      ///< largest message; the ring holds four at least
  CmaUse cma = CmaUse::automatic;
  std::chrono::milliseconds handshake_timeout{5000};  ///< for who connects to us, stranger or peer
  std::size_t max_handshakes = 128;                   ///< at one time; the oldest goes when one more comes
};

/// Errors: unsupported (the kernel has no memfd, or no abstract sockets), resource_exhausted, invalid_argument.
[[nodiscard]] Result<std::unique_ptr<Transport>> make_shm(const TransportContext& context,
                                                          const ShmOptions& options = {});

}  // namespace fabric::shm
}  // namespace dtr::inline v0
