#include "fabric/world.hpp"

namespace dtr::testing {

std::vector<TransportCase> transport_cases() {
  std::vector<TransportCase> cases;
  cases.push_back({.name = "loopback", .to_itself = true});
  return cases;
}

}  // namespace dtr::testing
