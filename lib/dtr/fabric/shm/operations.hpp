// Requests that could not end inside post: they wait for a fence, for room in the ring, or for the target's answer.
#pragma once

#include <array>
#include <cstdint>

#include "dtr/base/deadline.hpp"
#include "dtr/fabric/completion.hpp"
#include "dtr/fabric/work_request.hpp"

namespace dtr::inline v0 {
namespace fabric::shm {

struct Operation {
  enum class Phase : std::uint8_t {
    ended,     ///< the entry is free once all older ones are
    held,      ///< behind a fence
    copying,   ///< by the caller's means, piece by piece
    sending,   ///< frames still have to go into the ring
    awaiting,  ///< the target has all it needs
  };

  WorkRequest request{};
  Deadline::Clock::time_point deadline{};
  std::uint64_t moved = 0;  ///< bytes of put that left, or of get that came
  std::uint64_t asked = 0;  ///< where a get frame started
  std::uint32_t id = 0;
  Phase phase = Phase::ended;
  bool in_ring = false;  ///< something of it is on its way to the target

  [[nodiscard]] bool open() const noexcept { return phase != Phase::ended; }
  [[nodiscard]] bool fenced() const noexcept {
    return (request.flags & WorkRequest::kFence) != 0 || request.opcode == Opcode::flush;
  }
  [[nodiscard]] std::byte* local() const noexcept { return request.local->data() + request.local_offset; }
};

/// Oldest first. Fixed size: nothing is allocated per request.
class OperationTable {
 public:
  static constexpr std::uint32_t kCapacity = 64;

  [[nodiscard]] bool full() const noexcept { return back_ - front_ == kCapacity; }
  [[nodiscard]] std::uint32_t front() const noexcept { return front_; }
  [[nodiscard]] std::uint32_t back() const noexcept { return back_; }
  [[nodiscard]] Operation& operator[](std::uint32_t id) noexcept { return entries_[id % kCapacity]; }
  [[nodiscard]] const Operation& operator[](std::uint32_t id) const noexcept { return entries_[id % kCapacity]; }

  Operation& add(const WorkRequest& request, Deadline deadline) noexcept {
    Operation& operation = (*this)[back_];
    operation =
        Operation{.request = request, .deadline = deadline.at(), .id = back_++, .phase = Operation::Phase::held};
    return operation;
  }

  /// The open operation of this number, or nullptr: it ended before its answer came.
  [[nodiscard]] Operation* find(std::uint32_t id) noexcept {
    Operation& operation = (*this)[id];
    return operation.id == id && operation.open() ? &operation : nullptr;
  }

  void drop_ended() noexcept {
    while (front_ != back_ && !(*this)[front_].open()) ++front_;
  }

 private:
  std::array<Operation, kCapacity> entries_{};
  std::uint32_t front_ = 0;
  std::uint32_t back_ = 0;
};

/// Ends collected under a lock, told without it: a continuation may post again.
class Ended {
 public:
  Ended() = default;
  ~Ended() { tell(); }
  Ended(const Ended&) = delete;
  Ended& operator=(const Ended&) = delete;

  void add(Completion* completion, Status status) noexcept { entries_[count_++] = {completion, status}; }
  [[nodiscard]] std::uint32_t count() const noexcept { return count_; }
  [[nodiscard]] bool full() const noexcept { return count_ == entries_.size(); }

  void tell() noexcept {
    const std::uint32_t count = count_;
    count_ = 0;
    for (std::uint32_t i = 0; i < count; ++i) {
      if (entries_[i].completion != nullptr) entries_[i].completion->finish(1, entries_[i].status);
    }
  }

 private:
  struct Entry {
    Completion* completion = nullptr;
    Status status{};
  };
  std::array<Entry, OperationTable::kCapacity> entries_{};
  std::uint32_t count_ = 0;
};

}  // namespace fabric::shm
}  // namespace dtr::inline v0
