// The sends and recvs of a Messenger: a table whose entries stay where they are, and lists through them.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "dtr/fabric/completion.hpp"
#include "dtr/messaging/detail/counts.hpp"
#include "dtr/messaging/messenger.hpp"

namespace dtr::inline v0 {
namespace messaging {

enum class Stage : std::uint8_t {
  free,
  queued,   ///< send: no room to tell the receiver
  flying,   ///< send, eager: the fabric has a copy and not yet passed it on
  offered,  ///< send: the receiver knows, and has not asked or reads it
  posted,   ///< recv: no message yet
  moving,   ///< pieces are on their way
  ended,
};

struct Operation {
  // Written by who makes or ends the operation, with the Messenger's lock; read by any thread.
  std::atomic<std::uint32_t> generation{0};  ///< odd while in use
  std::atomic<bool> ended{false};
  std::atomic<bool> carried{false};  ///< send, eager: over as soon as its Completion is
  std::atomic<Deadline::Clock::time_point> deadline{};

  // With the lock.
  Stage stage = Stage::free;
  bool is_send = false;
  bool any_rank = false;
  std::uint32_t slot = 0;            ///< its own number
  std::uint32_t pins = 0;            ///< copies from or to `memory` under way
  Carrier carrier = Carrier::eager;  ///< recv: how its message comes
  bool unwanted = false;             ///< somebody waits for the pins to end it
  std::uint32_t lease = 0;           ///< send: its place among the leases, from 1; 0 = none
  fabric::PeerId peer = 0;           ///< any_rank: known once it moves
  std::uint64_t tag = 0;             ///< recv: as asked
  std::uint64_t mask = 0;
  std::uint64_t order = 0;  ///< recv: counts the calls
  std::byte* memory = nullptr;
  std::uint64_t bytes = 0;
  std::uint64_t partner = 0;  ///< recv, moving: the sender's operation
  Message message{};          ///< the outcome
  Errc code = Errc::ok;
  std::string words{};              ///< why not
  fabric::Completion completion{};  ///< of the request that carries the payload or the offer

  Operation* next = nullptr;  ///< in the list of recvs or sends
  Operation* previous = nullptr;
};

/// The fabric reads nothing any more of what `put` was armed for: a request that was cancelled half way may be over,
/// and its memory still be on its way out.
[[nodiscard]] inline bool at_rest(const fabric::Completion& put) noexcept {
  return put.done() && put.status().quiesced;
}

/// Operations in order; one is in one list at most.
class OperationList {
 public:
  [[nodiscard]] bool empty() const noexcept { return first_ == nullptr; }
  [[nodiscard]] Operation* first() const noexcept { return first_; }

  void push(Operation& operation) noexcept {
    operation.next = nullptr;
    operation.previous = last_;
    (last_ == nullptr ? first_ : last_->next) = &operation;
    last_ = &operation;
  }
  void push_front(Operation& operation) noexcept {
    operation.previous = nullptr;
    operation.next = first_;
    (first_ == nullptr ? last_ : first_->previous) = &operation;
    first_ = &operation;
  }
  void remove(Operation& operation) noexcept {
    (operation.previous == nullptr ? first_ : operation.previous->next) = operation.next;
    (operation.next == nullptr ? last_ : operation.next->previous) = operation.previous;
    operation.next = operation.previous = nullptr;
  }

 private:
  Operation* first_ = nullptr;
  Operation* last_ = nullptr;
};

/// Making and freeing: with the Messenger's lock. Looking up: any thread.
class OperationTable {
 public:
  static constexpr std::uint32_t kBlock = 256;
  static constexpr std::uint32_t kBlocks = 4096;

  ~OperationTable() {
    for (auto& block : blocks_) delete[] block.load(std::memory_order_relaxed);
  }
  OperationTable() = default;
  OperationTable(const OperationTable&) = delete;
  OperationTable& operator=(const OperationTable&) = delete;

  /// A fresh one; nullptr = all are in use. Throws std::bad_alloc.
  [[nodiscard]] Operation* make() {
    if (free_.empty()) {
      if (size_ == kBlock * kBlocks) return nullptr;
      free_.reserve(size_ + kBlock);
      auto block = std::make_unique<Operation[]>(kBlock);
      for (std::uint32_t i = kBlock; i-- > 0;) {
        block[i].slot = size_ + i;
        free_.push_back(&block[i]);
      }
      blocks_[size_ / kBlock].store(block.release(), std::memory_order_release);
      size_ += kBlock;
    }
    Operation* operation = free_.back();
    free_.pop_back();
    operation->ended.store(false, std::memory_order_relaxed);
    count(operation->generation);
    return operation;
  }

  /// Handles of it are stale from now on.
  static void outdate(Operation& operation) noexcept {
    count(operation.generation);
    operation.stage = Stage::free;
  }
  /// May be made again. It is outdated, and its Completion done.
  void free(Operation& operation) noexcept {
    operation.words.clear();
    operation.completion.reset();
    free_.push_back(&operation);  // there is room for all
  }

  [[nodiscard]] Operation* at(std::uint32_t slot) const noexcept {
    if (slot >= kBlock * kBlocks) return nullptr;
    Operation* block = blocks_[slot / kBlock].load(std::memory_order_acquire);
    return block == nullptr ? nullptr : block + slot % kBlock;
  }

  /// The operation of a handle; nullptr = stale.
  [[nodiscard]] Operation* find(MessageHandle handle) const noexcept {
    Operation* operation = at(handle.slot);
    if (operation == nullptr || (handle.generation & 1U) == 0) return nullptr;
    return operation->generation.load(std::memory_order_acquire) == handle.generation ? operation : nullptr;
  }

  [[nodiscard]] std::uint32_t size() const noexcept { return size_; }

 private:
  static void count(std::atomic<std::uint32_t>& generation) noexcept {  // with the lock: nobody else writes it
    generation.store(generation.load(std::memory_order_relaxed) + 1, std::memory_order_release);
  }

  std::array<std::atomic<Operation*>, kBlocks> blocks_{};
  std::vector<Operation*> free_;
  std::uint32_t size_ = 0;
};

[[nodiscard]] inline MessageHandle handle_of(const Operation& operation) noexcept {
  return {.slot = operation.slot, .generation = operation.generation.load(std::memory_order_relaxed)};
}

/// As a number for the wire.
[[nodiscard]] inline std::uint64_t id_of(const Operation& operation) noexcept {
  return std::uint64_t{operation.generation.load(std::memory_order_relaxed)} << 32 | operation.slot;
}
[[nodiscard]] inline MessageHandle handle_of(std::uint64_t id) noexcept {
  return {.slot = static_cast<std::uint32_t>(id), .generation = static_cast<std::uint32_t>(id >> 32)};
}

}  // namespace messaging
}  // namespace dtr::inline v0
