// Buddy allocation by offsets: splits and merges powers of two inside one range. Pure arithmetic.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <set>
#include <vector>

namespace dtr::inline v0 {

/// Hands out power-of-two blocks of [0, capacity). Not thread-safe.
class BuddyAllocator {
 public:
  static constexpr std::size_t kSmallest = 4096;

  /// `capacity` is rounded down to a multiple of the smallest block.
  explicit BuddyAllocator(std::size_t capacity);

  /// The block that `bytes` needs: the next power of two, at least kSmallest.
  [[nodiscard]] static std::size_t block_size(std::size_t bytes) noexcept;

  /// Offset of a free block that holds `bytes`, aligned to its own size; nothing if there is none.
  [[nodiscard]] std::optional<std::size_t> allocate(std::size_t bytes);

  /// Takes back what allocate(bytes) gave; merges with free neighbours.
  void release(std::size_t offset, std::size_t bytes);

  [[nodiscard]] std::size_t capacity() const noexcept { return capacity_; }
  [[nodiscard]] std::size_t free_bytes() const noexcept { return free_bytes_; }
  [[nodiscard]] std::size_t largest_free() const noexcept;

 private:
  [[nodiscard]] static std::size_t order(std::size_t block) noexcept;

  std::size_t capacity_;
  std::size_t free_bytes_ = 0;
  std::vector<std::set<std::size_t>> free_;  ///< offsets by order; the lowest is taken first
};

}  // namespace dtr::inline v0
