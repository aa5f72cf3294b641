// What a Ticket and the background thread share.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <optional>

#include "dtr/base/error.hpp"

namespace dtr::inline v0 {
namespace checkpoint {

struct TicketState {
  explicit TicketState(std::uint64_t of_step) : step(of_step) {}

  void decide(Result<void> result);

  const std::uint64_t step;
  std::mutex mutex;
  std::condition_variable decided;
  std::optional<Result<void>> outcome;
};

}  // namespace checkpoint
}  // namespace dtr::inline v0
