#include "dtr/fabric/traffic.hpp"

#include <algorithm>
#include <new>

#include "dtr/base/fork_guard.hpp"

namespace dtr::inline v0 {
namespace fabric {

namespace {

std::uint64_t next_id() noexcept {
  static std::atomic<std::uint64_t> last{0};
  return last.fetch_add(1, std::memory_order_relaxed) + 1;
}

}  // namespace

thread_local constinit TrafficMeter::Recent TrafficMeter::recent_;

/// All slots of one thread. Gives them back when the thread ends.
struct ThreadTraffic {
  struct Held {
    std::shared_ptr<TrafficMeter> meter;
    TrafficMeter::Slot* slot;
  };
  std::vector<Held> held;
  ForkGuard fork_guard;

  ThreadTraffic() = default;
  ~ThreadTraffic() {
    TrafficMeter::recent_ = {};
    if (fork_guard.in_forked_child()) return;  // a thread of the parent may have held the lock
    for (const Held& each : held) each.meter->give_back(*each.slot);
  }
  ThreadTraffic(const ThreadTraffic&) = delete;
  ThreadTraffic& operator=(const ThreadTraffic&) = delete;
};

namespace {

thread_local ThreadTraffic thread_traffic;

}  // namespace

TrafficMeter::TrafficMeter() : id_(next_id()) {}

TrafficMeter::Place TrafficMeter::find_or_take() noexcept {
  auto& held = thread_traffic.held;
  auto known = std::find_if(held.begin(), held.end(), [&](const auto& each) { return each.meter.get() == this; });
  if (known == held.end()) {
    std::erase_if(held, [](const auto& each) { return each.meter->retired_.load(std::memory_order_relaxed); });
    const std::lock_guard lock(mutex_);
    try {
      held.reserve(held.size() + 1);
      free_.reserve(slots_.size() + 1);  // so that giving it back needs no memory
      if (free_.empty()) free_.push_back(&slots_.emplace_back());
      held.push_back({shared_from_this(), free_.back()});
    } catch (const std::bad_alloc&) {
      return {&common_, true};
    }
    free_.pop_back();
    known = std::prev(held.end());
  }
  recent_ = {id_, known->slot};
  return {known->slot, false};
}

void TrafficMeter::give_back(Slot& slot) noexcept {
  const std::lock_guard lock(mutex_);
  free_.push_back(&slot);  // what was counted in it stays
}

TrafficTotals TrafficMeter::totals() const {
  TrafficTotals totals;
  const auto add = [](auto& sums, const auto& numbers) {
    for (std::size_t i = 0; i < sums.size(); ++i) sums[i] += numbers[i].load(std::memory_order_relaxed);
  };
  const std::lock_guard lock(mutex_);
  const auto add_slot = [&](const Slot& slot) {
    add(totals.operations, slot.operations);
    add(totals.bytes, slot.bytes);
    add(totals.failures, slot.failures);
  };
  add_slot(common_);
  for (const Slot& slot : slots_) add_slot(slot);
  return totals;
}

}  // namespace fabric
}  // namespace dtr::inline v0
