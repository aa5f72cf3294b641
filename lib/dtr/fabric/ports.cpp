#include "dtr/fabric/ports.hpp"

#include <new>
#include <string>
#include <utility>

namespace dtr::inline v0 {
namespace fabric {

Result<void> Ports::open(Port port, PortHandler& handler) {
  if (handlers_[port] != nullptr) {
    return fail(Errc::already_exists, "port " + std::to_string(port) + " is open", "open port");
  }
  handlers_[port] = &handler;
  auto held = std::exchange(held_[port], {});
  for (const Held& event : held) {
    held_bytes_ -= sizeof(Held) + event.payload.size();
    if (event.is_message) {
      handler.on_message(event.from, event.payload);
    } else {
      handler.on_notify(event.from, event.value);
    }
  }
  return {};
}

void Ports::close(Port port) noexcept { handlers_[port] = nullptr; }

bool Ports::notify(PeerId from, Port port, std::uint32_t value) noexcept {
  if (PortHandler* handler = handlers_[port]; handler != nullptr) {
    handler->on_notify(from, value);
    return true;
  }
  return hold(port, {.from = from, .is_message = false, .value = value, .payload = {}});
}

bool Ports::message(PeerId from, Port port, std::span<const std::byte> payload) noexcept {
  if (PortHandler* handler = handlers_[port]; handler != nullptr) {
    handler->on_message(from, payload);
    return true;
  }
  if (held_bytes_ + payload.size() > hold_limit_) return false;
  try {
    return hold(port, {.from = from, .is_message = true, .value = 0, .payload = {payload.begin(), payload.end()}});
  } catch (const std::bad_alloc&) {
    return false;
  }
}

bool Ports::hold(Port port, Held event) noexcept {
  const std::size_t bytes = sizeof(Held) + event.payload.size();
  if (held_bytes_ + bytes > hold_limit_) return false;
  try {
    held_[port].push_back(std::move(event));
  } catch (const std::bad_alloc&) {
    return false;
  }
  held_bytes_ += bytes;
  return true;
}

void Ports::peer_down(PeerId peer, const Error& error) noexcept {
  for (PortHandler* handler : handlers_) {
    if (handler != nullptr) handler->on_peer_down(peer, error);
  }
}

}  // namespace fabric
}  // namespace dtr::inline v0
