#include "dtr/memory/buddy.hpp"

#include <bit>

namespace dtr::inline v0 {

BuddyAllocator::BuddyAllocator(std::size_t capacity) : capacity_(capacity / kSmallest * kSmallest) {
  free_.resize(order(std::bit_floor(capacity_ > 0 ? capacity_ : kSmallest)) + 1);
  // A capacity that is no power of two becomes several top blocks, the largest first.
  for (std::size_t offset = 0; offset < capacity_;) {
    const std::size_t block = std::bit_floor(capacity_ - offset);
    free_[order(block)].insert(offset);
    free_bytes_ += block;
    offset += block;
  }
}

std::size_t BuddyAllocator::block_size(std::size_t bytes) noexcept {
  return bytes <= kSmallest ? kSmallest : std::bit_ceil(bytes);
}

std::size_t BuddyAllocator::order(std::size_t block) noexcept {
  return static_cast<std::size_t>(std::countr_zero(block) - std::countr_zero(kSmallest));
}

std::optional<std::size_t> BuddyAllocator::allocate(std::size_t bytes) {
  if (bytes > capacity_) return std::nullopt;
  const std::size_t wanted = order(block_size(bytes));
  std::size_t from = wanted;
  while (from < free_.size() && free_[from].empty()) ++from;
  if (from >= free_.size()) return std::nullopt;
  const std::size_t offset = *free_[from].begin();
  free_[from].erase(free_[from].begin());
  for (; from > wanted; --from) free_[from - 1].insert(offset + (kSmallest << (from - 1)));
  free_bytes_ -= kSmallest << wanted;
  return offset;
}

void BuddyAllocator::release(std::size_t offset, std::size_t bytes) {
  std::size_t level = order(block_size(bytes));
  free_bytes_ += kSmallest << level;
  for (; level + 1 < free_.size(); ++level) {
    const std::size_t buddy = offset ^ (kSmallest << level);
    const auto found = free_[level].find(buddy);
    if (found == free_[level].end()) break;
    free_[level].erase(found);
    offset = offset < buddy ? offset : buddy;
  }
  free_[level].insert(offset);
}

std::size_t BuddyAllocator::largest_free() const noexcept {
  for (std::size_t level = free_.size(); level > 0; --level) {
    if (!free_[level - 1].empty()) return kSmallest << (level - 1);
  }
  return 0;
}

}  // namespace dtr::inline v0
