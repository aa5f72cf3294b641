#include "dtr/fabric/transports.hpp"

#include <algorithm>
#include <chrono>
#include <sstream>
#include <string>

#include "dtr/fabric/shm/shm.hpp"
#include "dtr/fabric/tcp/tcp.hpp"
#include "dtr/fabric/verbs/verbs.hpp"

namespace dtr::inline v0 {
namespace fabric {

namespace {

using std::chrono::duration_cast;
using std::chrono::milliseconds;

shm::ShmOptions shm_options(const Config& config) {
  const std::string& cma = config.text("shm.cma");
  shm::ShmOptions options;
  options.ring_bytes = static_cast<std::size_t>(config.integer("shm.ring_bytes"));
  options.eager_bytes = static_cast<std::size_t>(config.integer("fabric.eager_bytes"));
  options.cma = cma == "on" ? shm::CmaUse::on : cma == "off" ? shm::CmaUse::off : shm::CmaUse::automatic;
  return options;
}

tcp::TcpOptions tcp_options(const Config& config) {
  tcp::TcpOptions options;
  options.bind_address = config.text("tcp.bind_address");
  options.port = static_cast<std::uint16_t>(config.integer("tcp.port"));
  options.socket_buffer_bytes = static_cast<int>(config.integer("tcp.socket_buffer_bytes"));
  options.eager_bytes =
      static_cast<std::size_t>(std::max(config.integer("fabric.eager_bytes"), config.integer("tcp.eager_bytes")));
  options.handshake_timeout = duration_cast<milliseconds>(config.duration("tcp.handshake_timeout_ms"));
  options.max_pending_handshakes = static_cast<std::uint32_t>(config.integer("tcp.max_pending_handshakes"));
  options.failure_detect = duration_cast<milliseconds>(config.duration("failure.detect_ms"));
  return options;
}

verbs::VerbsOptions verbs_options(const Config& config) {
  verbs::VerbsOptions options;
  std::istringstream devices(config.text("verbs.devices"));
  for (std::string device; std::getline(devices, device, ',');) {
    if (!device.empty()) options.devices.push_back(device);
  }
  options.gid_index = static_cast<int>(config.integer("verbs.gid_index"));
  options.eager_bytes = static_cast<std::size_t>(config.integer("fabric.eager_bytes"));
  options.eager_world = static_cast<std::uint32_t>(config.integer("verbs.eager_world"));
  options.send_queue = static_cast<std::uint32_t>(config.integer("verbs.send_queue"));
  options.credits = static_cast<std::uint32_t>(config.integer("verbs.credits"));
  options.slice_bytes = static_cast<std::size_t>(config.integer("verbs.slice_bytes"));
  options.message_pool = static_cast<std::size_t>(config.integer("verbs.message_pool_bytes"));
  options.failure_detect = duration_cast<milliseconds>(config.duration("failure.detect_ms"));
  return options;
}

/// The connections over which verbs peers agree: tcp with room for the addresses of many ports in one message.
TransportFactory verbs_control(const Config& config) {
  tcp::TcpOptions options = tcp_options(config);
  options.port = 0;  // the configured one is that of the tcp transport itself
  options.eager_bytes = std::size_t{256} << 10;
  options.send_buffer_bytes = std::size_t{2} << 20;
  options.queue_depth = 256;
  return {.name = "tcp",
          .make = [options](const TransportContext& context) { return tcp::make_tcp(context, options); }};
}

}  // namespace

std::vector<TransportFactory> default_transports(const Config& config) {
  std::vector<TransportFactory> transports;
  transports.push_back({.name = "shm", .make = [options = shm_options(config)](const TransportContext& context) {
                          return shm::make_shm(context, options);
                        }});
  transports.push_back({.name = "verbs",
                        .make = [options = verbs_options(config), control = verbs_control(config)](
                                    const TransportContext& context) -> Result<std::unique_ptr<Transport>> {
                          auto api = verbs::load_verbs();
                          if (!api) return fail(std::move(api.error()));
                          return verbs::make_verbs(context, options, std::move(*api), control);
                        }});
  transports.push_back({.name = "tcp", .make = [options = tcp_options(config)](const TransportContext& context) {
                          return tcp::make_tcp(context, options);
                        }});
  return transports;
}

}  // namespace fabric
}  // namespace dtr::inline v0
