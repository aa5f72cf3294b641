#include "dtr/fabric/verbs/message_pool.hpp"

#include <algorithm>
#include <cerrno>
#include <exception>
#include <limits>
#include <mutex>
#include <utility>

#include "dtr/base/log.hpp"
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
    short_ = true;
    return kNone;
  }
  const std::uint32_t number = free_.back();
  free_.pop_back();
  return number;
}

bool MessagePool::give(std::uint32_t number) noexcept {
  const std::lock_guard lock(lock_);
  free_.push_back(number);  // room was reserved with the buffer
  return std::exchange(short_, false);
}

std::int64_t MessagePool::relieve(std::int64_t now_ns) noexcept {
  constexpr std::int64_t kNever = std::numeric_limits<std::int64_t>::max();
  constexpr std::int64_t kPause = 100'000'000;  // the limit that refused more does not go away at once
  {
    const std::lock_guard lock(lock_);
    if (!short_ || chunks_.size() == most_chunks_) return kNever;
  }
  if (now_ns < retry_at_) return retry_at_;
  try {
    const auto grown = grow();
    if (grown) return kNever;
    DTR_LOG_WARN("verbs: ", grown.error().to_string());
  } catch (const std::exception&) {  // no memory: as for any other limit
  }
  may_grow_.store(false, std::memory_order_relaxed);
  retry_at_ = now_ns + kPause;
  return retry_at_;
}

Result<void> MessagePool::grow() {
  if (chunks_.size() == most_chunks_) {
    return fail(Errc::resource_exhausted, "no buffers for messages are left (verbs.message_pool_bytes)", "send");
  }
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
  short_ = false;
  may_grow_.store(chunks_.size() < most_chunks_, std::memory_order_relaxed);
  return {};
}

}  // namespace fabric::verbs
}  // namespace dtr::inline v0
