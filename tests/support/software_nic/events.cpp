#include "support/software_nic/events.hpp"

#include <algorithm>
#include <cerrno>
#include <chrono>

#include <fcntl.h>
#include <sys/eventfd.h>
#include <unistd.h>

namespace dtr::software_nic {

namespace {

/// A real library waits for ever; a test wants to hear of it.
constexpr std::chrono::seconds kPatience{20};

/// What an event is about; nullptr for ports and devices.
const void* object_of(const ibv_async_event& event) noexcept {
  switch (event.event_type) {
    case IBV_EVENT_CQ_ERR:
      return event.element.cq;
    case IBV_EVENT_QP_FATAL:
    case IBV_EVENT_QP_REQ_ERR:
    case IBV_EVENT_QP_ACCESS_ERR:
    case IBV_EVENT_QP_LAST_WQE_REACHED:
      return event.element.qp;
    default:
      return nullptr;
  }
}

}  // namespace

EventDescriptor::EventDescriptor() : fd_(::eventfd(0, EFD_CLOEXEC | EFD_SEMAPHORE)) {}

EventDescriptor::~EventDescriptor() {
  if (fd_ >= 0) ::close(fd_);
}

void EventDescriptor::signal() noexcept {
  const std::uint64_t one = 1;
  static_cast<void>(!::write(fd_, &one, sizeof one));
}

int EventDescriptor::wait() noexcept {
  std::uint64_t one = 0;
  while (::read(fd_, &one, sizeof one) < 0) {
    if (errno != EINTR) return errno;
  }
  return 0;
}

bool EventDescriptor::blocking() const noexcept { return (::fcntl(fd_, F_GETFL) & O_NONBLOCK) == 0; }

void AsyncEvents::post(ibv_async_event event) {
  {
    const std::lock_guard lock(mutex_);
    events_.push_back(event);
  }
  descriptor_.signal();
}

int AsyncEvents::take(ibv_async_event& event) noexcept {
  while (true) {
    if (const int error = descriptor_.wait(); error != 0) return error;
    const std::lock_guard lock(mutex_);
    if (events_.empty()) {  // it was about an object that has gone
      if (descriptor_.blocking()) continue;
      return EAGAIN;
    }
    event = events_.front();
    events_.pop_front();
    if (const void* object = object_of(event); object != nullptr) taken_.push_back(object);
    return 0;
  }
}

void AsyncEvents::acknowledge(const ibv_async_event& event) noexcept {
  const std::lock_guard lock(mutex_);
  const auto found = std::find(taken_.begin(), taken_.end(), object_of(event));
  if (found == taken_.end()) return;
  taken_.erase(found);
  acknowledged_.notify_all();
}

bool AsyncEvents::forget(const void* object) noexcept {
  std::unique_lock lock(mutex_);
  std::erase_if(events_, [&](const ibv_async_event& event) { return object_of(event) == object; });
  return acknowledged_.wait_for(lock, kPatience,
                                [&] { return std::find(taken_.begin(), taken_.end(), object) == taken_.end(); });
}

}  // namespace dtr::software_nic
