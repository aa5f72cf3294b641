// Counts requests down to their end and keeps the first failure.
#pragma once

#include <atomic>
#include <bit>
#include <cstdint>

#include "dtr/fabric/work_request.hpp"

namespace dtr::inline v0 {
namespace fabric {

/// One object serves any number of requests. The poster arms it, transports finish it, anyone looks.
/// It must live until done(); a continuation may destroy it.
class Completion {
 public:
  /// Runs once each time the last armed request has ended, on the thread that ended it. Must not block.
  using Continuation = void (*)(Completion&) noexcept;

  Completion() = default;
  explicit Completion(Continuation then) noexcept : then_(then) {}
  Completion(const Completion&) = delete;
  Completion& operator=(const Completion&) = delete;

  /// Expects `requests` more ends.
  void arm(std::uint32_t requests) noexcept { pending_.fetch_add(requests, std::memory_order_relaxed); }

  /// `requests` requests ended, all in the same way. After the last one this object may be gone.
  void finish(std::uint32_t requests, Status status) noexcept {
    if (!status.ok()) note_failure(status);
    const Continuation then = then_;
    if (pending_.fetch_sub(requests, std::memory_order_acq_rel) == requests && then != nullptr) then(*this);
  }

  /// A request has failed, and will be finished with the same status once that can be told.
  void note_failure(Status status) noexcept {
    std::uint64_t none = 0;
    failure_.compare_exchange_strong(none, std::bit_cast<std::uint64_t>(status), std::memory_order_relaxed);
  }

  [[nodiscard]] bool done() const noexcept { return pending_.load(std::memory_order_acquire) == 0; }
  [[nodiscard]] std::uint32_t pending() const noexcept { return pending_.load(std::memory_order_acquire); }

  /// ok, or the first failure so far.
  [[nodiscard]] Status status() const noexcept {
    const std::uint64_t failure = failure_.load(std::memory_order_acquire);
    return failure == 0 ? Status{} : std::bit_cast<Status>(failure);
  }

  /// Forgets a failure, for reuse. Only when done().
  void reset() noexcept { failure_.store(0, std::memory_order_relaxed); }

 private:
  std::atomic<std::uint32_t> pending_{0};
  std::atomic<std::uint64_t> failure_{0};  ///< a Status; its code is never 0 here
  Continuation then_ = nullptr;
};

}  // namespace fabric
}  // namespace dtr::inline v0
