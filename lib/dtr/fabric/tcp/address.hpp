// How peers reach this process: a list of internet addresses, best first, as bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <netinet/in.h>
#include <sys/socket.h>

#include "dtr/base/error.hpp"
#include "dtr/fabric/tcp/options.hpp"

namespace dtr::inline v0 {
namespace fabric::tcp {

/// One place to connect to, or where a stranger comes from.
struct Endpoint {
  sockaddr_storage storage{};
  socklen_t length = 0;

  [[nodiscard]] const sockaddr* address() const noexcept { return reinterpret_cast<const sockaddr*>(&storage); }
  [[nodiscard]] int family() const noexcept { return storage.ss_family; }
  [[nodiscard]] std::uint16_t port() const noexcept;

  [[nodiscard]] Endpoint with_port(std::uint16_t port) const noexcept;

  /// "10.0.0.2:4711", "[fe80::1]:4711"
  [[nodiscard]] std::string to_string() const;
};

/// A numeric address, v4 or v6. Error: invalid_argument.
[[nodiscard]] Result<Endpoint> parse_endpoint(const std::string& numeric, std::uint16_t port);

/// Addresses of this host that the options allow: real networks first, then container bridges, then loopback.
/// Errors: invalid_argument (no such address or interface), unsupported (none at all).
[[nodiscard]] Result<std::vector<Endpoint>> local_endpoints(const TcpOptions& options, std::uint16_t port);

[[nodiscard]] std::vector<std::byte> encode(std::span<const Endpoint> endpoints);

/// Error: protocol_error.
[[nodiscard]] Result<std::vector<Endpoint>> decode(std::span<const std::byte> bytes);

}  // namespace fabric::tcp
}  // namespace dtr::inline v0
