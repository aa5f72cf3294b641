// How much goes over a transport: operations and bytes by opcode, failures by code. Counted by each thread in a place
// of its own, so that a put of 8 bytes pays two plain additions, and summed up when somebody asks.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <vector>

#include "dtr/base/error.hpp"
#include "dtr/fabric/work_request.hpp"

namespace dtr::inline v0 {
namespace fabric {

inline constexpr std::size_t kOpcodes = static_cast<std::size_t>(Opcode::flush) + 1;
inline constexpr std::size_t kCodes = static_cast<std::size_t>(-static_cast<int>(Errc::stale_handle)) + 1;

struct TrafficTotals {
  std::array<std::uint64_t, kOpcodes> operations{};  ///< that a channel took, by Opcode
  std::array<std::uint64_t, kOpcodes> bytes{};       ///< of these: of payload, whether or not it got there
  std::array<std::uint64_t, kCodes> failures{};      ///< operations that did not end well, by -Errc, refused ones too
};

/// One transport's counts. Any thread; lives as long as a thread that counted, or its owner.
class TrafficMeter : public std::enable_shared_from_this<TrafficMeter> {
 public:
  /// Where a thread counts.
  class Place {
   public:
    [[nodiscard]] bool empty() const noexcept { return slot_ == nullptr; }

    [[gnu::always_inline]] void count(Opcode opcode, std::uint64_t operations, std::uint64_t bytes) const noexcept {
      const auto index = static_cast<std::size_t>(opcode);
      add(slot_->operations[index], operations);
      add(slot_->bytes[index], bytes);
    }

   private:
    friend class TrafficMeter;
    using Number = std::atomic<std::uint64_t>;

    struct alignas(64) Slot {
      std::array<Number, kOpcodes> operations{};
      std::array<Number, kOpcodes> bytes{};
      std::array<Number, kCodes> failures{};
    };

    Place(Slot* slot, bool shared) noexcept : slot_(slot), shared_(shared) {}

    [[gnu::always_inline]] void add(Number& number, std::uint64_t n) const noexcept {
      if (shared_) {
        number.fetch_add(n, std::memory_order_relaxed);
      } else {  // nobody else writes it
        number.store(number.load(std::memory_order_relaxed) + n, std::memory_order_relaxed);
      }
    }

    Slot* slot_;
    bool shared_;
  };

  TrafficMeter();

  void count(const WorkRequest& request) noexcept { count(request.opcode, 1, request.bytes()); }

  void count(Opcode opcode, std::uint64_t operations, std::uint64_t bytes) noexcept {
    mine().count(opcode, operations, bytes);
  }

  void count_failure(Errc code, std::uint64_t operations = 1) noexcept {
    const auto index = static_cast<std::size_t>(-static_cast<int>(code));
    if (index == 0 || index >= kCodes) return;
    const Place place = mine();
    place.add(place.slot_->failures[index], operations);
  }

  /// This thread's place if it counted here last; else it is empty, and count() finds one.
  [[nodiscard]] Place recent() const noexcept { return {recent_.meter == id_ ? recent_.slot : nullptr, false}; }

  [[nodiscard]] TrafficTotals totals() const;

  /// The transport is gone: threads forget their place when they next look for one.
  void retire() noexcept { retired_.store(true, std::memory_order_relaxed); }

 private:
  friend struct ThreadTraffic;
  using Slot = Place::Slot;

  /// The last transport this thread counted for, and its slot there.
  struct Recent {
    std::uint64_t meter = 0;
    Slot* slot = nullptr;
  };
  static thread_local constinit Recent recent_ [[gnu::tls_model("initial-exec")]];

  [[nodiscard]] Place mine() noexcept {
    const Place place = recent();
    return place.empty() ? find_or_take() : place;
  }
  [[nodiscard]] Place find_or_take() noexcept;
  void give_back(Slot& slot) noexcept;

  const std::uint64_t id_;  ///< never used twice in a process
  std::atomic<bool> retired_{false};
  mutable std::mutex mutex_;
  std::deque<Slot> slots_;
  std::vector<Slot*> free_;
  Slot common_{};  ///< of threads for which there was no memory
};

}  // namespace fabric
}  // namespace dtr::inline v0
