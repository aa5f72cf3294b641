// Sockets as this transport wants them: non-blocking, CLOEXEC, no Nagle, no SIGPIPE.
#pragma once

#include <chrono>
#include <cstddef>
#include <span>

#include <sys/uio.h>

#include "dtr/base/error.hpp"
#include "dtr/base/fd.hpp"
#include "dtr/fabric/tcp/address.hpp"
#include "dtr/fabric/tcp/options.hpp"

namespace dtr::inline v0 {
namespace fabric::tcp {

struct ListeningSocket {
  UniqueFd fd{};
  std::uint16_t port = 0;
};

/// Errors: invalid_argument (bind address), io_error and others naming address and port.
[[nodiscard]] Result<ListeningSocket> listen_on(const TcpOptions& options);

/// The next stranger, or none: errno says why (EAGAIN, EMFILE, ...).
[[nodiscard]] UniqueFd accept_from(int listener, Endpoint& from) noexcept;

/// Starts to connect, from one of `from` if the options choose an address or interface; errno 0, EINPROGRESS, or why it
/// failed at once (then no descriptor).
[[nodiscard]] UniqueFd start_connect(const Endpoint& to, std::span<const Endpoint> from, const TcpOptions& options,
                                     int& error) noexcept;

/// The socket's pending error, which asking clears.
[[nodiscard]] int pending_error(int fd) noexcept;

/// For a connection whose peer has proved itself: buffers, keepalive. Idle vanished hosts then end it by ETIMEDOUT.
void tune(int fd, const TcpOptions& options) noexcept;

/// recvmsg or sendmsg without blocking or signals: bytes, 0 = the peer closed (receive only), or -errno.
[[nodiscard]] std::ptrdiff_t receive_into(int fd, iovec* pieces, std::size_t count, int flags = 0) noexcept;
[[nodiscard]] std::ptrdiff_t send_from(int fd, iovec* pieces, std::size_t count) noexcept;

/// True while the kernel at the other end owes an answer: retransmissions or window probes are out.
/// A stopped process does not look like that, its kernel goes on answering.
[[nodiscard]] bool other_end_owes_answer(int fd) noexcept;

}  // namespace fabric::tcp
}  // namespace dtr::inline v0
