// How messages came, for those who compare the ways.
#pragma once

#include <cstdint>

#include "dtr/runtime/runtime.hpp"

namespace dtr::common {

/// Messages that this rank has read in memory of others, in Messengers of group 0. After the first of these was made.
inline std::uint64_t messages_read(Runtime& rt) {
  return rt.metrics().counter("dtr_messages_received_total", "", {{"group", "0"}, {"way", "read"}}).value();
}

}  // namespace dtr::common
