#include "dtr/fabric/tcp/poller.hpp"

#include <algorithm>
#include <cerrno>

#include <sys/eventfd.h>

namespace dtr::inline v0 {
namespace fabric::tcp {

Result<Poller> Poller::create() {
  Poller poller;
  poller.epoll_.reset(::epoll_create1(EPOLL_CLOEXEC));
  if (!poller.epoll_) return fail(errno_error(errno, "epoll_create1", "open tcp"));
  poller.bell_.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!poller.bell_) return fail(errno_error(errno, "eventfd", "open tcp"));
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.ptr = nullptr;
  if (::epoll_ctl(poller.epoll_.get(), EPOLL_CTL_ADD, poller.bell_.get(), &event) != 0) {
    return fail(errno_error(errno, "epoll_ctl", "open tcp"));
  }
  return poller;
}

int Poller::watch(int fd, std::uint32_t events, Pollable& who) noexcept {
  epoll_event event{};
  event.events = events;
  event.data.ptr = &who;
  return ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) == 0 ? 0 : errno;
}

void Poller::change(int fd, std::uint32_t events, Pollable& who) noexcept {
  epoll_event event{};
  event.events = events;
  event.data.ptr = &who;
  static_cast<void>(::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, fd, &event));
}

void Poller::forget(int fd) noexcept {
  // Closing would do as well, but not while a child of fork holds a copy of the descriptor.
  static_cast<void>(::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr));
}

std::span<const epoll_event> Poller::poll(std::span<epoll_event> room) noexcept {
  const int n = ::epoll_wait(epoll_.get(), room.data(), static_cast<int>(room.size()), 0);
  if (n <= 0) return {};
  auto* end = std::remove_if(room.data(), room.data() + n, [](const epoll_event& e) { return e.data.ptr == nullptr; });
  if (end != room.data() + n) {
    eventfd_t rings = 0;
    static_cast<void>(::eventfd_read(bell_.get(), &rings));
  }
  return room.first(static_cast<std::size_t>(end - room.data()));
}

void Poller::ring() noexcept { static_cast<void>(::eventfd_write(bell_.get(), 1)); }

}  // namespace fabric::tcp
}  // namespace dtr::inline v0
