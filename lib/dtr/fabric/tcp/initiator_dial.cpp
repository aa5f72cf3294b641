// The initiator connects, comes back after a break, and decides when a peer is dead.
#include <algorithm>
#include <cerrno>

#include "dtr/base/log.hpp"
#include "dtr/fabric/tcp/initiator.hpp"

namespace dtr::inline v0 {
namespace fabric::tcp {

namespace {

constexpr std::int64_t kMillisecond = 1'000'000;
constexpr std::int64_t kFirstPause = 5 * kMillisecond;
constexpr std::int64_t kLongestPause = 200 * kMillisecond;
constexpr std::int64_t kPatiencePerAddress = 1000 * kMillisecond;

}  // namespace

void Initiator::dial() noexcept {
  Dial step = Dial::waiting;
  {
    const std::lock_guard rx(rx_mutex_);
    if (phase_ != Phase::dialing || dialer_.busy()) return;
    retry_at_ = kNever;
    attempt_until_ = kNever;
    if (was_open_) {
      attempt_until_ = lost_since_ + to_ns(hub_.options.failure_detect);
    } else if (addresses_.size() > 1) {
      attempt_until_ = now_ns() + kPatiencePerAddress;
    }
    hub_.call_at(peer_, attempt_until_);
    step = dialer_.begin(addresses_[address_], peer_.id, peer_.dialed.fetch_add(1, std::memory_order_relaxed) + 1);
  }
  act_on(step);
}

void Initiator::act_on(Dial step) noexcept {
  if (step == Dial::waiting) return;
  Errc verdict = Errc::ok;
  std::string why;
  {
    const std::lock_guard rx(rx_mutex_);
    const std::lock_guard lock(mutex_);
    if (phase_ != Phase::dialing) return;
    if (step == Dial::open) {
      fd_ = dialer_.take();
      phase_ = Phase::greeting;
      write_blocked_ = false;
      refused_since_ = kNever;
      DTR_LOG_INFO("tcp: rank ", peer_.id, " connected at ", addresses_[address_].to_string());
      return;
    }
    const std::int64_t now = now_ns();
    why = why_ = dialer_.reason();
    if (step == Dial::fenced) {
      verdict = Errc::fenced;
    } else if (was_open_) {
      // Who listened there has gone, or another program has got the port: either way our peer is not there any more.
      const bool gone = step == Dial::refused || step == Dial::rejected;
      if (gone || now - lost_since_ >= to_ns(hub_.options.failure_detect)) verdict = Errc::peer_failed;
    } else {
      healable_ = healable_ || step == Dial::broken;
      rejected_ = rejected_ || step == Dial::rejected;
      refused_in_a_row_ = step == Dial::refused ? refused_in_a_row_ + 1 : 0;
      if (step != Dial::refused) {
        refused_since_ = kNever;
      } else if (refused_since_ == kNever) {
        refused_since_ = now;
      }
      address_ = (address_ + 1) % addresses_.size();
      if (address_ == 0) {  // all have been tried
        if (rejected_ && !healable_) verdict = Errc::handshake_rejected;
        if (refused_in_a_row_ >= addresses_.size() && now - refused_since_ >= to_ns(hub_.options.refused_for)) {
          verdict = Errc::peer_failed;
        }
        healable_ = rejected_ = false;
      }
    }
    if (verdict == Errc::ok) {
      const bool next_at_once = !was_open_ && address_ != 0;
      if (!next_at_once) retry_pause_ = std::clamp(2 * retry_pause_, kFirstPause, kLongestPause);
      retry_at_ = next_at_once ? 0 : now + retry_pause_;
      hub_.call_at(peer_, retry_at_);
    }
  }
  if (verdict != Errc::ok) give_up(verdict, why);
}

void Initiator::connection_lost(const std::string& why, int error) noexcept {
  DTR_LOG_INFO("tcp: the connection to rank ", peer_.id, " broke: ", why);
  {
    const std::lock_guard rx(rx_mutex_);
    const std::lock_guard lock(mutex_);
    if (phase_ != Phase::open && phase_ != Phase::greeting) return;
    drop_connection();
    phase_ = Phase::dialing;
    // A peer that lets us in and hangs up at once is not back.
    if (lost_since_ == kNever) lost_since_ = now_ns();
    why_ = why;
  }
  end_open_atomics();
  // The kernel has tried for as long as we would: no need to knock again.
  if (error == ETIMEDOUT || error == EHOSTUNREACH) return give_up(Errc::peer_failed, why);
  dial();
}

std::int64_t Initiator::dial_on_time(std::int64_t now) noexcept {
  bool dial_now = false;
  Dial step = Dial::waiting;
  Errc verdict = Errc::ok;
  std::string why;
  std::int64_t next = kNever;
  {
    const std::lock_guard rx(rx_mutex_);
    if (phase_ == Phase::over || phase_ == Phase::open) return kNever;
    if (!was_open_) {
      if (now >= connect_deadline_) {
        verdict = dialer_.connected() || phase_ == Phase::greeting ? Errc::timed_out : Errc::unreachable;
        why =
            "no connection before the deadline; " +
            (dialer_.reason().empty() ? addresses_[address_].to_string() + ": no answer" : "last: " + dialer_.reason());
      }
      next = connect_deadline_;
    }
    if (verdict == Errc::ok && phase_ == Phase::dialing) {
      if (!dialer_.busy()) {
        dial_now = now >= retry_at_;
        if (!dial_now) next = std::min(next, retry_at_);
      } else if (!dialer_.connected()) {
        // Once the connection stands the host is alive; a process that is stopped may take its time.
        if (now >= attempt_until_) {
          step = dialer_.no_answer();
        } else {
          next = std::min(next, attempt_until_);
        }
      }
    }
  }
  if (verdict != Errc::ok) {
    give_up(verdict, why);
    return kNever;
  }
  if (dial_now) dial();
  act_on(step);
  return next;
}

void Initiator::give_up(Errc code, const std::string& why) noexcept {
  bool nothing_lost = false;
  {
    const std::lock_guard lock(mutex_);
    nothing_lost = leaving() && queue_.size() <= 1;  // the goodbye itself
  }
  if (nothing_lost) return end(Errc::closed, why);
  end(code, why);
  if (code == Errc::peer_failed || code == Errc::fenced) hub_.peer_down(peer_, code, why);
}

}  // namespace fabric::tcp
}  // namespace dtr::inline v0
