// Where the time of one round at one server went.
#pragma once

#include <cstdint>

namespace dtr::inline v0 {

/// Eight moments in ns of the worker's CLOCK_MONOTONIC. The middle four were taken by the server and are shifted by the
/// lead of its clock, which is known to within `clock_error_ns`: on one host the true lead is 0, between hosts the
/// round trips bound it.
struct RoundTrace {
  int server = -1;  ///< its rank
  std::int64_t request_start = 0;
  std::int64_t request_posted = 0;
  std::int64_t request_received = 0;   ///< the last byte was seen
  std::int64_t request_processed = 0;  ///< handed to whoever serves
  std::int64_t response_start = 0;
  std::int64_t response_posted = 0;
  std::int64_t response_received = 0;
  std::int64_t response_processed = 0;  ///< the tensors of this message are complete
  std::int64_t clock_error_ns = 0;
};

}  // namespace dtr::inline v0
