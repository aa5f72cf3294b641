#include "dtr/fabric/shm/shm.hpp"
#include "dtr/fabric/tcp/tcp.hpp"
#include "fabric/world.hpp"

namespace dtr::testing {

namespace {

fabric::TransportFactory shm(fabric::shm::CmaUse cma) {
  return {.name = "shm", .make = [cma](const fabric::TransportContext& context) {
            return fabric::shm::make_shm(context, {.cma = cma});
          }};
}

fabric::TransportFactory tcp() {
  return {.name = "tcp", .make = [](const fabric::TransportContext& context) {
            return fabric::tcp::make_tcp(context, {.bind_address = "127.0.0.1"});
          }};
}

}  // namespace

std::vector<TransportCase> transport_cases() {
  using fabric::shm::CmaUse;
  std::vector<TransportCase> cases;
  cases.push_back({.name = "loopback", .to_itself = true});
  cases.push_back({.name = "shm_mapped", .transports = {shm(CmaUse::automatic)}});
  cases.push_back({.name = "shm_cma", .transports = {shm(CmaUse::on)}, .managed = false});
  cases.push_back({.name = "shm_bounce", .transports = {shm(CmaUse::off)}, .managed = false, .one_sided = false});
  cases.push_back({.name = "tcp", .transports = {tcp()}, .one_sided = false});
  return cases;
}

}  // namespace dtr::testing
