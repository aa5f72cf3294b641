// Where pushes land: slots in memory that one worker may write into, handed out on request, and memory of the consumer.
#include <algorithm>
#include <string>

#include "dtr/pushpull/detail/server_core.hpp"
#include "dtr/pushpull/detail/server_tell.hpp"

namespace dtr::inline v0 {
namespace pushpull {

namespace {

constexpr std::uint64_t kMostBytes = std::uint64_t{1} << 46;  ///< of a slot; beyond it is nonsense

}  // namespace

/// With the lock.
std::uint32_t ServerCore::add_slot(Slot slot) {
  slot.live = true;
  WorkerState& state = workers_[static_cast<std::size_t>(slot.worker)];
  auto& numbers = state.bindings[slot.part];
  numbers.reserve(numbers.size() + 1);
  std::uint32_t number = 0;
  if (idle_slots_.empty()) {
    number = static_cast<std::uint32_t>(slots_.size());
    idle_slots_.reserve(slots_.size() + 1);
    slots_.push_back(slot);
  } else {
    number = idle_slots_.back();
    idle_slots_.pop_back();
    slots_[number] = slot;
  }
  numbers.push_back(number);
  const bool lendable =
      !slot.landing && std::find(lendable_.begin(), lendable_.end(), slot.piece.region) == lendable_.end();
  if (lendable) lendable_.push_back(slot.piece.region);
  return number;
}

/// With the lock. Nobody uses it, and the worker has let go of it.
void ServerCore::drop_slot(WorkerState& state, std::uint32_t number) {
  Slot& slot = slots_[number];
  slot.live = false;
  const auto binding = state.bindings.find(slot.part);
  if (binding != state.bindings.end()) {
    auto& numbers = binding->second;
    numbers.erase(std::remove(numbers.begin(), numbers.end(), number), numbers.end());
    if (numbers.empty()) state.bindings.erase(binding);
  }
  if (!slot.landing) state.arena.release(slot.piece, slot.bytes);
  idle_slots_.push_back(number);
}

/// With the lock.
void ServerCore::let_go_of_slots(ServerFragment& fragment) noexcept {
  for (const ServerFragment::Push& push : fragment.pushes) {
    if (!is_slot(push.entry.slot)) continue;
    Slot& slot = slots_[push.entry.slot];
    if (slot.user != &fragment) continue;
    slot.user = nullptr;
    if (slot.unwanted) drop_slot(workers_[static_cast<std::size_t>(fragment.worker)], push.entry.slot);
  }
}

/// Slots of an earlier Worker. What is still read goes when its user lets go of it; what the Worker may still write into
/// is not used again.
void ServerCore::drop_slots(WorkerState& state) {
  const std::lock_guard lock(mutex_);
  while (!state.bindings.empty()) {
    const auto binding = state.bindings.begin();
    const std::vector<std::uint32_t> numbers = std::move(binding->second);
    state.bindings.erase(binding);
    for (const std::uint32_t number : numbers) {
      if (!state.unclean && slots_[number].user == nullptr) {
        drop_slot(state, number);
      } else {
        slots_[number].live = false;
        if (!state.unclean) slots_[number].unwanted = true;
      }
    }
  }
  state.regions.clear();
  state.cancelled.clear();
  state.unclean = false;
}

void ServerCore::take_bind(int worker, std::span<const std::byte> payload) {
  const auto bind = front<Bind>(payload);
  if (!bind || bind->bytes == 0 || bind->bytes > kMostBytes || bind->offset > kMostBytes) {
    return expel(worker, {.code = Errc::protocol_error, .message = "it sent a malformed bind"});
  }
  WorkerState& state = workers_[static_cast<std::size_t>(worker)];
  const PartId part{bind->key, bind->offset};
  Slot slot{.worker = worker, .bytes = bind->bytes, .part = part};
  std::optional<Error> refusal;
  const auto refuse = [&](Errc code, std::string words) { refusal = Error{.code = code, .message = std::move(words)}; };
  {
    const std::lock_guard lock(mutex_);
    const auto landing = state.landings.find(bind->key);
    slot.landing = landing != state.landings.end();
    std::uint32_t same_kind = 0;
    if (const auto known = state.bindings.find(part); known != state.bindings.end()) {
      for (const std::uint32_t number : known->second) {
        const Slot& other = slots_[number];
        if (!other.told) continue;
        same_kind += other.landing == slot.landing ? 1 : 0;
        if (other.bytes == bind->bytes) continue;
        refuse(Errc::invalid_argument,
               "it has slots of " + std::to_string(other.bytes) + " bytes, not " + std::to_string(bind->bytes));
      }
    }
    if (!refusal && same_kind >= (slot.landing ? 1 : slots_each_)) {
      refuse(Errc::resource_exhausted, "it has all its slots");
    }
    if (slot.landing) {
      const Landing& place = landing->second;
      if (bind->offset > place.bytes || bind->bytes > place.bytes - bind->offset) {
        refuse(Errc::invalid_argument, "it pushes up to byte " + std::to_string(bind->offset + bind->bytes) +
                                           ", the server's registered buffer has " + std::to_string(place.bytes));
      }
      slot.piece = {place.region, place.offset + bind->offset};
    }
  }
  if (!refusal && !slot.landing) {
    auto piece = state.arena.allocate(bind->bytes);
    if (piece) {
      slot.piece = *piece;
    } else {
      refusal = std::move(piece.error());
    }
  }
  if (refusal) {
    return tell(worker,
                BindFailed{.key = bind->key, .offset = bind->offset, .code = static_cast<std::int32_t>(refusal->code)},
                refusal->message);
  }
  std::uint32_t number = 0;
  {
    const std::lock_guard lock(mutex_);
    number = add_slot(slot);
  }
  tell(worker, Bound{.key = bind->key,
                     .offset = bind->offset,
                     .slot_offset = slot.piece.offset,
                     .slot = number,
                     .memory = slot.piece.region->key()});
}

void ServerCore::take_unbind(int worker, std::span<const std::byte> payload) {
  const auto unbind = front<Unbind>(payload);
  if (!unbind) return expel(worker, {.code = Errc::protocol_error, .message = "it sent a malformed unbind"});
  const std::lock_guard lock(mutex_);
  WorkerState& state = workers_[static_cast<std::size_t>(worker)];
  const auto known = state.bindings.find({unbind->key, unbind->offset});
  if (known == state.bindings.end()) return;
  const std::vector<std::uint32_t> numbers = known->second;
  for (const std::uint32_t number : numbers) {
    if (slots_[number].user == nullptr) drop_slot(state, number);
  }
}

void ServerCore::take_give_back(int worker, std::span<const std::byte> payload) {
  const auto back = front<GiveBack>(payload);
  bool good = false;
  if (back) {
    const std::lock_guard lock(mutex_);
    if (back->slot < slots_.size()) {
      const Slot& slot = slots_[back->slot];
      good = slot.live && slot.told && slot.worker == worker && slot.user == nullptr;
      if (good) drop_slot(workers_[static_cast<std::size_t>(worker)], back->slot);
    }
  }
  if (!good) expel(worker, {.code = Errc::protocol_error, .message = "it gave back a slot that is not its own"});
}

void ServerCore::set_landing(int worker, std::uint64_t key, const Landing& landing) {
  {
    const std::lock_guard lock(mutex_);
    WorkerState& state = workers_[static_cast<std::size_t>(worker)];
    state.landings[key] = landing;
  }
  tell(worker, Rebind{.key = key});
}

void ServerCore::clear_landing(int worker, std::uint64_t key) {
  {
    const std::lock_guard lock(mutex_);
    WorkerState& state = workers_[static_cast<std::size_t>(worker)];
    state.landings.erase(key);
    for (std::uint32_t number = 0; number < slots_.size(); ++number) {
      Slot& slot = slots_[number];
      if (!slot.live || !slot.landing || slot.told || slot.worker != worker || slot.part.key != key) continue;
      slot.unwanted = true;
      if (slot.user == nullptr) drop_slot(state, number);
    }
  }
  tell(worker, Rebind{.key = key});
}

bool ServerCore::landed(const Region* region, std::uint64_t offset, std::uint64_t bytes) noexcept {
  const std::lock_guard lock(mutex_);
  return std::any_of(slots_.begin(), slots_.end(), [&](const Slot& slot) {
    // A worker that is dead writes no more; a request of it may still be open.
    const bool held =
        slot.user != nullptr || (slot.live && !workers_[static_cast<std::size_t>(slot.worker)].standing.gone);
    return held && slot.landing && slot.piece.region == region && slot.piece.offset >= offset &&
           slot.piece.offset < offset + bytes;
  });
}

}  // namespace pushpull
}  // namespace dtr::inline v0
