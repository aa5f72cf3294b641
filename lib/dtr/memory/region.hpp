// Registered memory: what it is, who may touch it, and the key that lets a peer reach it.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "dtr/base/error.hpp"
#include "dtr/memory/segment.hpp"

namespace dtr::inline v0 {

enum class MemoryKind : std::uint8_t { host = 0, pinned = 1, cuda = 2 };

/// What peers may do with a region. The owner may always do everything.
enum class Access : std::uint8_t { none = 0, read = 1, write = 2, read_write = 3, atomic = 4, all = 7 };

[[nodiscard]] constexpr bool allows(Access granted, Access wanted) noexcept {
  return (static_cast<unsigned>(granted) & static_cast<unsigned>(wanted)) == static_cast<unsigned>(wanted);
}

/// Who executes atomics on a region: the owner's CPU, or one NIC for everybody. The two never mix on one word.
enum class AtomicHome : std::uint8_t { cpu = 0, device = 1 };

struct RegionOptions {
  MemoryKind kind = MemoryKind::host;
  int device = -1;     ///< GPU number for kind cuda
  int numa_node = -1;  ///< where the memory lives, -1 = unknown
  Access access = Access::all;
  bool polled = false;  ///< arrival is learnt by polling aligned 8-byte words: no relaxed ordering on any NIC
  AtomicHome atomic_home = AtomicHome::cpu;
  int dmabuf_fd = -1;  ///< exported GPU memory, -1 = none
};

/// Names a region towards peers. Plain bytes: copied over the wire as it is (little-endian hosts only).
struct RemoteKey {
  static constexpr std::size_t kMaxRails = 8;

  std::uint32_t slot = 0;        ///< the owner's table entry
  std::uint32_t generation = 0;  ///< odd while valid; another registration in the same slot has another one
  std::uint64_t secret = 0;      ///< random: a key cannot be guessed
  std::uint64_t length = 0;      ///< bytes
  std::uint64_t address = 0;     ///< in the owner's address space
  std::uint64_t segment = 0;     ///< the owner's shared segment that holds the region, 0 = none
  std::uint64_t segment_offset = 0;
  MemoryKind kind = MemoryKind::host;
  Access access = Access::none;
  AtomicHome atomic_home = AtomicHome::cpu;
  std::uint8_t polled = 0;
  std::uint8_t pieces = 1;  ///< that each NIC of the owner has registered it in, see piece_of()
  std::array<std::uint8_t, 3> reserved{};
  std::array<std::uint32_t, kMaxRails> rkeys{};  ///< of each NIC of the owner, piece after piece

  /// A region that is longer than a NIC registers at once is cut at pages, into pieces of this length; the first is
  /// shorter where the region does not begin a page.
  [[nodiscard]] std::uint64_t piece_bytes() const noexcept {
    // Rounded up, without overflow and never 0, for a key from elsewhere may say anything.
    const std::uint64_t step = kPieceStep * (pieces <= 1 ? 1 : pieces);
    const std::uint64_t steps = length / step + (address % kPieceStep + length % step + step - 1) / step;
    return (steps == 0 ? 1 : steps) * kPieceStep;
  }
  [[nodiscard]] std::uint32_t piece_of(std::uint64_t offset) const noexcept {
    return pieces <= 1 ? 0 : static_cast<std::uint32_t>((address % kPieceStep + offset) / piece_bytes());
  }
  /// Bytes from there to the end of the piece that they are in; may lie behind that of the region.
  [[nodiscard]] std::uint64_t left_of_piece(std::uint64_t offset) const noexcept {
    return pieces <= 1 ? ~std::uint64_t{0} : piece_bytes() - (address % kPieceStep + offset) % piece_bytes();
  }
  /// For a key from elsewhere, whatever it says, a place inside of `rkeys`.
  [[nodiscard]] std::uint32_t rkey(std::size_t nic, std::uint64_t offset) const noexcept {
    return rkeys[(pieces <= 1 ? nic : nic * pieces + piece_of(offset)) % kMaxRails];
  }

 private:
  static constexpr std::uint64_t kPieceStep = 4096;
};
static_assert(sizeof(RemoteKey) == 88);

/// One registration in this process. Made and ended by a RegionTable; the address is stable in between.
class Region {
 public:
  Region() = default;
  /// A view of memory of this process that is registered nowhere: for the local side of a request that ends inside of
  /// post, over a transport that reads plain memory. No peer has a key of it.
  explicit Region(std::span<std::byte> memory) noexcept : base_(memory.data()), length_(memory.size()) {}

  [[nodiscard]] std::byte* data() const noexcept { return base_; }
  [[nodiscard]] std::uint64_t length() const noexcept { return length_; }
  [[nodiscard]] std::span<std::byte> span() const noexcept { return {base_, length_}; }
  [[nodiscard]] const RegionOptions& options() const noexcept { return options_; }
  [[nodiscard]] const RemoteKey& key() const noexcept { return key_; }
  /// The NICs' part of the key. For the transport that registers the region with them, before the key is given out.
  void set_device_keys(std::uint8_t pieces, const std::array<std::uint32_t, RemoteKey::kMaxRails>& rkeys) noexcept {
    key_.pieces = pieces;
    key_.rkeys = rkeys;
  }
  /// The shared segment that holds the region, or nullptr.
  [[nodiscard]] const std::shared_ptr<Segment>& segment() const noexcept { return segment_; }

  /// True if [offset, offset + bytes) lies inside; safe against overflow.
  [[nodiscard]] bool contains(std::uint64_t offset, std::uint64_t bytes) const noexcept {
    return offset <= length_ && bytes <= length_ - offset;
  }

  /// Operations of this process that still read or write the memory behind the caller's back.
  void begin_use(std::uint32_t operations = 1) noexcept { uses_.fetch_add(operations, std::memory_order_relaxed); }
  void end_use(std::uint32_t operations = 1) noexcept { uses_.fetch_sub(operations, std::memory_order_release); }
  [[nodiscard]] std::uint32_t uses() const noexcept { return uses_.load(std::memory_order_acquire); }

 private:
  friend class RegionTable;

  std::byte* base_ = nullptr;
  std::uint64_t length_ = 0;
  RegionOptions options_{};
  RemoteKey key_{};
  std::shared_ptr<Segment> segment_;  ///< keeps managed memory mapped while it is registered
  std::atomic<std::uint32_t> uses_{0};
};

}  // namespace dtr::inline v0
