#include "dtr/runtime/detail/pool.hpp"

#include <algorithm>
#include <string>

namespace dtr::inline v0 {

Result<Buffer> Runtime::Pool::allocate(std::size_t bytes) {
  constexpr const char* kOperation = "allocate";
  if (bytes == 0) return dtr::fail(Errc::invalid_argument, "0 bytes", kOperation);
  if (bytes > limit_) {
    return dtr::fail(Errc::resource_exhausted,
                     std::to_string(bytes) + " bytes; memory.pool_max_bytes is " + std::to_string(limit_), kOperation);
  }
  const std::lock_guard lock(mutex_);
  if (fabric_ == nullptr) return dtr::fail(Errc::closed, "the Runtime has ended", kOperation);
  for (Arena& arena : arenas_) {
    if (const auto offset = arena.blocks.allocate(bytes)) {
      ++out_;
      return Buffer(shared_from_this(), arena.region, *offset, bytes);
    }
  }
  const std::size_t wanted = std::max(segment_bytes_, BuddyAllocator::block_size(bytes));
  if (wanted > limit_ - total_) {
    return dtr::fail(Errc::resource_exhausted,
                     "the pool has " + std::to_string(total_) + " bytes and needs " + std::to_string(wanted) +
                         " more; memory.pool_max_bytes is " + std::to_string(limit_),
                     kOperation);
  }
  auto region = fabric_->allocate_segment(wanted);
  if (!region) return dtr::fail(std::move(region.error()));
  total_ += wanted;
  arenas_.push_back({.region = *region, .blocks = BuddyAllocator(wanted)});
  ++out_;
  return Buffer(shared_from_this(), *region, arenas_.back().blocks.allocate(bytes).value(), bytes);
}

void Runtime::Pool::release(const Buffer& buffer) noexcept {
  const std::lock_guard lock(mutex_);
  --out_;
  const auto arena = std::find_if(arenas_.begin(), arenas_.end(),
                                  [&](const Arena& candidate) { return candidate.region == buffer.region(); });
  if (arena != arenas_.end()) arena->blocks.release(buffer.offset(), buffer.size());
}

std::size_t Runtime::Pool::detach() noexcept {
  const std::lock_guard lock(mutex_);
  fabric_ = nullptr;
  arenas_.clear();
  return out_;
}

}  // namespace dtr::inline v0
