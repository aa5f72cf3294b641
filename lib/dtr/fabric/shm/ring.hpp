// One producer, one consumer, variable frames in 64-byte slots. A frame's first word publishes it, so that a small
// message travels in one cache line; the word after a frame is zero until the next frame is published.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>

#include "dtr/fabric/shm/race_detector.hpp"

namespace dtr::inline v0 {
namespace fabric::shm {

inline constexpr std::size_t kSlot = 64;

/// What both ends share beside the slots.
struct RingHeader {
  alignas(64) std::atomic<std::uint64_t> head{0};     ///< slots consumed so far; written by the consumer
  std::uint64_t tag = 0;                              ///< names the ring to race detectors, else unused
  alignas(64) std::atomic<std::uint32_t> waiting{0};  ///< set by a producer without room, cleared by the consumer
};
static_assert(sizeof(RingHeader) == 128);

/// A ring in memory. `slots` is a power of two.
struct RingMemory {
  RingHeader* header = nullptr;
  std::byte* data = nullptr;
  std::uint64_t slots = 0;

  [[nodiscard]] std::atomic_ref<std::uint64_t> word(std::uint64_t slot) const noexcept {
    return std::atomic_ref<std::uint64_t>(*reinterpret_cast<std::uint64_t*>(data + slot * kSlot));
  }
  /// Largest frame: it must fit although the end of the ring may cost as much again in padding.
  [[nodiscard]] std::size_t max_frame() const noexcept { return slots / 4 * kSlot - sizeof(std::uint64_t); }
};

/// The first word of a frame. Never zero.
struct FrameWord {
  std::uint8_t type = 0;  ///< never 0; kPadding is the ring's own
  std::uint8_t port = 0;
  std::uint16_t sequence = 0;  ///< low bits of the slot number: tells a frame from leftovers
  std::uint32_t bytes = 0;     ///< that follow the word

  static constexpr std::uint8_t kPadding = 0xFF;

  [[nodiscard]] constexpr std::uint64_t pack() const noexcept {
    return static_cast<std::uint64_t>(type) | static_cast<std::uint64_t>(port) << 8 |
           static_cast<std::uint64_t>(sequence) << 16 | static_cast<std::uint64_t>(bytes) << 32;
  }
  [[nodiscard]] static constexpr FrameWord unpack(std::uint64_t word) noexcept {
    return {.type = static_cast<std::uint8_t>(word),
            .port = static_cast<std::uint8_t>(word >> 8),
            .sequence = static_cast<std::uint16_t>(word >> 16),
            .bytes = static_cast<std::uint32_t>(word >> 32)};
  }
  [[nodiscard]] static constexpr std::uint64_t slots(std::uint64_t bytes) noexcept {
    return (bytes + sizeof(std::uint64_t) + kSlot - 1) / kSlot;
  }
};

class RingProducer {
 public:
  RingProducer() = default;
  explicit RingProducer(const RingMemory& ring) noexcept : ring_(ring) {}

  /// Room for one frame, contiguous and 8-byte aligned; nullptr = no room now. bytes <= max_frame(). Nothing is
  /// visible before commit, and a second reserve replaces the first.
  [[nodiscard]] std::byte* reserve(std::uint32_t bytes) noexcept {
    const std::uint64_t at = tail_ & (ring_.slots - 1);
    slots_ = FrameWord::slots(bytes);
    padding_ = at + slots_ > ring_.slots ? ring_.slots - at : 0;
    bytes_ = bytes;
    if (!has_room(padding_ + slots_ + 1)) return nullptr;  // and the zero word behind the frame
    return ring_.data + ((tail_ + padding_) & (ring_.slots - 1)) * kSlot + sizeof(std::uint64_t);
  }

  void commit(std::uint8_t type, std::uint8_t port) noexcept {
    const std::uint64_t start = tail_ + padding_;
    ring_.word((start + slots_) & (ring_.slots - 1)).store(0, std::memory_order_relaxed);
    order_before(ring_.header->tag);
    const FrameWord frame{.type = type, .port = port, .sequence = static_cast<std::uint16_t>(start), .bytes = bytes_};
    ring_.word(start & (ring_.slots - 1)).store(frame.pack(), std::memory_order_release);
    if (padding_ > 0) {
      const FrameWord padding{.type = FrameWord::kPadding,
                              .sequence = static_cast<std::uint16_t>(tail_),
                              .bytes = static_cast<std::uint32_t>(padding_ * kSlot - sizeof(std::uint64_t))};
      ring_.word(tail_ & (ring_.slots - 1)).store(padding.pack(), std::memory_order_release);
    }
    tail_ = start + slots_;
    // The zero word behind the next frame goes here. Owned already, its line does not delay that frame.
    __builtin_prefetch(ring_.data + ((tail_ + 1) & (ring_.slots - 1)) * kSlot, 1);
  }

