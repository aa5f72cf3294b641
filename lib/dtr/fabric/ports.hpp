// Who on this process gets the notifications and messages of a port, and what waits until somebody opens it.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <map>
#include <span>
#include <vector>

#include "dtr/fabric/work_request.hpp"

namespace dtr::inline v0 {
namespace fabric {

/// A service's end of a port. Called from progress, one call at a time; may post, may not wait.
class PortHandler {
 public:
  virtual ~PortHandler() = default;
  virtual void on_notify(PeerId from, std::uint32_t value) noexcept = 0;
  /// The payload is valid during the call only.
  virtual void on_message(PeerId from, std::span<const std::byte> payload) noexcept = 0;
  /// A peer is dead or has left; told to every open port once a peer.
  virtual void on_peer_down(PeerId peer, const Error& error) noexcept = 0;
};

/// Not thread-safe: used with the turn of the progress engine only.
class Ports {
 public:
  /// `hold_limit`: bytes kept for ports that nobody has opened yet.
  explicit Ports(std::size_t hold_limit) : hold_limit_(hold_limit) {}

  /// Hands over what was kept for the port, in order of arrival. Errors: already_exists.
  [[nodiscard]] Result<void> open(Port port, PortHandler& handler);

  /// What arrives later is kept again.
  void close(Port port) noexcept;

  /// False: the port is closed and the limit is reached; the caller has to fail the sender, for nothing may be lost.
  [[nodiscard]] bool notify(PeerId from, Port port, std::uint32_t value) noexcept;
  [[nodiscard]] bool message(PeerId from, Port port, std::span<const std::byte> payload) noexcept;

  void peer_down(PeerId peer, const Error& error) noexcept;

 private:
  struct Held {
    PeerId from;
    bool is_message;
    std::uint32_t value;
    std::vector<std::byte> payload;
  };
  [[nodiscard]] bool hold(Port port, Held event) noexcept;

  std::array<PortHandler*, 256> handlers_{};
  std::map<Port, std::deque<Held>> held_;
  std::size_t held_bytes_ = 0;
  std::size_t hold_limit_;
};

}  // namespace fabric
}  // namespace dtr::inline v0
