#include "support/software_nic/memory.hpp"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>

#include <sys/mman.h>
#include <unistd.h>

#include "support/software_nic/network.hpp"

namespace dtr::software_nic {

namespace {

constexpr std::size_t kWord = sizeof(std::uint64_t);

[[nodiscard]] bool aligned(const std::byte* at) noexcept { return reinterpret_cast<std::uintptr_t>(at) % kWord == 0; }

}  // namespace

void land(std::byte* destination, const std::byte* source, std::size_t length, bool relaxed) noexcept {
  if (length == 0) return;
  if (relaxed) {
    constexpr std::size_t kPiece = 4096;  // last piece first
    for (std::size_t end = length; end > 0;) {
      const std::size_t start = (end - 1) / kPiece * kPiece;
      std::memcpy(destination + start, source + start, end - start);
      end = start;
    }
    return;
  }
  std::size_t i = 0;
  const auto bytewise = [&](std::size_t end) {
    for (; i < end; ++i) destination[i] = source[i];
  };
  while (i < length && !aligned(destination + i)) bytewise(i + 1);
  for (; i + kWord <= length; i += kWord) {
    std::uint64_t word = 0;
    std::memcpy(&word, source + i, kWord);
    std::atomic_ref<std::uint64_t>(*reinterpret_cast<std::uint64_t*>(destination + i))
        .store(word, std::memory_order_release);
  }
  bytewise(length);
}

void fetch(std::byte* destination, const std::byte* source, std::size_t length, bool relaxed) noexcept {
  if (length == 0) return;
  if (relaxed) {
    std::memcpy(destination, source, length);
    return;
  }
  std::size_t i = 0;
  while (i < length && !aligned(source + i)) {
    destination[i] = source[i];
    ++i;
  }
  for (; i + kWord <= length; i += kWord) {
    auto& place = *reinterpret_cast<std::uint64_t*>(const_cast<std::byte*>(source + i));
    const std::uint64_t word = std::atomic_ref<std::uint64_t>(place).load(std::memory_order_acquire);
    std::memcpy(destination + i, &word, kWord);
  }
  if (i < length) std::memcpy(destination + i, source + i, length - i);
}

MemoryTable::~MemoryTable() {
  for (auto& [key, region] : by_lkey_) {
    if (region->mapping != nullptr) ::munmap(region->mapping, region->mapping_bytes);
  }
}

ibv_mr* MemoryTable::add(ibv_pd& pd, void* address, std::size_t length, unsigned access) noexcept {
  if (address == nullptr) {
    errno = EFAULT;
    return nullptr;
  }
  auto region = std::make_unique<MemoryRegion>();
  region->addr = address;
  region->length = length;
  region->base = static_cast<std::byte*>(address);
  region->iova = reinterpret_cast<std::uintptr_t>(address);
  region->access = access;
  return insert(std::move(region), pd);
}

ibv_mr* MemoryTable::add_dmabuf(ibv_pd& pd, std::uint64_t offset, std::size_t length, std::uint64_t iova, int fd,
                                unsigned access) noexcept {
  if (!options_.dmabuf) {
    errno = EOPNOTSUPP;
    return nullptr;
  }
  const auto page = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  const std::uint64_t start = offset / page * page;
  const std::size_t bytes = length + static_cast<std::size_t>(offset - start);
  void* mapped = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, static_cast<off_t>(start));
  if (mapped == MAP_FAILED) return nullptr;  // errno is EBADF, EACCES, ...
  auto region = std::make_unique<MemoryRegion>();
  region->addr = reinterpret_cast<void*>(iova);  // NOLINT(performance-no-int-to-ptr): as the caller named it
  region->length = length;
  region->base = static_cast<std::byte*>(mapped) + (offset - start);
  region->iova = iova;
  region->access = access;
  region->mapping = mapped;
  region->mapping_bytes = bytes;
  ibv_mr* made = insert(std::move(region), pd);
  if (made == nullptr) {
    const int error = errno;
    ::munmap(mapped, bytes);
    errno = error;
  }
  return made;
}

