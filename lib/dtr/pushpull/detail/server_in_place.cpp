// A worker of this process: its tensors are read and written where they are, on progress only.
#include <cstring>

#include "dtr/base/clock.hpp"
#include "dtr/pushpull/detail/server_core.hpp"

namespace dtr::inline v0 {
namespace pushpull {

bool ServerCore::readable(const ServerFragment& fragment) noexcept {
  const std::lock_guard lock(mutex_);
  const WorkerState& state = workers_[static_cast<std::size_t>(fragment.worker)];
  return !fragment.lost && !broken_ && !state.owes_broken && !state.standing.gone &&
         state.standing.sessions == fragment.seq >> kSessionShift;
}

std::byte* ServerCore::direct(ServerFragment& to, std::size_t pull) noexcept {
  const std::lock_guard lock(mutex_);
  const WorkerState& state = workers_[static_cast<std::size_t>(to.worker)];
  if (to.muted || to.failure || state.standing.gone || state.owes_broken || broken_) return nullptr;
  to.answering = true;
  if (to.responded_ns == 0) to.responded_ns = monotonic_ns();
  return to.pulls[pull].direct;
}

Result<void> ServerCore::keep(ServerFragment& fragment, ServerFragment::Push& push) {
  WorkerState& state = workers_[static_cast<std::size_t>(fragment.worker)];
  auto piece = state.arena.allocate(push.entry.bytes);
  if (!piece) return fail(std::move(piece.error()));
  std::byte* const to = piece->region->data() + piece->offset;
  std::memcpy(to, push.data, push.entry.bytes);
  const std::lock_guard lock(mutex_);
  push.entry.slot = add_slot({.worker = fragment.worker,
                              .piece = *piece,
                              .bytes = push.entry.bytes,
                              .part = {push.entry.key, push.entry.offset},
                              .told = false,
                              .unwanted = true,
                              .user = &fragment});
  push.region = piece->region;
  push.region_offset = piece->offset;
  push.data = to;
  push.in_place = false;
  return {};
}

/// The worker gets its tensors back before the round is over: what is still needed of them is copied.
void ServerCore::keep_pushes(int worker, std::optional<std::uint64_t> round) {
  std::vector<ServerFragment*> open;
  {
    const std::lock_guard lock(mutex_);
    const WorkerState& state = workers_[static_cast<std::size_t>(worker)];
    const std::uint64_t seq = state.standing.sessions << kSessionShift | round.value_or(0);
    for (ServerFragment* fragment : state.live) {
      if (fragment->in_place && !fragment->responded && (!round || fragment->seq == seq)) open.push_back(fragment);
    }
  }
  for (ServerFragment* fragment : open) {  // its consumer is on progress, as this is
    if (!readable(*fragment)) continue;
    for (ServerFragment::Push& push : fragment->pushes) {
      if (push.in_place && !keep(*fragment, push)) fragment->lost = true;  // whoever needs it gets an Error
    }
  }
}

}  // namespace pushpull
}  // namespace dtr::inline v0
