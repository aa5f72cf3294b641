// The one epoll set of a transport, with a bell that any thread can ring.
#pragma once

#include <cstdint>
#include <span>

#include <sys/epoll.h>

#include "dtr/base/error.hpp"
#include "dtr/base/fd.hpp"

namespace dtr::inline v0 {
namespace fabric::tcp {

/// Something with a socket. Told on the progress thread; must live until the round of events is over.
class Pollable {
 public:
  virtual void on_ready(std::uint32_t events) noexcept = 0;

 protected:
  ~Pollable() = default;
};

/// Level-triggered. watch, change, forget and ring: any thread.
class Poller {
 public:
  /// Errors: resource_exhausted, io_error.
  [[nodiscard]] static Result<Poller> create();

  [[nodiscard]] int fd() const noexcept { return epoll_.get(); }

  /// 0 or errno.
  [[nodiscard]] int watch(int fd, std::uint32_t events, Pollable& who) noexcept;
  void change(int fd, std::uint32_t events, Pollable& who) noexcept;
  void forget(int fd) noexcept;

  /// What is ready now; a rung bell is silenced and does not count.
  [[nodiscard]] std::span<const epoll_event> poll(std::span<epoll_event> room) noexcept;

  void ring() noexcept;

 private:
  Poller() = default;
  UniqueFd epoll_;
  UniqueFd bell_;
};

}  // namespace fabric::tcp
}  // namespace dtr::inline v0
