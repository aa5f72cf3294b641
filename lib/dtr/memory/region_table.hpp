// All regions of a process: registration, look-up of what a peer names, revocation.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <utility>
#include <vector>

#include "dtr/memory/region.hpp"

namespace dtr::inline v0 {

/// Registration and removal take a lock; look-ups by slot take none. Any thread.
class RegionTable {
 public:
  static constexpr std::uint32_t kMaxRegions = 16384;

  /// Errors: resource_exhausted.
  [[nodiscard]] static Result<std::unique_ptr<RegionTable>> create();
  ~RegionTable();
  RegionTable(const RegionTable&) = delete;
  RegionTable& operator=(const RegionTable&) = delete;

  /// Registers [memory]. `segment` holds it when peers may map it.
  /// Errors: invalid_argument (null or empty), overlap (names both ranges), resource_exhausted.
  [[nodiscard]] Result<Region*> add(std::span<std::byte> memory, const RegionOptions& options,
                                    std::shared_ptr<Segment> segment = {});

  /// From now on every access by a peer is refused. What is already under way ends on its own.
  void revoke(Region& region) noexcept;

  /// Frees the entry. The region must be revoked and unused.
  void remove(Region& region) noexcept;

  /// The region that holds all of [memory], or nullptr.
  [[nodiscard]] Region* covering(std::span<const std::byte> memory) const;

  [[nodiscard]] std::size_t size() const;

  /// A granted access; the region cannot be removed while one lives.
  class Use {
   public:
    Use() = default;
    Use(Use&& other) noexcept : region_(std::exchange(other.region_, nullptr)), data_(other.data_) {}
    Use& operator=(Use&& other) noexcept {
      if (this != &other) {
        release();
        region_ = std::exchange(other.region_, nullptr);
        data_ = other.data_;
      }
      return *this;
    }
    ~Use() { release(); }
    void release() noexcept {
      if (region_ != nullptr) std::exchange(region_, nullptr)->end_use();
    }
    [[nodiscard]] std::byte* data() const noexcept { return data_; }
    [[nodiscard]] const Region* region() const noexcept { return region_; }
    [[nodiscard]] explicit operator bool() const noexcept { return region_ != nullptr; }

   private:
    friend class RegionTable;
    Use(Region* region, std::byte* data) noexcept : region_(region), data_(data) {}
    Region* region_ = nullptr;
    std::byte* data_ = nullptr;
  };

  /// What a peer asks for, as it came over the wire.
  struct Request {
    std::uint32_t slot = 0;
    std::uint32_t generation = 0;
    std::uint64_t secret = 0;
    std::uint64_t offset = 0;
    std::uint64_t length = 0;
    Access access = Access::none;
  };

  /// Checks key, bounds and permission, and holds the region.
  /// Returns ok, or not_registered, revoked, out_of_range, permission_denied.
  [[nodiscard]] Errc acquire(const Request& request, Use& use) noexcept;

  /// The words that say which generation of each slot is valid, in memory that peers on this host map.
  [[nodiscard]] const std::shared_ptr<Segment>& validity() const noexcept { return validity_; }

  /// Bytes of a validity segment.
  static constexpr std::size_t kValidityBytes = kMaxRegions * (sizeof(std::uint32_t) + sizeof(std::uint64_t));

  /// The word of one slot inside a validity segment.
  [[nodiscard]] static std::atomic<std::uint32_t>* validity_word(const Segment& validity, std::uint32_t slot) noexcept;

  /// Is this key the one that the segment's owner gave out? Tells a peer that maps the segment, without asking.
  /// Returns ok, not_registered, revoked.
  [[nodiscard]] static Errc check_key(const Segment& validity, const RemoteKey& key) noexcept;

 private:
  explicit RegionTable(std::shared_ptr<Segment> validity);

  std::shared_ptr<Segment> validity_;
  std::array<std::atomic<Region*>, kMaxRegions> slots_{};  ///< entries are made once and recycled, never freed
  mutable std::mutex mutex_;
  std::vector<std::unique_ptr<Region>> storage_;
  std::vector<std::uint32_t> free_;
  std::map<const std::byte*, Region*> by_address_;  ///< keyed by the region's first byte
};

}  // namespace dtr::inline v0
