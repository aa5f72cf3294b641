// Registered memory of one device: who may touch what, and moving bytes there.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <unordered_map>

#include <infiniband/verbs.h>

#include "support/software_nic/options.hpp"

namespace dtr::software_nic {

class Network;

struct MemoryRegion : ibv_mr {
  std::byte* base = nullptr;  ///< where `iova` lies in this process
  std::uint64_t iova = 0;
  unsigned access = 0;
  void* mapping = nullptr;  ///< of a dmabuf
  std::size_t mapping_bytes = 0;
  int pins = 0;
};

/// Any thread. remove() waits until nobody moves bytes of the region: afterwards nobody can.
class MemoryTable {
 public:
  MemoryTable(const DeviceOptions& options, Network& network) : options_(options), network_(network) {}
  ~MemoryTable();
  MemoryTable(const MemoryTable&) = delete;
  MemoryTable& operator=(const MemoryTable&) = delete;

  /// nullptr with errno set.
  [[nodiscard]] ibv_mr* add(ibv_pd& pd, void* address, std::size_t length, unsigned access) noexcept;
  [[nodiscard]] ibv_mr* add_dmabuf(ibv_pd& pd, std::uint64_t offset, std::size_t length, std::uint64_t iova, int fd,
                                   unsigned access) noexcept;
  [[nodiscard]] int remove(ibv_mr* region) noexcept;
  void remove_all(const ibv_context& context) noexcept;

  /// A region held for one transfer.
  class Pin {
   public:
    Pin() = default;
    Pin(MemoryTable& table, MemoryRegion* region, std::byte* at) : table_(&table), region_(region), at_(at) {}
    Pin(Pin&& other) noexcept : table_(other.table_), region_(other.region_), at_(other.at_) {
      other.region_ = nullptr;
    }
    Pin& operator=(Pin&&) = delete;
    ~Pin() {
      if (region_ != nullptr) table_->unpin(*region_);
    }
    [[nodiscard]] explicit operator bool() const noexcept { return region_ != nullptr; }
    [[nodiscard]] std::byte* data() const noexcept { return at_; }
    [[nodiscard]] bool relaxed() const noexcept { return (region_->access & IBV_ACCESS_RELAXED_ORDERING) != 0; }

   private:
    MemoryTable* table_ = nullptr;
    MemoryRegion* region_ = nullptr;
    std::byte* at_ = nullptr;
  };
  enum class Key : std::uint8_t { local, remote };
  /// Empty: no such key in this protection domain, out of bounds, or an access right is missing.
  [[nodiscard]] Pin pin(Key kind, std::uint32_t key, const ibv_pd* pd, std::uint64_t address, std::uint64_t length,
                        unsigned access) noexcept;

  [[nodiscard]] int count() const noexcept;
  [[nodiscard]] bool uses(const ibv_pd& domain) const noexcept;

 private:
  void unpin(MemoryRegion& region) noexcept;
  [[nodiscard]] ibv_mr* insert(std::unique_ptr<MemoryRegion> region, ibv_pd& pd) noexcept;

  const DeviceOptions& options_;
  Network& network_;
  mutable std::mutex mutex_;
  std::condition_variable unpinned_;
  std::unordered_map<std::uint32_t, std::unique_ptr<MemoryRegion>> by_lkey_;
  std::unordered_map<std::uint32_t, MemoryRegion*> by_rkey_;
  std::uint64_t locked_bytes_ = 0;
  std::uint32_t next_handle_ = 1;
};

/// Writes as a NIC does: an aligned 8-byte word is one atomic store, in rising order, so that a CPU may poll it. In
/// memory with relaxed ordering neither is promised, and here neither is kept.
void land(std::byte* destination, const std::byte* source, std::size_t length, bool relaxed) noexcept;
/// Reads memory that its owner may be writing words of.
void fetch(std::byte* destination, const std::byte* source, std::size_t length, bool relaxed) noexcept;

}  // namespace dtr::software_nic
