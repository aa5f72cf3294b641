#include "dtr/fabric/tcp/socket.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

namespace dtr::inline v0 {
namespace fabric::tcp {

namespace {

void set(int fd, int level, int option, int value) noexcept {
  // Wishes, not needs: an old kernel or a small limit makes the connection slower, not wrong.
  static_cast<void>(::setsockopt(fd, level, option, &value, sizeof value));
}

void set_buffers(int fd, const TcpOptions& options) noexcept {
  if (options.socket_buffer_bytes <= 0) return;
  set(fd, SOL_SOCKET, SO_SNDBUF, options.socket_buffer_bytes);
  set(fd, SOL_SOCKET, SO_RCVBUF, options.socket_buffer_bytes);
}

Result<ListeningSocket> listen_at(const Endpoint& at, const TcpOptions& options) {
  const std::string what = "listen on " + at.to_string();
  UniqueFd fd(::socket(at.family(), SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd) return fail(errno_error(errno, what, "open tcp"));
  set(fd.get(), SOL_SOCKET, SO_REUSEADDR, 1);
  if (at.family() == AF_INET6) set(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, 0);
  set_buffers(fd.get(), options);  // before listen: an accepted socket inherits its window scale
  sockaddr_storage bound{};
  socklen_t length = sizeof bound;
  if (::bind(fd.get(), at.address(), at.length) != 0 || ::listen(fd.get(), SOMAXCONN) != 0 ||
      ::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&bound), &length) != 0) {
    return fail(errno_error(errno, what, "open tcp"));
  }
  Endpoint endpoint;
  endpoint.storage = bound;
  endpoint.length = length;
  return ListeningSocket{std::move(fd), endpoint.port()};
}

}  // namespace

Result<ListeningSocket> listen_on(const TcpOptions& options) {
  if (const auto at = parse_endpoint(options.bind_address, options.port)) return listen_at(*at, options);
  // One socket for both families, also for interfaces by name: which are announced is another matter; a host without
  // IPv6 gets the old one.
  auto both = listen_at(parse_endpoint("::", options.port).value(), options);
  if (both) return both;
  return listen_at(parse_endpoint("0.0.0.0", options.port).value(), options);
}

UniqueFd accept_from(int listener, Endpoint& from) noexcept {
  from.length = sizeof from.storage;
  UniqueFd fd(
      ::accept4(listener, reinterpret_cast<sockaddr*>(&from.storage), &from.length, SOCK_NONBLOCK | SOCK_CLOEXEC));
  if (fd) set(fd.get(), IPPROTO_TCP, TCP_NODELAY, 1);
  return fd;
}

UniqueFd start_connect(const Endpoint& to, std::span<const Endpoint> from, const TcpOptions& options,
                       int& error) noexcept {
  UniqueFd fd(::socket(to.family(), SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd) {
    error = errno;
    return fd;
  }
  set(fd.get(), IPPROTO_TCP, TCP_NODELAY, 1);
  set_buffers(fd.get(), options);
  // Only if the user chose: else the route decides, and loopback stays reachable from anywhere.
  if (!options.bind_address.empty()) {
    const auto same =
        std::find_if(from.begin(), from.end(), [&](const Endpoint& e) { return e.family() == to.family(); });
    if (same != from.end()) {
      const Endpoint source = same->with_port(0);
      set(fd.get(), IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1);
      if (::bind(fd.get(), source.address(), source.length) != 0) {
        error = errno;
        fd.reset();
        return fd;
      }
    }
  }
  if (::connect(fd.get(), to.address(), to.length) == 0) {
    error = 0;
  } else {
    error = errno;
    if (error != EINPROGRESS) fd.reset();
  }
  return fd;
}

int pending_error(int fd) noexcept {
  int error = 0;
  socklen_t length = sizeof error;
  if (::getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length) != 0) return errno;
  return error;
}

void tune(int fd, const TcpOptions& options) noexcept {
  const auto seconds = static_cast<int>(std::chrono::ceil<std::chrono::seconds>(options.failure_detect).count());
  set(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
  set(fd, IPPROTO_TCP, TCP_KEEPIDLE, 1);
  set(fd, IPPROTO_TCP, TCP_KEEPINTVL, 1);
  set(fd, IPPROTO_TCP, TCP_KEEPCNT, std::clamp(seconds - 1, 1, 100));
  // Not TCP_USER_TIMEOUT: the kernel applies it to a full window too, and a stopped peer is not a dead one.
}

std::ptrdiff_t receive_into(int fd, iovec* pieces, std::size_t count, int flags) noexcept {
  msghdr message{};
  message.msg_iov = pieces;
  message.msg_iovlen = count;
  while (true) {
    const auto n = ::recvmsg(fd, &message, MSG_DONTWAIT | flags);
    if (n >= 0) return n;
    if (errno != EINTR) return -errno;
  }
}

std::ptrdiff_t send_from(int fd, iovec* pieces, std::size_t count) noexcept {
  msghdr message{};
  message.msg_iov = pieces;
  message.msg_iovlen = count;
  while (true) {
    const auto n = ::sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n >= 0) return n;
    if (errno != EINTR) return -errno;
  }
}

bool other_end_owes_answer(int fd) noexcept {
  tcp_info info{};
  socklen_t length = sizeof info;
  if (::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) != 0) return false;
  return info.tcpi_retransmits > 0 || info.tcpi_probes > 0;
}

}  // namespace fabric::tcp
}  // namespace dtr::inline v0
