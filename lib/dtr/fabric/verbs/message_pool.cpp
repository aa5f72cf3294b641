#include "dtr/fabric/verbs/message_pool.hpp"

#include <algorithm>
#include <cerrno>
#include <mutex>

#include "dtr/fabric/verbs/limits.hpp"

namespace dtr::inline v0 {
namespace fabric::verbs {

MessagePool::MessagePool(const std::vector<std::unique_ptr<Nic>>& nics, std::size_t message_bytes,
                         std::size_t most_bytes)
    : nics_(nics),
      bytes_((message_bytes + 63) / 64 * 64),
      most_chunks_(std::max<std::size_t>(1, most_bytes / (bytes_ * kPerChunk))) {
  chunks_.reserve(most_chunks_);
}

std::uint32_t MessagePool::take() noexcept {
  const std::lock_guard lock(lock_);
  if (free_.empty()) {
    hungry_.store(true, std::memory_order_relaxed);
    return kNone;
  }
  const std::uint32_t number = free_.back();
  free_.pop_back();
  return number;
}

void MessagePool::give(std::uint32_t number) noexcept {
  const std::lock_guard lock(lock_);
  free_.push_back(number);  // room was reserved with the buffer
}

bool MessagePool::has_free() noexcept {
  const std::lock_guard lock(lock_);
  return !free_.empty();
}

Result<void> MessagePool::grow() {
  hungry_.store(false, std::memory_order_relaxed);
  if (chunks_.size() == most_chunks_) return {};  // what is out comes back
  Chunk chunk;
  chunk.memory = std::make_unique<std::byte[]>(kPerChunk * bytes_);
  for (std::size_t i = 0; i < nics_.size(); ++i) {
    Nic& nic = *nics_[i];
    ibv_mr* mr =
        nic.api().reg_mr(nic.protection_domain(), chunk.memory.get(), kPerChunk * bytes_, IBV_ACCESS_LOCAL_WRITE);
    if (mr == nullptr) {
      return fail(device_refusal(errno, std::to_string(kPerChunk * bytes_) + " bytes for messages",
                                 "max_mr " + std::to_string(nic.attributes().max_mr), nic.name(), "send"));
    }
    chunk.mrs[i] = MemoryRegion(nic.api(), mr);
  }
  const auto first = static_cast<std::uint32_t>(chunks_.size() * kPerChunk);
  const std::lock_guard lock(lock_);
  free_.reserve(first + kPerChunk);
  chunks_.push_back(std::move(chunk));
  for (std::uint32_t i = 0; i < kPerChunk; ++i) free_.push_back(first + i);
  return {};
}

}  // namespace fabric::verbs
}  // namespace dtr::inline v0
