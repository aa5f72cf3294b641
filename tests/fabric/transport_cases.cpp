#include <algorithm>
#include <utility>

#include "dtr/fabric/shm/shm.hpp"
#include "dtr/fabric/tcp/tcp.hpp"
#include "dtr/fabric/verbs/verbs.hpp"
#include "fabric/world.hpp"
#include "support/software_nic/software_nic.hpp"

namespace dtr::testing {

namespace {

fabric::TransportFactory shm(fabric::shm::CmaUse cma) {
  return {.name = "shm", .make = [cma](const fabric::TransportContext& context) {
            return fabric::shm::make_shm(context, {.cma = cma});
          }};
}

fabric::TransportFactory tcp(std::size_t eager_bytes = 4096) {
  return {.name = "tcp", .make = [eager_bytes](const fabric::TransportContext& context) {
            return fabric::tcp::make_tcp(context, {.bind_address = "127.0.0.1",
                                                   .eager_bytes = eager_bytes,
                                                   .send_buffer_bytes = 16 * eager_bytes,
                                                   .reconnect_grace = scaled(2s),
                                                   .failure_detect = scaled(5s)});
          }};
}

/// Real devices, of which most machines have none. The control connections go by tcp as in a job. With several, the
/// odd ranks take them in pairs the other way round: so a rail goes from one device to another, over the wire.
fabric::TransportFactory verbs(const std::vector<std::string>& devices) {
  return {.name = "verbs",
          .make = [devices](const fabric::TransportContext& context) -> Result<std::unique_ptr<fabric::Transport>> {
            auto api = fabric::verbs::load_verbs();
            if (!api) return fail(std::move(api.error()));
            fabric::verbs::VerbsOptions options{.devices = devices};
            if (devices.size() > 1) options.slice_bytes = 64 << 10;
            for (std::size_t i = 1; i < devices.size() && context.identity.self % 2 == 1; i += 2) {
              std::swap(options.devices[i - 1], options.devices[i]);
            }
            return fabric::verbs::make_verbs(context, options, std::move(*api), tcp(256 << 10));
          }};
}

/// A NIC of its own for every rank, with one device a rail.
fabric::TransportFactory software_verbs(std::size_t rails, const fabric::verbs::VerbsOptions& options) {
  auto network = std::make_shared<software_nic::Network>();
  return {.name = "verbs", .make = [network, rails, options](const fabric::TransportContext& context) {
            software_nic::NicOptions nic{.name = "rank" + std::to_string(context.identity.self), .host = "host"};
            nic.devices.resize(rails);
            return fabric::verbs::make_verbs(context, options,
                                             std::make_shared<software_nic::SoftwareNic>(network, nic), tcp(256 << 10));
          }};
}

std::vector<std::string> rdma_devices() {
  std::vector<std::string> names;
  auto api = fabric::verbs::load_verbs();
  int count = 0;
  ibv_device** list = api ? (*api)->get_device_list(&count) : nullptr;
  for (int i = 0; i < count; ++i) names.emplace_back((*api)->get_device_name(list[i]));
  if (list != nullptr) (*api)->free_device_list(list);
  std::sort(names.begin(), names.end());
  return names;
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
  cases.push_back({.name = "verbs_software", .transports = {software_verbs(1, {})}});
  cases.push_back({.name = "verbs_software_on_demand", .transports = {software_verbs(1, {.eager_world = 0})}});
  cases.push_back({.name = "verbs_software_rails", .transports = {software_verbs(2, {.slice_bytes = 64 << 10})}});
  // As little of everything as there may be: all that can run full runs full.
  cases.push_back({.name = "verbs_software_scarce",
                   .transports = {software_verbs(1, {.send_queue = 8, .credits = 2, .slice_bytes = 4096})}});
  const auto devices = rdma_devices();
  if (!devices.empty()) cases.push_back({.name = "verbs_device", .transports = {verbs({devices.front()})}});
  if (devices.size() > 1) cases.push_back({.name = "verbs_device_rails", .transports = {verbs(devices)}});
  return cases;
}

}  // namespace dtr::testing
