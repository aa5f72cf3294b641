#include "dtr/fabric/shm/poller.hpp"

#include <array>
#include <cerrno>
#include <utility>

#include <sys/epoll.h>

namespace dtr::inline v0 {
namespace fabric::shm {

Watch::Watch(Watch&& other) noexcept : poller_(std::exchange(other.poller_, nullptr)), entry_(other.entry_) {}

Watch& Watch::operator=(Watch&& other) noexcept {
  if (this != &other) {
    reset();
    poller_ = std::exchange(other.poller_, nullptr);
    entry_ = other.entry_;
  }
  return *this;
}

void Watch::reset() noexcept {
  if (poller_ != nullptr) std::exchange(poller_, nullptr)->remove(entry_);
}

Result<void> Poller::open() {
  epoll_.reset(::epoll_create1(EPOLL_CLOEXEC));
  if (!epoll_) return fail(errno_error(errno, "epoll_create1", "start shm"));
  return {};
}

Result<Watch> Poller::add(int fd, Watcher& watcher) {
  std::uint32_t index = 0;
  if (free_.empty()) {
    index = static_cast<std::uint32_t>(entries_.size());
    entries_.emplace_back();
    free_.reserve(entries_.size());  // so that remove never allocates
  } else {
    index = free_.back();
    free_.pop_back();
  }
  Entry& entry = entries_[index];
  entry.watcher = &watcher;
  entry.fd = fd;
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = std::uint64_t{entry.generation} << 32 | index;
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) {
    const int error = errno;
    entry.watcher = nullptr;
    free_.push_back(index);
    return fail(errno_error(error, "epoll_ctl", "connect"));
  }
  return Watch(this, index);
}

void Poller::remove(std::uint32_t index) noexcept {
  if (fork_guard_.in_forked_child()) return;  // the set is the parent's too
  Entry& entry = entries_[index];
  // Closing is not enough: a forked child may hold the same open file.
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, entry.fd, nullptr);
  entry.watcher = nullptr;
  ++entry.generation;
  free_.push_back(index);
}

int Poller::poll() noexcept {
  std::array<epoll_event, 64> events;
  const int count = ::epoll_wait(epoll_.get(), events.data(), static_cast<int>(events.size()), 0);
  for (int i = 0; i < count; ++i) {
    const std::uint64_t data = events[static_cast<std::size_t>(i)].data.u64;
    const Entry entry = entries_[static_cast<std::uint32_t>(data)];
    if (entry.watcher != nullptr && entry.generation == data >> 32) entry.watcher->on_readable(entry.fd);
  }
  return count > 0 ? count : 0;
}

}  // namespace fabric::shm
}  // namespace dtr::inline v0
