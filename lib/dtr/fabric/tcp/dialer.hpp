// One attempt to reach a peer at one address: connect, then the initiator's part in the handshake.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "dtr/base/fd.hpp"
#include "dtr/fabric/handshake.hpp"
#include "dtr/fabric/tcp/address.hpp"
#include "dtr/fabric/tcp/hub.hpp"

namespace dtr::inline v0 {
namespace fabric::tcp {

enum class Dial {
  waiting,
  open,      ///< the peer has proved itself and accepts us: take the descriptor
  refused,   ///< nobody listens there
  broken,    ///< anything that another attempt may heal
  rejected,  ///< somebody is there, but not our peer
  fenced,    ///< the peer has declared this process failed
};

class Dialer {
 public:
  Dialer(Hub& hub, Pollable& events_to) noexcept : hub_(hub), events_to_(events_to) {}
  ~Dialer() { hang_up(); }
  Dialer(const Dialer&) = delete;
  Dialer& operator=(const Dialer&) = delete;

  [[nodiscard]] Dial begin(const Endpoint& to, PeerId peer, std::uint32_t connection) noexcept;

  /// The socket is ready for something.
  [[nodiscard]] Dial advance() noexcept;

  /// Enough waited for the connection.
  [[nodiscard]] Dial no_answer() noexcept { return failed(Dial::broken, "no answer"); }

  /// The connection stands, only the handshake is missing: the host is alive.
  [[nodiscard]] bool connected() const noexcept { return stage_ == Stage::hello || stage_ == Stage::verdict; }
  [[nodiscard]] bool busy() const noexcept { return stage_ != Stage::idle; }

  /// Watched for EPOLLIN already.
  [[nodiscard]] UniqueFd take() noexcept;
  void hang_up() noexcept;

  /// Why the last attempt did not get through.
  [[nodiscard]] const std::string& reason() const noexcept { return reason_; }

 private:
  enum class Stage : std::uint8_t { idle, connecting, hello, verdict };

  Dial say_hello() noexcept;
  Dial check_hello_and_prove() noexcept;
  Dial read_verdict() noexcept;
  Dial failed(Dial how, const std::string& why) noexcept;
  Dial failed(int error, const char* doing) noexcept;

  Hub& hub_;
  Pollable& events_to_;
  UniqueFd fd_;
  Endpoint to_;
  PeerId peer_ = 0;
  Stage stage_ = Stage::idle;
  Hello ours_{};
  Hello theirs_{};
  std::array<std::byte, sizeof(Hello) + sizeof(Proof)> buffer_{};
  std::size_t got_ = 0;
  std::string reason_;
};

}  // namespace fabric::tcp
}  // namespace dtr::inline v0
