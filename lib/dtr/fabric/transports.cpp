#include "dtr/fabric/transports.hpp"

#include <chrono>

#include "dtr/fabric/shm/shm.hpp"
#include "dtr/fabric/tcp/tcp.hpp"

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
  options.eager_bytes = static_cast<std::size_t>(config.integer("fabric.eager_bytes"));
  options.handshake_timeout = duration_cast<milliseconds>(config.duration("tcp.handshake_timeout_ms"));
  options.max_pending_handshakes = static_cast<std::uint32_t>(config.integer("tcp.max_pending_handshakes"));
  options.failure_detect = duration_cast<milliseconds>(config.duration("failure.detect_ms"));
  return options;
}

}  // namespace

std::vector<TransportFactory> default_transports(const Config& config) {
  std::vector<TransportFactory> transports;
  transports.push_back({.name = "shm", .make = [options = shm_options(config)](const TransportContext& context) {
                          return shm::make_shm(context, options);
                        }});
  transports.push_back({.name = "tcp", .make = [options = tcp_options(config)](const TransportContext& context) {
                          return tcp::make_tcp(context, options);
                        }});
  return transports;
}

}  // namespace fabric
}  // namespace dtr::inline v0
