// Completion queues and completion channels.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <vector>

#include <infiniband/verbs.h>

#include "support/software_nic/events.hpp"

namespace dtr::software_nic {

class CompletionQueue;

/// Any thread.
class CompletionChannel : public ibv_comp_channel {
 public:
  explicit CompletionChannel(ibv_context& owner);

  void post(CompletionQueue& queue);
  [[nodiscard]] int take(ibv_cq** queue, void** user) noexcept;
  /// Events that nobody has taken go with the queue.
  void forget(const CompletionQueue& queue) noexcept;

  void join() noexcept;
  void leave() noexcept;
  [[nodiscard]] bool used() noexcept;

 private:
  EventDescriptor descriptor_;
  std::mutex mutex_;
  std::deque<CompletionQueue*> events_;
};

/// Any thread.
class CompletionQueue : public ibv_cq {
 public:
  CompletionQueue(ibv_context& owner, int entries, void* user, CompletionChannel* events);

  struct Entry {
    ibv_wc completion{};
    const void* queue_pair = nullptr;
    /// Of a send queue: its slots up to here are free once this entry has been polled.
    std::atomic<std::uint64_t>* slots = nullptr;
    std::uint64_t free_up_to = 0;
    bool solicited = false;
  };
  /// False: there was no room, the queue is broken from now on. `first` tells whether it was whole until now.
  [[nodiscard]] bool push(const Entry& entry, bool& first) noexcept;
  [[nodiscard]] int poll(int entries, ibv_wc* completions) noexcept;
  void arm(bool solicited_only) noexcept;
  /// Forgets the entries of a queue pair that goes.
  void purge(const void* queue_pair) noexcept;

  void attach() noexcept { users_.fetch_add(1, std::memory_order_relaxed); }
  void detach() noexcept { users_.fetch_sub(1, std::memory_order_relaxed); }
  [[nodiscard]] bool used() const noexcept { return users_.load(std::memory_order_relaxed) > 0; }

  void event_taken() noexcept;
  void acknowledge(unsigned count) noexcept;
  /// Waits until all events taken are acknowledged; false if that does not happen for long.
  [[nodiscard]] bool quiet() noexcept;

 private:
  enum class Armed : std::uint8_t { no, any, solicited };

  std::mutex mutex_;
  std::condition_variable acknowledged_;
  std::vector<Entry> ring_;
  std::size_t first_ = 0;
  std::atomic<std::size_t> count_{0};  ///< changed under the lock; read without by pollers of an empty queue
  bool broken_ = false;
  Armed armed_ = Armed::no;
  std::atomic<int> users_{0};
  unsigned taken_ = 0;
};

}  // namespace dtr::software_nic
