// The page that a process shows to its peers: is it asleep, and which of its threads is inside whose memory.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>

#include "dtr/fabric/work_request.hpp"
#include "dtr/memory/segment.hpp"

namespace dtr::inline v0 {
namespace fabric::shm {

/// Raised by one thread while it copies from or to a peer's memory; see flag_lines.hpp.
struct alignas(64) FlagLine {
  std::atomic<std::uint64_t> raised{0};

  /// What a line shows for a region in `slot` of `owner`'s table; 0 = down.
  [[nodiscard]] static constexpr std::uint64_t value(PeerId owner, std::uint32_t slot) noexcept {
    return (std::uint64_t{owner} + 1) << 32 | (std::uint64_t{slot} + 1);
  }
  [[nodiscard]] static constexpr bool is_inside(std::uint64_t value, PeerId owner) noexcept {
    return value >> 32 == std::uint64_t{owner} + 1;
  }
};

struct ControlBlock {
  static constexpr std::uint64_t kMagic = 0x6C72'7463'6D68'7364ULL;  // "dshmctrl"
  static constexpr std::uint32_t kVersion = 1;
  static constexpr std::uint32_t kLines = 256;

  std::uint64_t magic = kMagic;
  std::uint32_t version = kVersion;
  std::uint32_t barriers = 0;  ///< 1: this process makes heavy barriers
  alignas(64) std::atomic<std::uint32_t> sleeping{0};
  std::array<FlagLine, kLines> lines{};
};
static_assert(sizeof(ControlBlock) == 64UL * (2 + ControlBlock::kLines));

/// A ControlBlock in a segment, one's own or a peer's.
class Control {
 public:
  [[nodiscard]] static Result<Control> create(bool barriers);
  /// Errors: protocol_error (unsealed, too small, another layout).
  [[nodiscard]] static Result<Control> map(UniqueFd fd);

  [[nodiscard]] ControlBlock& operator*() const noexcept { return *block_; }
  [[nodiscard]] ControlBlock* operator->() const noexcept { return block_; }
  [[nodiscard]] const std::shared_ptr<Segment>& segment() const noexcept { return segment_; }

  Control() = default;

 private:
  Control(std::shared_ptr<Segment> segment, ControlBlock* block) noexcept
      : segment_(std::move(segment)), block_(block) {}

  std::shared_ptr<Segment> segment_;
  ControlBlock* block_ = nullptr;
};

/// Wakes the process that shows `control`, if it sleeps. Call after publishing what it shall find.
void ring(ControlBlock& control, int doorbell, bool barriers) noexcept;

}  // namespace fabric::shm
}  // namespace dtr::inline v0
