#include "dtr/fabric/transports.hpp"

namespace dtr::inline v0 {
namespace fabric {

std::vector<TransportFactory> default_transports(const Config& /*config*/) { return {}; }

}  // namespace fabric
}  // namespace dtr::inline v0
