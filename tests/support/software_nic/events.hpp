// What a program reads from descriptors: asynchronous events and completion events.
#pragma once

#include <condition_variable>
#include <deque>
#include <mutex>

#include <infiniband/verbs.h>

namespace dtr::software_nic {

/// A descriptor that is readable once for every entry. Blocks in wait() unless the reader made it non-blocking.
class EventDescriptor {
 public:
  EventDescriptor();  ///< fd() is -1, with errno set, if there are no more
  ~EventDescriptor();
  EventDescriptor(const EventDescriptor&) = delete;
  EventDescriptor& operator=(const EventDescriptor&) = delete;

  [[nodiscard]] int fd() const noexcept { return fd_; }
  void signal() noexcept;
  /// Takes one signal. 0 or an errno: EAGAIN.
  [[nodiscard]] int wait() noexcept;
  [[nodiscard]] bool blocking() const noexcept;

 private:
  int fd_;
};

/// The asynchronous events of one context. Any thread.
class AsyncEvents {
 public:
  [[nodiscard]] int fd() const noexcept { return descriptor_.fd(); }
  void post(ibv_async_event event);
  [[nodiscard]] int take(ibv_async_event& event) noexcept;
  void acknowledge(const ibv_async_event& event) noexcept;
  /// Forgets what was not taken about an object that goes, and waits until what was taken is acknowledged; false if
  /// that does not happen for long.
  [[nodiscard]] bool forget(const void* object) noexcept;

 private:
  EventDescriptor descriptor_;
  std::mutex mutex_;
  std::condition_variable acknowledged_;
  std::deque<ibv_async_event> events_;
  std::deque<const void*> taken_;  ///< objects of events that are not acknowledged
};

}  // namespace dtr::software_nic
