// A hand-made client: says exactly what a test wants, true or not.
#pragma once

#include <cstring>
#include <span>
#include <stdexcept>
#include <vector>

#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include "dtr/base/fd.hpp"
#include "dtr/fabric/handshake.hpp"
#include "dtr/fabric/tcp/wire.hpp"
#include "fabric_tcp/node.hpp"

namespace dtr::testing {

class RawPeer {
 public:
  explicit RawPeer(const Node& to) {
    const auto address = to.transport->address();
    sockaddr_in target{};
    target.sin_family = AF_INET;
    target.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    std::uint16_t port = 0;
    std::memcpy(&port, address.data() + 2, sizeof port);
    target.sin_port = htons(port);
    fd_.reset(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (!fd_ || ::connect(fd_.get(), reinterpret_cast<const sockaddr*>(&target), sizeof target) != 0) {
      throw std::runtime_error("connect: " + std::string(std::strerror(errno)));
    }
  }

  void say(const void* data, std::size_t bytes) const {
    static_cast<void>(::send(fd_.get(), data, bytes, MSG_NOSIGNAL));
  }
  template <class T>
  void say(const T& value) const {
    say(&value, sizeof value);
  }

  /// What has come so far, at most `most` bytes; stops early at the end of the stream.
  [[nodiscard]] std::vector<std::byte> hear(std::size_t most) const {
    std::vector<std::byte> heard(most);
    const auto n = ::recv(fd_.get(), heard.data(), most, MSG_DONTWAIT);
    heard.resize(n > 0 ? static_cast<std::size_t>(n) : 0);
    return heard;
  }
  template <class T>
  [[nodiscard]] bool hear(T& value, Node& node, std::chrono::milliseconds bound = 5s) const {
    std::vector<std::byte> heard;
    static_cast<void>(drive_until(
        bound,
        [&] {
          const auto more = hear(sizeof value - heard.size());
          heard.insert(heard.end(), more.begin(), more.end());
          return heard.size() == sizeof value || hung_up();
        },
        node));
    if (heard.size() != sizeof value) return false;
    std::memcpy(&value, heard.data(), sizeof value);
    return true;
  }

  [[nodiscard]] bool hung_up() const {
    std::byte byte{};
    const auto n = ::recv(fd_.get(), &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    return n == 0 || (n < 0 && errno != EAGAIN);
  }

  /// Closes with a reset instead of an orderly end.
  void slam() {
    const linger hard{.l_onoff = 1, .l_linger = 0};
    ::setsockopt(fd_.get(), SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
    fd_.reset();
  }

  /// The whole handshake as `self`; true if the node lets it in.
  [[nodiscard]] bool shake_hands(Node& node, const fabric::Identity& self, std::uint32_t connection) {
    const fabric::Hello mine = fabric::make_hello(self, fabric::tcp::kTransportLetters, node.identity.self, connection);
    fabric::Hello theirs;
    fabric::Proof proof;
    say(mine);
    if (!hear(theirs, node) || !hear(proof, node)) return false;
    if (!fabric::check_proof(proof, self, fabric::Side::responder, mine, theirs)) return false;
    say(fabric::make_proof(self, fabric::Side::initiator, mine, theirs));
    fabric::Verdict verdict;
    return hear(verdict, node) && verdict.code == 0;
  }

 private:
  UniqueFd fd_;
};

}  // namespace dtr::testing
