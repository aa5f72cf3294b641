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

/// take, give and the look-ups: any thread. grow and relieve: progress thread.
class MessagePool {
 public:
  static constexpr std::uint32_t kNone = 0xFFFFFFFF;

  MessagePool(const std::vector<std::unique_ptr<Nic>>& nics, std::size_t message_bytes, std::size_t most_bytes);

  /// A free buffer, or kNone: a shortage, which ends when the pool grows or a buffer comes back.
  [[nodiscard]] std::uint32_t take() noexcept;
  /// True: somebody found none before; all links are to look again.
  [[nodiscard]] bool give(std::uint32_t number) noexcept;

  [[nodiscard]] std::byte* data(std::uint32_t number) const noexcept {
    return chunks_[number / kPerChunk].memory.get() + (number % kPerChunk) * bytes_;
  }
  [[nodiscard]] std::uint32_t local_key(std::uint32_t number, std::size_t nic) const noexcept {
    return chunks_[number / kPerChunk].mrs[nic]->lkey;
  }

  /// Whether relieve() may end a shortage now. False: somebody has to give a buffer back first.
  [[nodiscard]] bool may_grow() const noexcept { return may_grow_.load(std::memory_order_relaxed); }
  /// Grows the pool if there is a shortage. Returns when it wants to try again; the highest value = never.
  std::int64_t relieve(std::int64_t now_ns) noexcept;
  /// Errors: resource_exhausted (a limit of the device, or verbs.message_pool_bytes).
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
  bool short_ = false;  ///< somebody wants a buffer; with lock_
  std::atomic<bool> may_grow_{true};
  std::int64_t retry_at_ = 0;
};

}  // namespace fabric::verbs
}  // namespace dtr::inline v0
