#include "dtr/checkpoint/detail/staging_pool.hpp"

#include <algorithm>
#include <cerrno>
#include <string>
#include <utility>

#include <sys/mman.h>

namespace dtr::inline v0 {
namespace checkpoint {

namespace {

constexpr std::uint64_t kPage = 4096;
constexpr std::uint64_t kHugePage = std::uint64_t{2} << 20;

std::uint64_t rounded(std::uint64_t bytes, std::uint64_t granule) {
  return (std::max<std::uint64_t>(bytes, 1) + granule - 1) / granule * granule;
}

void touch(std::byte* memory, std::size_t bytes) {
#ifdef MADV_POPULATE_WRITE
  if (::madvise(memory, bytes, MADV_POPULATE_WRITE) == 0) return;
#endif
  volatile std::byte* page = memory;  // kernels before 5.14
  for (std::size_t at = 0; at < bytes; at += kPage) page[at] = std::byte{0};
}

}  // namespace

StagingPool::Lease::Lease(Lease&& other) noexcept
    : pool_(std::exchange(other.pool_, nullptr)), memory_(std::exchange(other.memory_, {})) {}

StagingPool::Lease& StagingPool::Lease::operator=(Lease&& other) noexcept {
  if (this != &other) {
    give_back();
    pool_ = std::exchange(other.pool_, nullptr);
    memory_ = std::exchange(other.memory_, {});
  }
  return *this;
}

void StagingPool::Lease::give_back() noexcept {
  if (auto* pool = std::exchange(pool_, nullptr); pool != nullptr) pool->put_back(std::exchange(memory_, {}));
}

StagingPool::~StagingPool() {
  if (!memory_.empty()) ::munmap(memory_.data(), memory_.size());
}

Result<void> StagingPool::map(std::uint64_t bytes) {
  if (!memory_.empty()) ::munmap(memory_.data(), memory_.size());
  memory_ = {};
  void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    return fail(errno_error(errno, "take " + std::to_string(bytes) + " bytes of memory for staging", "save"));
  }
  memory_ = {static_cast<std::byte*>(memory), bytes};
  ::madvise(memory, bytes, MADV_HUGEPAGE);  // only faster: a kernel without it says no
  ::madvise(memory, bytes, MADV_DONTFORK);  // a child has no use for it, and copy-on-write would stall the next save
  touch(memory_.data(), bytes);
  return {};
}

Result<void> StagingPool::reserve(std::uint64_t capacity) {
  const std::lock_guard lock(mutex_);
  fixed_ = capacity != 0;
  return fixed_ ? map(rounded(capacity, kHugePage)) : Result<void>();
}

std::optional<std::uint64_t> StagingPool::find_room(std::uint64_t bytes) const {
  std::uint64_t at = 0;
  for (const auto& [offset, taken] : on_loan_) {
    if (offset - at >= bytes) return at;
    at = offset + taken;
  }
  if (memory_.size() - at >= bytes) return at;
  return std::nullopt;
}

Result<StagingPool::Lease> StagingPool::acquire(std::uint64_t bytes, Deadline deadline) {
  const std::uint64_t wanted = rounded(bytes, kPage);
  std::unique_lock lock(mutex_);
  if (fixed_ && wanted > memory_.size()) {
    return fail(Errc::resource_exhausted,
                "this rank's tensors take " + std::to_string(wanted) + " bytes of staging, staging_bytes is " +
                    std::to_string(memory_.size()),
                "save");
  }
  for (;;) {
    if (!fixed_ && wanted > memory_.size() && on_loan_.empty()) {
      // Under the lock: whoever else waits, waits for this memory too.
      if (auto mapped = map(rounded(wanted, kHugePage)); !mapped) return fail(mapped.error());
    }
    if (const auto at = find_room(wanted)) {
      on_loan_.emplace(*at, wanted);
      return Lease(*this, memory_.subspan(*at, wanted));
    }
    if (returned_.wait_until(lock, deadline.at()) == std::cv_status::timeout) {
      return fail(Errc::busy,
                  std::to_string(on_loan_.size()) +
                      " earlier saves still hold the staging memory; with a larger staging_bytes more fit beside them",
                  "save");
    }
  }
}

void StagingPool::put_back(std::span<std::byte> memory) noexcept {
  {
    const std::lock_guard lock(mutex_);
    on_loan_.erase(static_cast<std::uint64_t>(memory.data() - memory_.data()));
  }
  returned_.notify_all();
}

}  // namespace checkpoint
}  // namespace dtr::inline v0
