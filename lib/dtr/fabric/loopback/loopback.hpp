// The way from a process to itself: copies in the caller, notifications and messages through a queue.
#pragma once

#include <memory>

#include "dtr/fabric/transport.hpp"

namespace dtr::inline v0 {
namespace fabric {

struct LoopbackOptions {
  std::size_t queue_bytes = 1 << 20;  ///< notifications and messages under way
  std::size_t eager_bytes = 4096;     ///< largest message
};

[[nodiscard]] Result<std::unique_ptr<Transport>> make_loopback(const TransportContext& context,
                                                               const LoopbackOptions& options);

}  // namespace fabric
}  // namespace dtr::inline v0
