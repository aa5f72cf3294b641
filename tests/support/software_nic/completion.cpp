#include "support/software_nic/completion.hpp"

#include <algorithm>
#include <cerrno>
#include <chrono>

namespace dtr::software_nic {

namespace {

constexpr std::chrono::seconds kPatience{20};

}  // namespace

CompletionChannel::CompletionChannel(ibv_context& owner) : ibv_comp_channel{} {
  context = &owner;
  fd = descriptor_.fd();
}

void CompletionChannel::post(CompletionQueue& queue) {
  {
    const std::lock_guard lock(mutex_);
    events_.push_back(&queue);
  }
  descriptor_.signal();
}

int CompletionChannel::take(ibv_cq** queue, void** user) noexcept {
  while (true) {
    if (const int error = descriptor_.wait(); error != 0) return error;
    const std::lock_guard lock(mutex_);
    if (events_.empty()) {  // it was of a queue that has gone
      if (descriptor_.blocking()) continue;
      return EAGAIN;
    }
    CompletionQueue* first = events_.front();
    events_.pop_front();
    first->event_taken();
    *queue = first;
    *user = first->cq_context;
    return 0;
  }
}

void CompletionChannel::forget(const CompletionQueue& queue) noexcept {
  const std::lock_guard lock(mutex_);
  std::erase(events_, &queue);
}

void CompletionChannel::join() noexcept {
  const std::lock_guard lock(mutex_);
  ++refcnt;
}

void CompletionChannel::leave() noexcept {
  const std::lock_guard lock(mutex_);
  --refcnt;
}

bool CompletionChannel::used() noexcept {
  const std::lock_guard lock(mutex_);
  return refcnt > 0;
}

CompletionQueue::CompletionQueue(ibv_context& owner, int entries, void* user, CompletionChannel* events)
    : ibv_cq{}, ring_(static_cast<std::size_t>(entries)) {
  context = &owner;
  channel = events;
  cq_context = user;
  cqe = entries;
}

bool CompletionQueue::push(const Entry& entry, bool& first) noexcept {
  bool tell = false;
  {
    const std::lock_guard lock(mutex_);
    const std::size_t count = count_.load(std::memory_order_relaxed);
    first = false;
    if (broken_ || count == ring_.size()) {
      first = !broken_;
      broken_ = true;
      return false;
    }
    ring_[(first_ + count) % ring_.size()] = entry;
    count_.store(count + 1, std::memory_order_release);
    const bool urgent = entry.solicited || entry.completion.status != IBV_WC_SUCCESS;
    tell = armed_ == Armed::any || (armed_ == Armed::solicited && urgent);
    if (tell) armed_ = Armed::no;
  }
  if (tell && channel != nullptr) static_cast<CompletionChannel*>(channel)->post(*this);
  return true;
}

int CompletionQueue::poll(int entries, ibv_wc* completions) noexcept {
  if (count_.load(std::memory_order_acquire) == 0) return 0;
  const std::lock_guard lock(mutex_);
  std::size_t count = count_.load(std::memory_order_relaxed);
  int polled = 0;
  for (; polled < entries && count > 0; ++polled, --count) {
    const Entry& entry = ring_[first_];
    completions[polled] = entry.completion;
    if (entry.slots != nullptr) entry.slots->store(entry.free_up_to, std::memory_order_release);
    first_ = first_ + 1 == ring_.size() ? 0 : first_ + 1;
  }
  count_.store(count, std::memory_order_release);
  return polled;
}

void CompletionQueue::arm(bool solicited_only) noexcept {
  const std::lock_guard lock(mutex_);
  if (!solicited_only) {
    armed_ = Armed::any;
  } else if (armed_ == Armed::no) {
    armed_ = Armed::solicited;
  }
}

void CompletionQueue::purge(const void* queue_pair) noexcept {
  const std::lock_guard lock(mutex_);
  const std::size_t count = count_.load(std::memory_order_relaxed);
  std::size_t kept = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const std::size_t from = (first_ + i) % ring_.size();
    if (ring_[from].queue_pair == queue_pair) continue;
    const std::size_t to = (first_ + kept++) % ring_.size();
    if (from != to) ring_[to] = ring_[from];
  }
  count_.store(kept, std::memory_order_release);
}

void CompletionQueue::event_taken() noexcept {
  const std::lock_guard lock(mutex_);
  ++taken_;
}

void CompletionQueue::acknowledge(unsigned count) noexcept {
  const std::lock_guard lock(mutex_);
  taken_ -= std::min(count, taken_);
  acknowledged_.notify_all();
}

bool CompletionQueue::quiet() noexcept {
  std::unique_lock lock(mutex_);
  return acknowledged_.wait_for(lock, kPatience, [&] { return taken_ == 0; });
}

}  // namespace dtr::software_nic
