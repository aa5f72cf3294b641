#include "dtr/fabric/shm/shm.hpp"
#include "dtr/fabric/tcp/tcp.hpp"
#include "fabric/world.hpp"

namespace dtr::testing {

namespace {

fabric::TransportFactory shm(const fabric::shm::ShmOptions& options) {
  return {.name = "shm", .make = [options](const fabric::TransportContext& context) {
            return fabric::shm::make_shm(context, options);
          }};
}

}  // namespace

std::vector<TransportCase> transport_cases() {
  using fabric::shm::CmaUse;
  std::vector<TransportCase> cases;
  cases.push_back({.name = "loopback", .to_itself = true});
  cases.push_back({.name = "shm_mapped", .transports = {shm({})}});
  cases.push_back({.name = "shm_foreign", .transports = {shm({.cma = CmaUse::on})}, .managed = false});
  cases.push_back(
      {.name = "shm_bounce", .transports = {shm({.cma = CmaUse::off})}, .managed = false, .one_sided = false});
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
