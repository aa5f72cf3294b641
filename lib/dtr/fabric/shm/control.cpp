#include "dtr/fabric/shm/control.hpp"

#include <new>
#include <utility>

#include <unistd.h>

#include "dtr/fabric/shm/barrier.hpp"

namespace dtr::inline v0 {
namespace fabric::shm {

Result<Control> Control::create(bool barriers) {
  auto segment = Segment::create(0, sizeof(ControlBlock));
  if (!segment) return fail(std::move(segment.error()));
  auto* block = new ((*segment)->data()) ControlBlock;
  block->barriers = barriers ? 1 : 0;
  return Control(std::move(*segment), block);
}

Result<Control> Control::map(UniqueFd fd) {
  auto segment = Segment::map(0, std::move(fd));
  if (!segment) return fail(std::move(segment.error()));
  if ((*segment)->length() < sizeof(ControlBlock)) {
    return fail(Errc::protocol_error, "the peer's control segment is too small", "connect");
  }
  auto* block = std::launder(reinterpret_cast<ControlBlock*>((*segment)->data()));
  if (block->magic != ControlBlock::kMagic || block->version != ControlBlock::kVersion) {
    return fail(Errc::protocol_error, "the peer's control segment has another layout", "connect");
  }
  return Control(std::move(*segment), block);
}

void ring(ControlBlock& control, int doorbell, bool barriers) noexcept {
  if (barriers) {
    light_barrier();
    if (control.sleeping.load(std::memory_order_relaxed) == 0) return;
  } else if (control.sleeping.fetch_add(0, std::memory_order_acq_rel) == 0) {
    // A read-modify-write: the sleeper's own, if later, synchronizes with it and then finds what was published.
    return;
  }
  if (control.sleeping.exchange(0, std::memory_order_acq_rel) == 0) return;
  const std::uint64_t one = 1;
  [[maybe_unused]] const auto written = ::write(doorbell, &one, sizeof one);  // full counter = it rings already
}

}  // namespace fabric::shm
}  // namespace dtr::inline v0