ibv_mr* MemoryTable::insert(std::unique_ptr<MemoryRegion> region, ibv_pd& pd) noexcept {
  constexpr unsigned kWriting = IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_ATOMIC;
  constexpr unsigned kKnown = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_READ | kWriting | IBV_ACCESS_HUGETLB |
                              IBV_ACCESS_MW_BIND | IBV_ACCESS_OPTIONAL_RANGE;
  const bool wrong = (region->access & ~kKnown) != 0 ||
                     ((region->access & kWriting) != 0 && (region->access & IBV_ACCESS_LOCAL_WRITE) == 0);
  if (wrong || region->length == 0 || region->length > options_.max_mr_size) {
    errno = EINVAL;
    return nullptr;
  }
  const std::lock_guard lock(mutex_);
  if (by_lkey_.size() >= static_cast<std::size_t>(options_.max_mr) ||
      region->length > options_.max_locked_bytes - locked_bytes_) {
    errno = ENOMEM;
    return nullptr;
  }
  region->context = pd.context;
  region->pd = &pd;
  region->handle = next_handle_++;
  // Two numbers, so that one taken for the other is found out.
  region->lkey = network_.next_key();
  region->rkey = network_.next_key();
  locked_bytes_ += region->length;
  MemoryRegion* made = region.get();
  by_rkey_[made->rkey] = made;
  by_lkey_[made->lkey] = std::move(region);
  return made;
}

int MemoryTable::remove(ibv_mr* region) noexcept {
  std::unique_lock lock(mutex_);
  auto found = by_lkey_.extract(region->lkey);
  if (found.empty()) return EINVAL;
  MemoryRegion& going = *found.mapped();
  by_rkey_.erase(going.rkey);
  unpinned_.wait(lock, [&] { return going.pins == 0; });
  locked_bytes_ -= going.length;
  if (going.mapping != nullptr) ::munmap(going.mapping, going.mapping_bytes);
  return 0;
}

void MemoryTable::remove_all(const ibv_context& context) noexcept {
  while (true) {
    ibv_mr* next = nullptr;
    {
      const std::lock_guard lock(mutex_);
      for (auto& [key, region] : by_lkey_) {
        if (region->context == &context) next = region.get();
      }
    }
    if (next == nullptr) return;
    static_cast<void>(remove(next));
  }
}

MemoryTable::Pin MemoryTable::pin(Key kind, std::uint32_t key, const ibv_pd* pd, std::uint64_t address,
                                  std::uint64_t length, unsigned access) noexcept {
  const std::lock_guard lock(mutex_);
  MemoryRegion* region = nullptr;
  if (kind == Key::local) {
    const auto found = by_lkey_.find(key);
    if (found != by_lkey_.end()) region = found->second.get();
  } else {
    const auto found = by_rkey_.find(key);
    if (found != by_rkey_.end()) region = found->second;
  }
  if (region == nullptr || region->pd != pd || (region->access & access) != access) return {};
  if (address < region->iova) return {};
  const std::uint64_t offset = address - region->iova;
  if (offset > region->length || length > region->length - offset) return {};
  ++region->pins;
  return {*this, region, region->base + offset};
}

void MemoryTable::unpin(MemoryRegion& region) noexcept {
  const std::lock_guard lock(mutex_);
  if (--region.pins == 0) unpinned_.notify_all();
}

int MemoryTable::count() const noexcept {
  const std::lock_guard lock(mutex_);
  return static_cast<int>(by_lkey_.size());
}

bool MemoryTable::uses(const ibv_pd& domain) const noexcept {
  const std::lock_guard lock(mutex_);
  return std::any_of(by_lkey_.begin(), by_lkey_.end(), [&](const auto& entry) { return entry.second->pd == &domain; });
}

}  // namespace dtr::software_nic
