// Where strangers wait until they have proved themselves: a fixed number of places, a bounded time each.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "dtr/base/fd.hpp"
#include "dtr/fabric/handshake.hpp"
#include "dtr/fabric/tcp/address.hpp"
#include "dtr/fabric/tcp/hub.hpp"

namespace dtr::inline v0 {
namespace fabric::tcp {

/// Accepts connections and takes the responder's part in the handshake. A stranger costs a descriptor and a place,
/// never an allocation; when all places are taken the oldest stranger goes. Progress thread only.
class Lobby final : public Pollable {
 public:
  Lobby(Hub& hub, UniqueFd listener);
  ~Lobby();
  Lobby(const Lobby&) = delete;
  Lobby& operator=(const Lobby&) = delete;

  /// From now on the listener is watched. 0 or errno.
  [[nodiscard]] int open() noexcept { return hub_.poller.watch(listener_.get(), EPOLLIN, *this); }

  void on_ready(std::uint32_t events) noexcept override;

  /// Drops who has overstayed; returns when to look again.
  [[nodiscard]] std::int64_t on_time(std::int64_t now) noexcept;

 private:
  class Guest final : public Pollable {
   public:
    void on_ready(std::uint32_t events) noexcept override;

    Lobby* lobby = nullptr;
    UniqueFd fd{};
    Endpoint from{};
    std::int64_t deadline = kNever;
    std::uint64_t arrival = 0;
    bool said_hello = false;
    std::size_t got = 0;
    std::array<std::byte, sizeof(Hello)> buffer{};
    Hello theirs{};
    Hello ours{};
  };

  void receive(Guest& guest) noexcept;
  void answer_hello(Guest& guest) noexcept;
  void check_and_admit(Guest& guest) noexcept;
  void drop(Guest& guest, const char* why) noexcept;
  [[nodiscard]] Guest& free_place() noexcept;
  void drop_oldest(const char* why) noexcept;

  Hub& hub_;
  UniqueFd listener_;
  std::vector<Guest> guests_;
  std::uint64_t arrivals_ = 0;
  std::int64_t accept_again_ = kNever;  ///< out of descriptors: the listener rests until then
  std::int64_t report_after_ = 0;       ///< at most one line a second about strangers
  std::uint64_t unreported_ = 0;
};

}  // namespace fabric::tcp
}  // namespace dtr::inline v0
