#include "dtr/fabric/tcp/initiator.hpp"

#include <algorithm>
#include <utility>

#include "dtr/fabric/checks.hpp"

namespace dtr::inline v0 {
namespace fabric::tcp {

namespace {

constexpr std::size_t kBytesAtOnce = 4 << 20;  // then somebody else may have the thread
constexpr std::int64_t kSilenceLook = 250'000'000;

}  // namespace

Initiator::Initiator(Hub& hub, PeerRecord& peer, std::vector<Endpoint> addresses, Deadline deadline)
    : hub_(hub),
      peer_(peer),
      addresses_(std::move(addresses)),
      connect_deadline_(to_ns(deadline.at())),
      dialer_(hub, *this),
      queue_(hub.options.queue_depth, hub.options.message_room()) {
  queue_.report_to(refusals_, *hub_.context.traffic, hub_.options.eager_bytes);
}

void Initiator::start() noexcept {
  {
    const std::lock_guard rx(rx_mutex_);
    retry_at_ = 0;
  }
  hub_.call_at(peer_, 0);  // progress dials
}

Errc Initiator::check(const WorkRequest& request) const noexcept {
  if (const Errc code = check_request(request, hub_.options.eager_bytes); code != Errc::ok) return code;
  if (!request.moves_memory() || request.local == nullptr || request.remote == nullptr) return Errc::ok;
  if (request.local->options().kind == MemoryKind::cuda || request.remote->key.kind == MemoryKind::cuda) {
    return Errc::unsupported;  // staged above
  }
  return request.bytes() > kMaxTransfer ? Errc::out_of_range : Errc::ok;
}

PostResult Initiator::post(std::span<const WorkRequest> requests, Deadline deadline) noexcept {
  PostResult result;
  const std::int64_t deadline_ns = to_ns(deadline.at());
  const std::lock_guard lock(mutex_);
  if (end_code_ != Errc::ok) {
    result.status.code = end_code_;
    return result;
  }
  if (!was_open_) {
    result.status.code = Errc::again;
    return result;
  }
  for (const WorkRequest& request : requests) {
    result.status.code = check(request);
    if (result.status.code == Errc::ok && !queue_.push(request, deadline_ns)) result.status.code = Errc::again;
    if (result.status.code != Errc::ok) {
      if (result.status.code != Errc::again) hub_.context.traffic->count_failure(result.status.code);
      result.status = refusals_.remember(request, result.status, hub_.options.eager_bytes);
      break;
    }
    hub_.context.traffic->count(request);
    ++result.accepted;
  }
  if (result.accepted == 0) return result;
  hub_.call_at(peer_, deadline_ns);
  if (!look_arranged_) {
    look_arranged_ = true;
    hub_.call_at(peer_, now_ns() + kSilenceLook);
  }
  if (!write_blocked_) pump();
  return result;
}

void Initiator::pump() noexcept {
  if (phase_ != Phase::open) return;
  std::size_t budget = kBytesAtOnce;
  while (true) {
    if (outbox_.empty()) {
      queue_.flushed();
      if (!queue_.fill(outbox_)) return watch(false);
    }
    int error = 0;
    const Flushed flushed = outbox_.flush(fd_.get(), budget, error);
    if (flushed == Flushed::drained) continue;
    // A failed socket is left to receive(): it hears of it too, on the progress thread, where it can be handled.
    return watch(flushed == Flushed::blocked);
  }
}

void Initiator::watch(bool writable) noexcept {
  if (writable == write_blocked_) return;
  write_blocked_ = writable;
  hub_.poller.change(fd_.get(), writable ? EPOLLIN | EPOLLOUT : EPOLLIN, *this);
}

std::uint32_t Initiator::cancel(Completion& completion) noexcept {
  Endings endings;
  std::uint32_t ended = 0;
  {
    const std::lock_guard lock(mutex_);
    ended = queue_.cancel(completion, endings);
  }
  endings.deliver();
  return ended;
}

bool Initiator::quiesced() const noexcept {
  const std::lock_guard lock(mutex_);
  return queue_.lingering() == 0;
}

void Initiator::drop_connection() noexcept {
  if (fd_) {
    hub_.poller.forget(fd_.get());
    fd_.reset();
  }
  outbox_.clear();
  stream_.forget();
  queue_.disconnected();
  data_pending_ = false;
  stopped_for_room_ = false;
  write_blocked_ = false;
}

void Initiator::end_open_atomics() noexcept {
  bool all = false;
  while (!all) {
    Endings endings;
    {
      const std::lock_guard lock(mutex_);
      all = queue_.end_atomics(endings);
    }
    endings.deliver();
  }
}

void Initiator::reset() noexcept {
  {
    const std::lock_guard rx(rx_mutex_);
    const std::lock_guard lock(mutex_);
    if (phase_ != Phase::open && phase_ != Phase::greeting) return;  // no connection: quiesced already
    drop_connection();
    phase_ = Phase::dialing;
    lost_since_ = now_ns();
    retry_at_ = 0;
  }
  hub_.call_at(peer_, 0);  // progress dials
  end_open_atomics();
}

void Initiator::close() noexcept {
  closing_.store(true, std::memory_order_release);
  {
    const std::lock_guard lock(mutex_);
    if (end_code_ != Errc::ok) return;
    if (was_open_) {
      end_code_ = Errc::closed;
      why_ = "the channel was closed";
      queue_.push_goodbye();
      if (!write_blocked_) pump();
      return;
    }
  }
  end(Errc::closed, "closed before it was connected");
}

void Initiator::abort(Errc code) noexcept { end(code, "given up by this process"); }

void Initiator::detach() noexcept {
  {
    const std::lock_guard lock(mutex_);
    if (phase_ == Phase::open && end_code_ == Errc::ok && queue_.empty() && outbox_.empty()) {
      closing_.store(true, std::memory_order_release);
      queue_.push_goodbye();
      pump();
    }
  }
  end(Errc::closed, "the channel was destroyed");
  detached_.store(true, std::memory_order_release);
}

void Initiator::end(Errc code, const std::string& why) noexcept {
  {
    const std::lock_guard rx(rx_mutex_);
    const std::lock_guard lock(mutex_);
    if (phase_ == Phase::over) return;
    phase_ = Phase::over;
    drop_connection();
    dialer_.hang_up();
    retry_at_ = attempt_until_ = kNever;
    end_code_ = code;
    why_ = why;
  }
  const bool target_gone = code == Errc::peer_failed || code == Errc::peer_left;
  bool all = false;
  while (!all) {
    Endings endings;
    {
      const std::lock_guard lock(mutex_);
      all = queue_.fail_all(code, target_gone, endings);
    }
    endings.deliver();
  }
  state_.store(code == Errc::closed ? ChannelState::closed : ChannelState::failed, std::memory_order_release);
}

std::int64_t Initiator::on_time(std::int64_t now) noexcept {
  std::int64_t next = kNever;
  bool all = false;
  while (!all) {
    Endings endings;
    {
      const std::lock_guard lock(mutex_);
      all = queue_.expire(now, endings);
      if (all) next = queue_.earliest();
    }
    endings.deliver();
  }
  bool vanished = false;
  {
    const std::lock_guard lock(mutex_);
    look_arranged_ = phase_ == Phase::open && queue_.has_unanswered();
    if (look_arranged_) {
      vanished = silence_.vanished(other_end_owes_answer(fd_.get()), now, to_ns(hub_.options.failure_detect));
      next = std::min(next, now + kSilenceLook);
    }
  }
  if (vanished) {
    give_up(Errc::peer_failed,
            "its host has not answered for " + std::to_string(hub_.options.failure_detect.count()) + " ms");
    return kNever;
  }
  return std::min(next, dial_on_time(now));
}

std::string Initiator::path() const {
  const std::lock_guard rx(rx_mutex_);
  return "tcp " + addresses_[address_].to_string();
}

std::string Initiator::explain(const Status& status) const {
  const std::lock_guard lock(mutex_);
  if (status.code == end_code_ && !why_.empty()) return why_;
  if (std::string details = refusals_.explain(status); !details.empty()) return details;
  switch (status.code) {
    case Errc::timed_out:
      if (phase_ == Phase::open) return "no acknowledgement before the deadline";
      return "not connected before the deadline" + (why_.empty() ? std::string() : " (" + why_ + ")");
    default:
      return words_for(status.code);
  }
}

}  // namespace fabric::tcp
}  // namespace dtr::inline v0
