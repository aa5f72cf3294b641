// The open requests towards one peer: a ring in the order of posting. Guarded by the link's lock.
#pragma once

#include <cstdint>
#include <vector>

#include "dtr/fabric/verbs/hub.hpp"
#include "dtr/fabric/work_request.hpp"

namespace dtr::inline v0 {
namespace fabric::verbs {

struct Operation {
  WorkRequest request{};
  std::int64_t deadline = kNever;
  std::uint64_t started = 0;                  ///< bytes handed to rails
  std::uint32_t flights = 0;                  ///< its work requests on rails, or waiting to be sent again
  std::uint32_t buffer = MessagePool::kNone;  ///< copy of a message
  bool told = true;                           ///< its completion knows
  bool posted = false;                        ///< all of it has been handed to rails
  bool touched = false;                       ///< some of it was on a rail
  bool asking = false;                        ///< the target's CPU owes a result
  bool notify_late = false;                   ///< the notification follows once all data are there
  bool holds = false;                         ///< counted in the local region's uses
  bool lingers = false;                       ///< ended, and something of it is still on a rail

  [[nodiscard]] bool settled() const noexcept { return told && flights == 0 && !asking; }
  /// Starts only when all earlier ones have finished.
  [[nodiscard]] bool is_held() const noexcept {
    return (request.flags & WorkRequest::kFence) != 0 || request.opcode == Opcode::flush;
  }
};

/// Positions: tail <= untold <= head. [tail, untold) have been told and still have something on a rail.
class OperationRing {
 public:
  /// `depth` is a power of two.
  explicit OperationRing(std::uint32_t depth) : mask_(depth - 1), slots_(depth) {}

  [[nodiscard]] bool full() const noexcept { return head_ - tail_ > mask_; }
  [[nodiscard]] bool empty() const noexcept { return head_ == tail_; }
  [[nodiscard]] std::uint64_t head() const noexcept { return head_; }
  [[nodiscard]] std::uint64_t tail() const noexcept { return tail_; }
  [[nodiscard]] Operation& at(std::uint64_t position) noexcept { return slots_[position & mask_]; }
  /// By the low bits of a position that is open.
  [[nodiscard]] Operation& by_number(std::uint32_t number) noexcept { return slots_[number & mask_]; }
  [[nodiscard]] bool knows(std::uint32_t number) const noexcept {
    const std::uint32_t behind = number - static_cast<std::uint32_t>(tail_);
    return behind < head_ - tail_;
  }

  Operation& push(const WorkRequest& request, std::int64_t deadline) noexcept {
    Operation& operation = at(head_++);
    operation.request = request;  // member by member: a whole one would be put together elsewhere and copied
    operation.deadline = deadline;
    operation.started = 0;
    operation.flights = 0;
    operation.buffer = MessagePool::kNone;
    operation.told = operation.posted = operation.touched = operation.asking = false;
    operation.notify_late = operation.holds = operation.lingers = false;
    return operation;
  }

  /// The oldest that has not been told; head() if there is none.
  [[nodiscard]] std::uint64_t first_untold() noexcept {
    while (untold_ != head_ && at(untold_).told) ++untold_;
    return untold_;
  }
  void drop_settled() noexcept {
    while (tail_ != head_ && at(tail_).settled()) ++tail_;
    if (untold_ < tail_) untold_ = tail_;
  }

 private:
  std::uint64_t mask_;
  std::vector<Operation> slots_;
  std::uint64_t tail_ = 0;
  std::uint64_t untold_ = 0;
  std::uint64_t head_ = 0;
};

/// A queue with fixed room: whoever pushes knows that there is some.
template <class T>
class FixedQueue {
 public:
  explicit FixedQueue(std::size_t room) : items_(room) {}
  [[nodiscard]] bool empty() const noexcept { return head_ == tail_; }
  [[nodiscard]] bool full() const noexcept { return size() == items_.size(); }
  [[nodiscard]] std::size_t size() const noexcept { return head_ - tail_; }
  [[nodiscard]] T& front() noexcept { return items_[tail_ % items_.size()]; }
  void push(const T& item) noexcept { items_[head_++ % items_.size()] = item; }
  void pop() noexcept { ++tail_; }
  /// Keeps, in order, what `wanted` says.
  template <class Wanted>
  void keep_if(Wanted&& wanted) noexcept {
    std::size_t to = tail_;
    for (std::size_t from = tail_; from != head_; ++from) {
      if (wanted(items_[from % items_.size()])) items_[to++ % items_.size()] = items_[from % items_.size()];
    }
    head_ = to;
  }

 private:
  std::vector<T> items_;
  std::size_t tail_ = 0;
  std::size_t head_ = 0;
};

}  // namespace fabric::verbs
}  // namespace dtr::inline v0
