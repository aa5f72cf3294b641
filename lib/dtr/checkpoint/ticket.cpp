#include "dtr/checkpoint/ticket.hpp"

#include <string>

#include "dtr/checkpoint/detail/ticket_state.hpp"

namespace dtr::inline v0 {

namespace checkpoint {

void TicketState::decide(Result<void> result) {
  {
    const std::lock_guard lock(mutex);
    outcome = std::move(result);
  }
  decided.notify_all();
}

}  // namespace checkpoint

std::uint64_t Ticket::step() const noexcept { return state_->step; }

bool Ticket::done() const {
  const std::lock_guard lock(state_->mutex);
  return state_->outcome.has_value();
}

Result<void> Ticket::wait(Deadline deadline) const {
  std::unique_lock lock(state_->mutex);
  if (!state_->decided.wait_until(lock, deadline.at(), [&] { return state_->outcome.has_value(); })) {
    return fail(Errc::timed_out, "step " + std::to_string(state_->step) + " is still being written", "save");
  }
  return *state_->outcome;
}

}  // namespace dtr::inline v0
