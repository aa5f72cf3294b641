#include "dtr/fabric/transports.hpp"

#include <chrono>
#include <cstdint>

#include "dtr/fabric/shm/shm.hpp"
#include "dtr/fabric/tcp/tcp.hpp"

namespace dtr::inline v0 {
namespace fabric {

namespace {

TransportFactory shm_factory(const Config& config) {
  const std::string& cma = config.text("shm.cma");
  const shm::ShmOptions options{
      .ring_bytes = static_cast<std::size_t>(config.integer("shm.ring_bytes")),
      .eager_bytes = static_cast<std::size_t>(config.integer("fabric.eager_bytes")),
      .cma = cma == "on" ? shm::CmaUse::on : (cma == "off" ? shm::CmaUse::off : shm::CmaUse::automatic)};
  return {.name = "shm",
          .make = [options](const TransportContext& context) { return shm::make_shm(context, options); }};
}

TransportFactory tcp_factory(const Config& config) {
  const tcp::TcpOptions options{
      .bind_address = config.text("tcp.bind_address"),
      .port = static_cast<std::uint16_t>(config.integer("tcp.port")),
      .socket_buffer_bytes = static_cast<int>(config.integer("tcp.socket_buffer_bytes")),
      .eager_bytes = static_cast<std::size_t>(config.integer("fabric.eager_bytes")),
      .handshake_timeout = std::chrono::milliseconds(config.integer("tcp.handshake_timeout_ms")),
      .max_pending_handshakes = static_cast<std::uint32_t>(config.integer("tcp.max_pending_handshakes")),
      .failure_detect = std::chrono::milliseconds(config.integer("failure.detect_ms"))};
  return {.name = "tcp",
          .make = [options](const TransportContext& context) { return tcp::make_tcp(context, options); }};
}

}  // namespace

std::vector<TransportFactory> default_transports(const Config& config) {
  std::vector<TransportFactory> factories;
  factories.push_back(shm_factory(config));
  factories.push_back(tcp_factory(config));
  return factories;
}

}  // namespace fabric
}  // namespace dtr::inline v0
