#include "dtr/fabric/shm/socket.hpp"

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <string_view>

#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

namespace dtr::inline v0 {
namespace fabric::shm {

namespace {

constexpr std::size_t kMaxFds = 4;
constexpr int kPeerPidfd = 77;  // SO_PEERPIDFD, Linux 6.5; not in older headers

struct Name {
  sockaddr_un address{};
  socklen_t length = 0;
};

Name abstract_name(const Address& address) noexcept {
  Name name;
  name.address.sun_family = AF_UNIX;
  constexpr std::string_view kPrefix = "dtr-";
  char* at = name.address.sun_path + 1;  // the leading zero makes it abstract
  at = std::copy(kPrefix.begin(), kPrefix.end(), at);
  for (const std::byte byte : address.name) {
    *at++ = "0123456789abcdef"[std::to_integer<unsigned>(byte) >> 4];
    *at++ = "0123456789abcdef"[std::to_integer<unsigned>(byte) & 15];
  }
  name.length = static_cast<socklen_t>(at - reinterpret_cast<char*>(&name.address));
  return name;
}

const sockaddr* generic(const Name& name) noexcept { return reinterpret_cast<const sockaddr*>(&name.address); }

UniqueFd new_socket() noexcept { return UniqueFd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)); }

}  // namespace

Result<UniqueFd> listen_at(const Address& address) {
  UniqueFd listener = new_socket();
  if (!listener) return fail(errno_error(errno, "socket", "start shm"));
  const Name name = abstract_name(address);
  if (::bind(listener.get(), generic(name), name.length) != 0) return fail(errno_error(errno, "bind", "start shm"));
  if (::listen(listener.get(), 4096) != 0) return fail(errno_error(errno, "listen", "start shm"));
  return listener;
}

Result<UniqueFd> connect_to(const Address& address) {
  UniqueFd socket = new_socket();
  if (!socket) return fail(errno_error(errno, "socket", "connect"));
  const Name name = abstract_name(address);
  if (::connect(socket.get(), generic(name), name.length) == 0) return socket;
  switch (errno) {
    case EAGAIN:
      return fail(Errc::again, "the peer's queue of connections is full", "connect");
    case ECONNREFUSED:
      return fail(Errc::not_found, "nobody listens at the peer's address: its process is gone", "connect");
    default:
      return fail(errno_error(errno, "connect", "connect"));
  }
}

UniqueFd accept_from(int listener) noexcept {
  return UniqueFd(::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
}

bool send_all(int socket, std::span<const std::byte> bytes, std::span<const int> fds) noexcept {
  iovec data{const_cast<std::byte*>(bytes.data()), bytes.size()};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kMaxFds)] = {};
  if (!fds.empty()) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(fds.size_bytes());
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(fds.size_bytes());
    std::memcpy(CMSG_DATA(header), fds.data(), fds.size_bytes());
  }
  ssize_t sent = 0;
  do {
    sent = ::sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
  } while (sent < 0 && errno == EINTR);
  return sent == static_cast<ssize_t>(bytes.size());
}

pid_t peer_pid(int socket) noexcept {
  ucred credentials{};
  socklen_t length = sizeof credentials;
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &length) != 0) return 0;
  return credentials.pid;
}

UniqueFd watch_process(int socket) noexcept {
  int pidfd = -1;
  socklen_t length = sizeof pidfd;
  if (::getsockopt(socket, SOL_SOCKET, kPeerPidfd, &pidfd, &length) == 0) return UniqueFd(pidfd);
  const pid_t pid = peer_pid(socket);
  if (pid <= 0) return {};
  return UniqueFd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
}

ExactReader::Got ExactReader::read(int socket) noexcept {
  while (got_ < into_.size()) {
    iovec data{into_.data() + got_, into_.size() - got_};
    msghdr message{};
    message.msg_iov = &data;
    message.msg_iovlen = 1;
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kMaxFds)];
    if (max_fds_ > 0) {  // otherwise the kernel drops whatever a stranger attaches
      message.msg_control = control;
      message.msg_controllen = CMSG_SPACE(sizeof(int) * std::min(max_fds_, kMaxFds));
    }
    const ssize_t got = ::recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return Got::nothing;
    if (got <= 0) return Got::ended;
    for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr; header = CMSG_NXTHDR(&message, header)) {
      if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
      const std::size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
      for (std::size_t i = 0; i < count; ++i) {
        int fd = -1;
        std::memcpy(&fd, CMSG_DATA(header) + i * sizeof fd, sizeof fd);
        fds_.emplace_back(fd);
      }
    }
    got_ += static_cast<std::size_t>(got);
  }
  return Got::all;
}

}  // namespace fabric::shm
}  // namespace dtr::inline v0
