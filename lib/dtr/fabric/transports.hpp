// The transports of this build, in the order of preference, set up from the configuration.
#pragma once

#include <vector>

#include "dtr/base/config.hpp"
#include "dtr/fabric/transport.hpp"

namespace dtr::inline v0 {
namespace fabric {

[[nodiscard]] std::vector<TransportFactory> default_transports(const Config& config);

}  // namespace fabric
}  // namespace dtr::inline v0
