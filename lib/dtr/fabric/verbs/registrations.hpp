// What the NICs know of registered memory.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "dtr/fabric/verbs/nic.hpp"
#include "dtr/memory/region_table.hpp"

namespace dtr::inline v0 {
namespace fabric::verbs {

/// A region's memory regions: one a NIC, or as many as it takes where the region is longer than a NIC registers at
/// once.
class Registrations {
 public:
  struct Entry {
    std::array<MemoryRegion, RemoteKey::kMaxRails> mrs{};  ///< as RemoteKey::rkeys
    std::array<std::uint32_t, RemoteKey::kMaxRails> lkeys{};
    std::uint32_t generation = 0;
    std::uint32_t near = ~0U;  ///< bit i: no NIC is nearer to the memory than NIC i
  };

  explicit Registrations(const std::vector<std::unique_ptr<Nic>>& nics) : nics_(nics) {}

  /// Registers with every NIC and writes the region's rkeys. Any thread. Errors: resource_exhausted naming the limit,
  /// device_error, unsupported (memory that the NIC cannot read or write).
  [[nodiscard]] Result<void> add(Region& region);

  /// Peers cannot reach the region any more once this returns. The keys in its table entry become invalid.
  void remove(const Region& region) noexcept;

  /// Our key for this NIC and the piece with this byte; false if the region is not registered here. Any thread, no
  /// lock.
  [[nodiscard]] bool local_key(const Region& region, std::size_t nic, std::uint64_t offset,
                               std::uint32_t& lkey) const noexcept {
    const RemoteKey& key = region.key();
    const Entry* entry = entries_[key.slot].load(std::memory_order_acquire);
    if (entry == nullptr || entry->generation != key.generation) return false;
    lkey = entry->lkeys[key.pieces <= 1 ? nic : nic * key.pieces + key.piece_of(offset)];
    return true;
  }

  /// The NICs that are nearest to the region's memory, as bits; all of them if that is unknown. Any thread, no lock.
  [[nodiscard]] std::uint32_t near(const Region& region) const noexcept {
    const Entry* entry = entries_[region.key().slot].load(std::memory_order_acquire);
    return entry == nullptr ? ~0U : entry->near;
  }

 private:
  [[nodiscard]] Result<std::uint8_t> count_pieces(const Region& region) const;
  [[nodiscard]] Result<MemoryRegion> register_with(Nic& nic, const Region& region, std::span<std::byte> piece);
  [[nodiscard]] std::uint32_t find_near(const Region& region) const;

  const std::vector<std::unique_ptr<Nic>>& nics_;
  std::array<std::atomic<Entry*>, RegionTable::kMaxRegions> entries_{};
  std::mutex mutex_;
  std::vector<std::unique_ptr<Entry>> storage_;
  std::vector<Entry*> free_;
};

}  // namespace fabric::verbs
}  // namespace dtr::inline v0
