// Registered copies of small messages on their way out, shared by all links.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "dtr/fabric/spin_lock.hpp"
#include "dtr/fabric/verbs/nic.hpp"

namespace dtr::inline v0 {
namespace fabric::verbs {

/// take, give and the look-ups: any thread. grow: progress thread.
class MessagePool {
 public:
  static constexpr std::uint32_t kNone = 0xFFFFFFFF;

  MessagePool(const std::vector<std::unique_ptr<Nic>>& nics, std::size_t message_bytes, std::size_t most_bytes);

  /// A free buffer, or kNone: progress will grow the pool, if it may.
  [[nodiscard]] std::uint32_t take() noexcept;
  void give(std::uint32_t number) noexcept;

  [[nodiscard]] std::byte* data(std::uint32_t number) const noexcept {
    return chunks_[number / kPerChunk].memory.get() + (number % kPerChunk) * bytes_;
  }
  [[nodiscard]] std::uint32_t local_key(std::uint32_t number, std::size_t nic) const noexcept {
    return chunks_[number / kPerChunk].mrs[nic]->lkey;
  }
  [[nodiscard]] std::size_t message_bytes() const noexcept { return bytes_; }

  [[nodiscard]] bool wants_to_grow() const noexcept { return hungry_.load(std::memory_order_relaxed); }
  [[nodiscard]] bool has_free() noexcept;
  /// Errors: resource_exhausted.
  [[nodiscard]] Result<void> grow();

 private:
  static constexpr std::uint32_t kPerChunk = 64;
  struct Chunk {
    std::unique_ptr<std::byte[]> memory;
    std::array<MemoryRegion, RemoteKey::kMaxRails> mrs{};
  };

  const std::vector<std::unique_ptr<Nic>>& nics_;
  const std::size_t bytes_;
  const std::size_t most_chunks_;
  std::vector<Chunk> chunks_;  ///< reserved at the start: an entry never moves
  SpinLock lock_;
  std::vector<std::uint32_t> free_;
  std::atomic<bool> hungry_{false};
};

}  // namespace fabric::verbs
}  // namespace dtr::inline v0
