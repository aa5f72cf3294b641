// What stands where the network would be, for tests of what is above it.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "dtr/fabric/transport.hpp"

namespace dtr::testing {

/// All peers, to whom what is posted has come at once. One thread.
struct Ether {
  struct Event {
    fabric::PeerId from = 0;
    bool is_message = true;
    std::uint32_t value = 0;
    std::vector<std::byte> payload{};
  };
  struct Posted {
    fabric::PeerId to = 0;
    fabric::Opcode opcode = fabric::Opcode::send;
    std::uint32_t value = 0;
    std::uint64_t offset = 0;        ///< in the peer's memory
    std::vector<std::byte> bytes{};  ///< what went
  };
  struct Open {
    fabric::PeerId to = 0;
    fabric::Completion* completion = nullptr;
  };

  fabric::Receiver* receiver = nullptr;
  fabric::Port port = 0;
  std::deque<Event> coming{};                                               ///< told at the next look
  std::deque<Posted> posted{};                                              ///< by the Messenger's side
  std::vector<Open> open{};                                                 ///< taken, and ended at the next look
  bool full = false;                                                        ///< no room
  bool late = false;                                                        ///< what is posted ends at the next look
  std::vector<std::uint64_t> memory = std::vector<std::uint64_t>(1 << 17);  ///< of all peers

  [[nodiscard]] std::span<std::byte> bytes() { return std::as_writable_bytes(std::span(memory)); }
  [[nodiscard]] RemoteKey key();
};

/// A transport of which this is the network. `ether` must outlive it.
[[nodiscard]] std::unique_ptr<fabric::Transport> ether_transport(Ether& ether, std::string name, std::string domain);

}  // namespace dtr::testing
