// A link as a whole: its channel, its look around, its words.
#include "dtr/fabric/verbs/link.hpp"

#include <algorithm>
#include <exception>
#include <utility>

namespace dtr::inline v0 {
namespace fabric::verbs {

namespace {

constexpr int kMostShortages = 9;  // with the pauses between them, about a second

}  // namespace

Link::Link(Hub& hub, PeerId peer)
    : hub_(hub), peer_(peer), held_(1), late_(1), again_data_(1), again_messages_(1), results_(kResults) {}

Link::~Link() = default;

bool Link::attach(std::span<const std::byte> address, std::int64_t connect_deadline) {
  auto operations = std::make_unique<OperationRing>(hub_.options.queue_depth);
  FixedQueue<std::uint64_t> held(2 * std::size_t{hub_.options.queue_depth});
  FixedQueue<std::uint64_t> late(2 * std::size_t{hub_.options.queue_depth});
  std::vector<std::byte> given(address.begin(), address.end());
  {
    const std::lock_guard lock(lock_);
    if (operations_ != nullptr) return false;
    operations_ = std::move(operations);
    held_ = std::move(held);
    late_ = std::move(late);
    attach_deadline_ = connect_deadline;
    given_address_ = std::move(given);
    attached_.store(true, std::memory_order_release);
    if (end_code_ != Errc::ok) return true;  // it finds out
    if (open_rails_ > 0) state_.store(ChannelState::open, std::memory_order_release);
  }
  hub_.call_at(0);
  return true;
}

void Link::take_address() {
  std::vector<std::byte> given;
  {
    const std::lock_guard lock(lock_);
    given.swap(given_address_);
  }
  if (given.empty()) return;
  wanted_ = true;
  if (their_) return;
  auto address = Address::decode(given);
  if (!address) return give_up(Errc::protocol_error, address.error().message);
  introduce(std::move(*address), {});
}

int Link::drive(std::int64_t now) {
  next_time_ = kNever;
  if (over_) {
    // Only the queue pairs' ends are left.
    for (const auto& rail : rails_) {
      if (rail->state == Rail::State::draining && !rail->at_rest(now)) {
        next_time_ = std::min(next_time_, now + 1'000'000);
      } else if (rail->state != Rail::State::idle) {
        bury(*rail);
      }
    }
    return 0;
  }
  if (lost_words) give_up(Errc::resource_exhausted, "no memory for a control message");
  if (fence_wanted_.exchange(false, std::memory_order_acq_rel)) {
    peer_is_down(Errc::peer_failed, "this process has declared the peer failed");
  }
  if (!over_ && attached_.load(std::memory_order_acquire)) take_address();
  if (over_) return 1;
  if (reset_wanted_.exchange(false, std::memory_order_acq_rel)) {
    for (const auto& rail : rails_) fault(*rail, 0, "reset by this process");
  }
  int handled = 0;
  for (const auto& rail : rails_) handled += drive_rail(*rail, now);
  if (over_) return handled;

  Endings endings;
  bool closed = false;
  {
    const std::lock_guard lock(lock_);
    pump(endings);
    if (operations_ != nullptr) operations_->drop_settled();
    closed = closing_ && end_code_ == Errc::ok && (operations_ == nullptr || operations_->empty());
  }
  endings.deliver();
  if (closed) end_all(Errc::closed, "the channel was closed");
  next_time_ = std::min(next_time_, expire(now));
  judge_connecting(now);
  judge_reach(now);
  return handled;
}

void Link::judge_connecting(std::int64_t now) {
  if (state() != ChannelState::connecting || !attached_.load(std::memory_order_acquire)) return;
  if (now < attach_deadline_ && shortages_ < kMostShortages) {
    next_time_ = std::min(next_time_, attach_deadline_);
    return;
  }
  std::string why;
  Errc code = Errc::unreachable;
  {
    const std::lock_guard words(words_mutex_);
    why = "not connected before the deadline";
    if (!shortage_.empty()) {
      code = Errc::resource_exhausted;
      why = shortage_;
    } else if (rails_.empty()) {
      why = "no pair of ports of the two ranks has addresses that reach each other";
    } else if (!last_fault_.empty()) {
      why += " (" + last_fault_ + ")";
    }
  }
  end_all(code, why);
}

void Link::judge_reach(std::int64_t now) {
  if (unreachable_since_ == kNever || open_rails_ > 0) return;
  const std::int64_t limit = unreachable_since_ + to_ns(hub_.options.failure_detect);
  if (now < limit) {
    next_time_ = std::min(next_time_, limit);
    return;
  }
  std::string why;
  {
    const std::lock_guard words(words_mutex_);
    why = "no rail reaches it: " + last_fault_;
  }
  give_up(Errc::peer_failed, why);
}

void Link::fence() noexcept {
  fence_wanted_.store(true, std::memory_order_release);
  hub_.call_at(0);
}

void Link::reset() noexcept {
  if (shut_.load(std::memory_order_acquire)) return;
  end_atomics();
  reset_wanted_.store(true, std::memory_order_release);
  hub_.call_at(0);
}

void Link::close() noexcept {
  if (shut_.load(std::memory_order_acquire)) return;
  {
    const std::lock_guard lock(lock_);
    closing_ = true;
  }
  hub_.call_at(0);  // progress closes it once nothing is open
}

void Link::abort(Errc code) noexcept {
  end_all(code, "given up by this process");
  reset();  // what was under way must come to rest
}

void Link::detach() noexcept { end_all(Errc::closed, "the channel was destroyed"); }

// --- words ---

void Link::keep_words(std::string& place, std::string_view words) const noexcept {
  const std::lock_guard lock(words_mutex_);
  try {
    place = words;
  } catch (const std::exception&) {
    place.clear();  // the code alone has to do
  }
}

std::string Link::path() const {
  const std::lock_guard words(words_mutex_);
  return path_.empty() ? "verbs, not connected" : path_;
}

std::string Link::explain(const Status& status) const {
  if (std::string details = refusals_.explain(status); !details.empty()) return details;
  const std::lock_guard words(words_mutex_);
  if (status.cause == kFateUnknown) {
    return "the rail was lost (" + last_fault_ + "); whether the atomic was executed is unknown";
  }
  std::string text;
  switch (status.code) {
    case Errc::timed_out:
      text = "no acknowledgement before the deadline";
      if (!last_fault_.empty()) text += " (last fault: " + last_fault_ + ")";
      return text;
    case Errc::cancelled:
      return "ended by this process, or fenced behind a request that failed";
    case Errc::revoked:
      return "the target took the region back (remote access error)";
    case Errc::not_registered:
      return "no such region at one of the two sides";
    case Errc::device_error:
      return last_fault_;
    default:
      return why_;
  }
}

}  // namespace fabric::verbs
}  // namespace dtr::inline v0
