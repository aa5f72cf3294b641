#include "dtr/fabric/detail/peer.hpp"

#include <algorithm>
#include <new>
#include <utility>

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

std::string Fabric::Peer::connect_failure() const {
  const std::lock_guard lock(mutex);
  return connect_failure_;
}

void Fabric::Peer::set_connect_failure(std::string_view reason) noexcept {
  const std::lock_guard lock(mutex);
  try {
    connect_failure_ = reason;
  } catch (const std::bad_alloc&) {
    connect_failure_.clear();
  }
}

Errc Fabric::Peer::keep(std::span<const WorkRequest> requests, Deadline deadline) noexcept {
  const std::lock_guard lock(mutex);
  if (const Errc code = down.load(std::memory_order_relaxed); code != Errc::ok) return code;
  std::size_t before = 0;
  try {
    if (backlog_ == nullptr) backlog_ = std::make_unique<std::deque<Waiting>>();
    before = backlog_->size();
    for (const WorkRequest& request : requests) {
      Waiting& waiting = backlog_->emplace_back(Waiting{request, deadline, {}});
      if (request.opcode == Opcode::send && request.length > 0) {
        waiting.payload.assign(request.payload, request.payload + request.length);
        waiting.request.payload = waiting.payload.data();
      }
    }
  } catch (const std::bad_alloc&) {
    if (backlog_ != nullptr) backlog_->erase(backlog_->begin() + static_cast<std::ptrdiff_t>(before), backlog_->end());
    return Errc::resource_exhausted;
  }
  if (!has_backlog.exchange(true, std::memory_order_acq_rel)) waiters_.add(*this);
  return Errc::ok;
}

int Fabric::Peer::drain_backlog() noexcept {
  int moved = 0;
  if (!has_backlog.load(std::memory_order_acquire)) return moved;
  const auto now = Deadline::Clock::now();
  moved += static_cast<int>(
      end_if([&](const Waiting& waiting) { return waiting.deadline.at() <= now; }, {.code = Errc::timed_out}));
  Batch batch;
  while (true) {
    PostResult result;
    std::size_t ended = 0;  // of the front of the batch: those that have finished, then one that was refused
    {
      const std::lock_guard lock(mutex);
      if (backlog_->empty()) {
        has_backlog.store(false, std::memory_order_release);
        return moved;
      }
      Channel* way = channel.load(std::memory_order_acquire);
      const std::size_t count = gather(batch, way->posts_silently() ? kBatch : 1);
      if (count > 0) {
        result = way->post(std::span(batch).first(count), backlog_->front().deadline);
      } else {
        batch.front() = backlog_->front().request;
        result.status.code = Errc::cancelled;
      }
      std::size_t gone = result.accepted;
      ended = result.finished;
      const bool refused = gone < std::max<std::size_t>(count, 1) && result.status.code != Errc::again;
      if (refused) batch[ended++] = batch[gone++];  // those between are told by the channel
      if (gone == 0) return moved;
      backlog_->erase(backlog_->begin(), backlog_->begin() + static_cast<std::ptrdiff_t>(gone));
      moved += static_cast<int>(gone);
    }
    // Without the lock: a continuation may submit again.
    for (std::size_t i = 0; i < ended; ++i) tell(batch[i], i < result.finished ? Status{} : result.status);
    if (result.status.code == Errc::again) return moved;
  }
}

std::size_t Fabric::Peer::gather(Batch& batch, std::size_t most) const noexcept {
  std::size_t count = 0;
  for (auto waiting = backlog_->begin(); waiting != backlog_->end() && count < most; ++waiting) {
    if (is_in_vain(waiting->request) || waiting->deadline.at() != backlog_->front().deadline.at()) break;
    batch[count++] = waiting->request;
  }
  return count;
}

template <class Ends>
std::uint32_t Fabric::Peer::end_if(Ends&& ends, Status status) noexcept {
  std::vector<Waiting> ended;
  {
    const std::lock_guard lock(mutex);
    if (backlog_ == nullptr || std::none_of(backlog_->begin(), backlog_->end(), ends)) return 0;
    const auto first = std::stable_partition(backlog_->begin(), backlog_->end(),
                                             [&](const Waiting& waiting) { return !ends(waiting); });
    std::move(first, backlog_->end(), std::back_inserter(ended));
    backlog_->erase(first, backlog_->end());
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

void Fabric::Waiters::append(Peer& peer) noexcept {
  peer.next_listed = nullptr;
  if (last_ != nullptr) {
    last_->next_listed = &peer;
  } else {
    first_.store(&peer, std::memory_order_release);
  }
  last_ = &peer;
}

void Fabric::Waiters::add(Peer& peer) noexcept {
  const std::lock_guard lock(lock_);
  if (std::exchange(peer.listed, true)) return;
  append(peer);
}

int Fabric::Waiters::drain() noexcept {
  if (empty()) return 0;
  Peer* next = nullptr;
  {
    const std::lock_guard lock(lock_);
    next = first_.exchange(nullptr, std::memory_order_relaxed);
    last_ = nullptr;
  }
  int moved = 0;
  while (next != nullptr) {
    Peer& peer = *std::exchange(next, next->next_listed);
    moved += peer.drain_backlog();
    // While it is listed nobody adds it, so a backlog that begins from here on is seen by this look or added anew.
    const std::lock_guard lock(lock_);
    peer.listed = peer.has_backlog.load(std::memory_order_acquire);
    if (peer.listed) append(peer);
  }
  return moved;
}

int Fabric::Backlog::progress(int /*budget*/) noexcept { return waiters_.drain(); }

Deadline::Clock::time_point Fabric::Backlog::next_deadline() const noexcept {
  return waiters_.empty() ? Deadline::Clock::time_point::max() : Deadline::Clock::now() + kRetry;
}

}  // namespace fabric
}  // namespace dtr::inline v0
