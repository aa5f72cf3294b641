// The segment of one link: requests and messages one way, answers the other way.
#pragma once

#include <atomic>
#include <bit>
#include <cstdint>
#include <memory>
#include <new>
#include <utility>

#include "dtr/base/error.hpp"
#include "dtr/fabric/shm/ring.hpp"
#include "dtr/memory/segment.hpp"

namespace dtr::inline v0 {
namespace fabric::shm {

struct LinkHeader {
  /// 0, or the Errc (negated) for which the target shut this link. The initiator looks before each copy.
  alignas(64) std::atomic<std::uint32_t> refused{0};
};
static_assert(sizeof(LinkHeader) == 64);

/// Layout: header, forward ring, backward ring. Made by the initiator, mapped by the target.
class LinkMemory {
 public:
  static constexpr std::uint64_t kMinSlots = 16;
  static constexpr std::uint64_t kMaxSlots = 1 << 24;

  LinkMemory() = default;

  [[nodiscard]] static Result<LinkMemory> create(std::uint64_t forward_slots, std::uint64_t backward_slots) {
    auto segment = Segment::create(0, bytes(forward_slots, backward_slots));
    if (!segment) return fail(std::move(segment.error()));
    LinkMemory link(std::move(*segment), forward_slots, backward_slots);
    new (link.header_) LinkHeader;
    new (link.forward_.header) RingHeader;
    new (link.backward_.header) RingHeader;
    link.forward_.header->tag = reinterpret_cast<std::uintptr_t>(link.header_) >> 10;
    link.backward_.header->tag = link.forward_.header->tag + 2;
    return link;
  }

  /// Errors: protocol_error (unsealed, sizes that do not fit).
  [[nodiscard]] static Result<LinkMemory> map(UniqueFd fd, std::uint64_t forward_slots, std::uint64_t backward_slots) {
    for (const std::uint64_t slots : {forward_slots, backward_slots}) {
      if (!std::has_single_bit(slots) || slots < kMinSlots || slots > kMaxSlots) {
        return fail(Errc::protocol_error, "the peer offers a ring of " + std::to_string(slots) + " slots", "connect");
      }
    }
    auto segment = Segment::map(0, std::move(fd));
    if (!segment) return fail(std::move(segment.error()));
    if ((*segment)->length() < bytes(forward_slots, backward_slots)) {
      return fail(Errc::protocol_error, "the peer's rings are larger than their segment", "connect");
    }
    return LinkMemory(std::move(*segment), forward_slots, backward_slots);
  }

  [[nodiscard]] LinkHeader& header() const noexcept { return *header_; }
  [[nodiscard]] const RingMemory& forward() const noexcept { return forward_; }
  [[nodiscard]] const RingMemory& backward() const noexcept { return backward_; }
  [[nodiscard]] int fd() const noexcept { return segment_->fd(); }
  void close_fd() noexcept { segment_->close_fd(); }

 private:
  LinkMemory(std::shared_ptr<Segment> segment, std::uint64_t forward_slots, std::uint64_t backward_slots) noexcept
      : segment_(std::move(segment)) {
    std::byte* at = segment_->data();
    header_ = reinterpret_cast<LinkHeader*>(at);
    at += sizeof(LinkHeader);
    forward_ = {reinterpret_cast<RingHeader*>(at), at + sizeof(RingHeader), forward_slots};
    at += sizeof(RingHeader) + forward_slots * kSlot;
    backward_ = {reinterpret_cast<RingHeader*>(at), at + sizeof(RingHeader), backward_slots};
  }
  [[nodiscard]] static constexpr std::size_t bytes(std::uint64_t forward, std::uint64_t backward) noexcept {
    return sizeof(LinkHeader) + 2 * sizeof(RingHeader) + (forward + backward) * kSlot;
  }

  std::shared_ptr<Segment> segment_;
  LinkHeader* header_ = nullptr;
  RingMemory forward_;
  RingMemory backward_;
};

}  // namespace fabric::shm
}  // namespace dtr::inline v0