  /// Would a frame of `bytes` find room, whatever the padding?
  [[nodiscard]] bool has_room_for(std::uint32_t bytes) noexcept { return has_room(2 * FrameWord::slots(bytes) + 1); }

  /// Asks the consumer to ring once there is room again. Look for room once more before sleeping on it.
  void ask_for_room() noexcept { ring_.header->waiting.exchange(1, std::memory_order_acq_rel); }

  /// False: the consumer wrote nonsense.
  [[nodiscard]] bool sane() const noexcept { return sane_; }

  [[nodiscard]] const RingMemory& memory() const noexcept { return ring_; }

 private:
  [[nodiscard]] bool has_room(std::uint64_t slots) noexcept {
    if (ring_.slots - (tail_ - head_) >= slots) return true;
    const std::uint64_t head = ring_.header->head.load(std::memory_order_acquire);
    order_after(ring_.header->tag + 1);
    if (tail_ - head > ring_.slots) {
      sane_ = false;
      return false;
    }
    head_ = head;
    return ring_.slots - (tail_ - head_) >= slots;
  }

  RingMemory ring_;
  std::uint64_t tail_ = 0;
  std::uint64_t head_ = 0;  ///< as last seen
  std::uint64_t slots_ = 0;
  std::uint64_t padding_ = 0;
  std::uint32_t bytes_ = 0;
  bool sane_ = true;
};

class RingConsumer {
 public:
  enum class Look : std::uint8_t { nothing, frame, malformed };

  struct Frame {
    std::uint8_t type = 0;
    std::uint8_t port = 0;
    std::span<const std::byte> bytes{};
  };

  RingConsumer() = default;
  explicit RingConsumer(const RingMemory& ring) noexcept : ring_(ring) {}

  [[nodiscard]] bool empty() const noexcept {
    return ring_.word(head_ & (ring_.slots - 1)).load(std::memory_order_acquire) == 0;
  }

  /// The next frame, read in place; it stays there until pop and release.
  [[nodiscard]] Look look(Frame& frame) noexcept {
    while (true) {
      const std::uint64_t at = head_ & (ring_.slots - 1);
      const std::uint64_t value = ring_.word(at).load(std::memory_order_acquire);
      if (value == 0) return Look::nothing;
      order_after(ring_.header->tag);
      const FrameWord word = FrameWord::unpack(value);
      slots_ = FrameWord::slots(word.bytes);
      if (word.sequence != static_cast<std::uint16_t>(head_) || slots_ > ring_.slots - at) return Look::malformed;
      if (word.type != FrameWord::kPadding) {
        frame = {word.type, word.port, {ring_.data + at * kSlot + sizeof(std::uint64_t), word.bytes}};
        return Look::frame;
      }
      if (at + slots_ != ring_.slots) return Look::malformed;  // so that paddings cannot follow each other for ever
      pop();
    }
  }

  void pop() noexcept { head_ += slots_; }

  /// Gives the consumed slots back once a quarter of the ring has come together.
  void release_some() noexcept {
    if (head_ - released_ >= ring_.slots / 4) release();
  }
  /// Gives all consumed slots back. True if there were any.
  bool release() noexcept {
    if (head_ == released_) return false;
    order_before(ring_.header->tag + 1);
    ring_.header->head.store(head_, std::memory_order_release);
    released_ = head_;
    return true;
  }

  /// Does the producer wait for room? Call after release. `barriers`: its heavy barrier reaches us.
  [[nodiscard]] bool producer_waits(bool barriers) noexcept {
    if (barriers) {
      std::atomic_signal_fence(std::memory_order_seq_cst);
      if (ring_.header->waiting.load(std::memory_order_relaxed) == 0) return false;
    } else if (ring_.header->waiting.fetch_add(0, std::memory_order_acq_rel) == 0) {
      return false;
    }
    return ring_.header->waiting.exchange(0, std::memory_order_acq_rel) != 0;
  }

 private:
  RingMemory ring_;
  std::uint64_t head_ = 0;
  std::uint64_t released_ = 0;
  std::uint64_t slots_ = 0;
};

}  // namespace fabric::shm
}  // namespace dtr::inline v0
