#include "dtr/fabric/detail/peer.hpp"

#include <algorithm>
#include <new>

namespace dtr::inline v0 {
namespace fabric {

namespace {

constexpr auto kRetry = std::chrono::microseconds(200);

void tell(const WorkRequest& request, Status status) noexcept {
  if (request.completion != nullptr) request.completion->finish(1, status);
}

}  // namespace

bool Fabric::Peer::set_down(Errc code, std::string_view reason) noexcept {
  const std::lock_guard lock(mutex);
  if (down.load(std::memory_order_relaxed) != Errc::ok) return false;
  try {
    down_reason_ = reason;
  } catch (const std::bad_alloc&) {
    down_reason_.clear();
  }
  down.store(code, std::memory_order_release);
  return true;
}

std::string Fabric::Peer::down_reason() const {
  const std::lock_guard lock(mutex);
  return down_reason_;
}

Errc Fabric::Peer::keep(std::span<const WorkRequest> requests, Deadline deadline) noexcept {
  const std::lock_guard lock(mutex);
  if (const Errc code = down.load(std::memory_order_relaxed); code != Errc::ok) return code;
  const std::size_t before = backlog_.size();
  try {
    for (const WorkRequest& request : requests) {
      Waiting& waiting = backlog_.emplace_back(Waiting{request, deadline, {}});
      if (request.opcode == Opcode::send && request.length > 0) {
        waiting.payload.assign(request.payload, request.payload + request.length);
        waiting.request.payload = waiting.payload.data();
      }
    }
  } catch (const std::bad_alloc&) {
    backlog_.erase(backlog_.begin() + static_cast<std::ptrdiff_t>(before), backlog_.end());
    return Errc::resource_exhausted;
  }
  has_backlog.store(true, std::memory_order_release);
  return Errc::ok;
}

int Fabric::Peer::drain_backlog() noexcept {
  int moved = 0;
  if (!has_backlog.load(std::memory_order_acquire)) return moved;
  const auto now = Deadline::Clock::now();
  moved += static_cast<int>(
      end_if([&](const Waiting& waiting) { return waiting.deadline.at() <= now; }, {.code = Errc::timed_out}));
  while (true) {
    WorkRequest ended;
    Status status{};
    {
      const std::lock_guard lock(mutex);
      if (backlog_.empty()) {
        has_backlog.store(false, std::memory_order_release);
        return moved;
      }
      const Waiting& first = backlog_.front();
      const PostResult result =
          is_in_vain(first.request)
              ? PostResult{.accepted = 0, .finished = 0, .status = {.code = Errc::cancelled}}
              : channel.load(std::memory_order_acquire)->post(std::span(&first.request, 1), first.deadline);
      if (result.accepted == 0 && result.status.code == Errc::again) return moved;
      ended = first.request;
      status = result.status;
      if (result.accepted == 1 && result.finished == 0) ended.completion = nullptr;  // the channel tells it
      backlog_.pop_front();
    }
    ++moved;
    tell(ended, status);  // without the lock: a continuation may submit again
  }
}

template <class Ends>
std::uint32_t Fabric::Peer::end_if(Ends&& ends, Status status) noexcept {
  std::deque<Waiting> ended;
  {
    const std::lock_guard lock(mutex);
    if (std::none_of(backlog_.begin(), backlog_.end(), ends)) return 0;
    const auto first =
        std::stable_partition(backlog_.begin(), backlog_.end(), [&](const Waiting& waiting) { return !ends(waiting); });
    std::move(first, backlog_.end(), std::back_inserter(ended));
    backlog_.erase(first, backlog_.end());
    // A moved vector keeps its address, so payload pointers stay right on both sides.
  }
  for (const Waiting& waiting : ended) tell(waiting.request, status);
  return static_cast<std::uint32_t>(ended.size());
}

void Fabric::Peer::end_backlog(Status status) noexcept {
  end_if([](const Waiting&) { return true; }, status);
}

std::uint32_t Fabric::Peer::cancel_backlog(Completion& completion) noexcept {
  return end_if([&](const Waiting& waiting) { return waiting.request.completion == &completion; },
                {.code = Errc::cancelled});
}

int Fabric::Backlog::progress(int /*budget*/) noexcept {
  int moved = 0;
  for (const auto& peer : peers_) moved += peer->drain_backlog();
  return moved;
}

Deadline::Clock::time_point Fabric::Backlog::next_deadline() const noexcept {
  for (const auto& peer : peers_) {
    if (peer->has_backlog.load(std::memory_order_acquire)) return Deadline::Clock::now() + kRetry;
  }
  return Deadline::Clock::time_point::max();
}

}  // namespace fabric
}  // namespace dtr::inline v0
