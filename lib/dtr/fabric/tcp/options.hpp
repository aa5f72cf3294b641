// What can be chosen about the TCP transport.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>

namespace dtr::inline v0 {
namespace fabric::tcp {

struct TcpOptions {
  /// A numeric address, or names of network interfaces ("eth0,ib0"): what is announced and connected from. An
  /// address is also all that is listened on. Empty = all of this host.
  std::string bind_address{};
  std::uint16_t port = 0;                             ///< 0 = the kernel chooses
  int socket_buffer_bytes = 0;                        ///< SO_SNDBUF and SO_RCVBUF; 0 = the kernel tunes them
  std::size_t eager_bytes = 4096;                     ///< largest `send`; at most wire.hpp's kMaxMessage
  std::uint32_t queue_depth = 4096;                   ///< open requests a channel; a power of two, at most 65536
  std::size_t send_buffer_bytes = 512 << 10;          ///< copies of open messages a channel; at least 8 messages
  std::chrono::milliseconds handshake_timeout{5000};  ///< a stranger that has not proved itself by then is dropped
  std::uint32_t max_pending_handshakes = 256;         ///< beyond it the oldest stranger is dropped
  /// A peer whose connection broke may come back within it; half of failure_detect at most. A process that waits for
  /// a core needs some of it.
  std::chrono::milliseconds reconnect_grace{2000};
  std::chrono::milliseconds refused_for{500};      ///< nobody listens at the peer's port for so long: it is dead
  std::chrono::milliseconds failure_detect{5000};  ///< a host that answers nothing for so long has failed

  /// What a channel takes for copies of open messages.
  [[nodiscard]] std::size_t message_room() const noexcept { return std::max(send_buffer_bytes, 8 * (eager_bytes + 8)); }
};

}  // namespace fabric::tcp
}  // namespace dtr::inline v0
