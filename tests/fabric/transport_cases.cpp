#include "dtr/fabric/tcp/tcp.hpp"
#include "fabric/world.hpp"

namespace dtr::testing {

std::vector<TransportCase> transport_cases() {
  std::vector<TransportCase> cases;
  cases.push_back({.name = "loopback", .to_itself = true});
  cases.push_back({.name = "tcp",
                   .transports = {{"tcp",
                                   [](const fabric::TransportContext& context) {
                                     return fabric::tcp::make_tcp(context, {.bind_address = "127.0.0.1"});
                                   }}},
                   .managed = false,
                   .one_sided = false});
  return cases;
}

}  // namespace dtr::testing
