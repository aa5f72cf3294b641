// The outcome of a save that runs in the background.
#pragma once

#include <cstdint>
#include <memory>

#include "dtr/base/deadline.hpp"
#include "dtr/base/error.hpp"

namespace dtr::inline v0 {

namespace checkpoint {
struct TicketState;
}

/// Copies share one outcome; it outlives the manager. Any thread.
class Ticket {
 public:
  explicit Ticket(std::shared_ptr<checkpoint::TicketState> state) noexcept : state_(std::move(state)) {}

  [[nodiscard]] std::uint64_t step() const noexcept;

  /// True as soon as wait() would return at once.
  [[nodiscard]] bool done() const;

  /// Success: the step is complete and durable, and load_latest finds it. An Error of the save is that of the rank
  /// that caused it, on all ranks, and the earlier steps are untouched. timed_out: not decided yet, wait again.
  /// Not from inside the progress callback.
  [[nodiscard]] Result<void> wait(Deadline deadline) const;

 private:
  std::shared_ptr<checkpoint::TicketState> state_;
};

}  // namespace dtr::inline v0
