// Ends that the peer has no part in: deadlines, cancelling, closing, the peer's or our own end.
#include <algorithm>
#include <utility>

#include "dtr/fabric/verbs/link.hpp"

namespace dtr::inline v0 {
namespace fabric::verbs {

namespace {

constexpr std::int64_t kDrainTime = 1'000'000'000;

}  // namespace

template <class Which>
std::uint32_t Link::end_some(Errc code, Which&& which) noexcept {
  std::uint32_t ended = 0;
  bool more = true;
  std::uint64_t position = 0;
  while (more) {
    Endings endings;
    more = false;
    {
      const std::lock_guard lock(lock_);
      if (operations_ == nullptr) return 0;
      for (position = std::max(position, operations_->first_untold()); position < operations_->head(); ++position) {
        Operation& operation = operations_->at(position);
        if (operation.told || !which(operation)) continue;
        if (!endings.has_room()) {
          more = true;
          break;
        }
        // A result is dropped from now on, so an atomic at the target's CPU touches nothing of ours any more.
        tell(operation, {.code = code, .quiesced = operation.flights == 0, .fenced = !operation.touched}, endings);
        ++ended;
      }
      if (ended > 0) drop_told();
    }
    endings.deliver();
  }
  return ended;
}

std::uint32_t Link::cancel(Completion& completion) noexcept {
  return end_some(Errc::cancelled,
                  [&](const Operation& operation) { return operation.request.completion == &completion; });
}

std::int64_t Link::expire(std::int64_t now) noexcept {
  {
    const std::lock_guard lock(lock_);
    if (now < earliest_) return earliest_;
  }
  end_some(Errc::timed_out, [&](const Operation& operation) { return operation.deadline <= now; });
  const std::lock_guard lock(lock_);
  earliest_ = kNever;
  if (operations_ == nullptr) return kNever;
  for (std::uint64_t position = operations_->first_untold(); position != operations_->head(); ++position) {
    const Operation& operation = operations_->at(position);
    if (!operation.told) earliest_ = std::min(earliest_, operation.deadline);
  }
  return earliest_;
}

void Link::end_atomics() noexcept {
  // Nobody knows whether the target executed them.
  end_some(Errc::cancelled,
           [](const Operation& operation) { return operation.request.is_atomic() && operation.touched; });
}

void Link::end_all(Errc code, std::string_view why) noexcept {
  bool first = false;
  {
    const std::lock_guard lock(lock_);
    first = end_code_ == Errc::ok;
    if (first) end_code_ = code;
  }
  if (first) keep_words(why_, why);
  end_some(code, [](const Operation&) { return true; });
  {
    const std::lock_guard lock(lock_);
    if (operations_ != nullptr) {
      // Nobody will send these results any more.
      for (std::uint64_t at = operations_->tail(); at != operations_->head(); ++at) {
        Operation& operation = operations_->at(at);
        if (!operation.told || !std::exchange(operation.asking, false)) continue;
        --asked_;
        settle(operation);
      }
      operations_->drop_settled();
    }
  }
  state_.store(code == Errc::closed ? ChannelState::closed : ChannelState::failed, std::memory_order_release);
}

// --- what of ended requests is not on a queue pair any more ---

void Link::drop_told() noexcept {
  const auto wanted = [&](const Flight& flight) {
    if (!flight.is_of_request() || !operations_->by_number(flight.subject).told) return true;
    let_go(flight);
    return false;
  };
  again_data_.keep_if(wanted);
  again_messages_.keep_if(wanted);
  for (const auto& rail : rails_) {
    if (rail->state == Rail::State::drained) drop_told(*rail);
  }
  operations_->drop_settled();
}

void Link::drop_told(Rail& rail) noexcept {
  for (std::uint64_t at = rail.ring.done(); at != rail.ring.head(); ++at) {
    Flight& flight = rail.ring.at(at);
    if (!flight.is_of_request() || !operations_->by_number(flight.subject).told) continue;
    let_go(flight);
    flight.kind = Flight::Kind::nothing;
  }
}

// --- the end of the link ---

void Link::give_up(Errc code, std::string_view why) noexcept { hub_.give_up(*this, code, why); }

void Link::peer_is_down(Errc code, std::string_view why) noexcept {
  if (over_) return;
  over_ = true;
  const std::int64_t now = now_ns();
  for (const auto& rail : rails_) {
    {
      const std::lock_guard lock(lock_);
      const bool stops = rail->state == Rail::State::open || rail->state == Rail::State::ready;
      if (stops) become(*rail, Rail::State::draining);
    }
    rail->stop();
    rail->drain_until = now + kDrainTime;
  }
  end_all(code, why);
  hub_.call_at(0);
}

void Link::bury(Rail& rail) noexcept {
  rail.stop();
  rail.drop(nic_of(rail));
  const std::lock_guard lock(lock_);
  become(rail, Rail::State::idle);
  rail.used = false;
  while (!rail.ring.empty()) {
    const Flight flight = rail.ring.at(rail.ring.done());
    rail.ring.retire();
    let_go(flight);
  }
  for (; !again_data_.empty(); again_data_.pop()) let_go(again_data_.front());
  for (; !again_messages_.empty(); again_messages_.pop()) let_go(again_messages_.front());
  if (operations_ != nullptr) operations_->drop_settled();
  const bool last =
      std::all_of(rails_.begin(), rails_.end(), [](const auto& each) { return each->state == Rail::State::idle; });
  if (!last) return;
  reserved_ -= static_cast<std::uint32_t>(reserve_.size());
  for (; !reserve_.empty(); reserve_.pop_back()) give_back(reserve_.back());
}

void Link::shut_down() noexcept {
  over_ = true;
  shut_.store(true, std::memory_order_release);
  end_all(Errc::closed, "the transport was closed");
  for (const auto& rail : rails_) bury(*rail);
}

}  // namespace fabric::verbs
}  // namespace dtr::inline v0
