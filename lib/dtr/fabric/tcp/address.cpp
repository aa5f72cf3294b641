#include "dtr/fabric/tcp/address.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <memory>
#include <string_view>
#include <utility>

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>

namespace dtr::inline v0 {
namespace fabric::tcp {

namespace {

/// One address as it is announced.
struct Entry {
  std::uint8_t family = 0;  ///< 4 or 6
  std::uint8_t reserved = 0;
  std::uint16_t port = 0;
  std::array<std::uint8_t, 16> bytes{};
};
static_assert(sizeof(Entry) == 20);

constexpr std::size_t kMaxEntries = 64;

Endpoint endpoint_of(int family, const void* bytes, std::uint16_t port) {
  Endpoint endpoint;
  if (family == AF_INET) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    std::memcpy(&address.sin_addr, bytes, sizeof address.sin_addr);
    std::memcpy(&endpoint.storage, &address, sizeof address);
    endpoint.length = sizeof address;
  } else {
    sockaddr_in6 address{};
    address.sin6_family = AF_INET6;
    address.sin6_port = htons(port);
    std::memcpy(&address.sin6_addr, bytes, sizeof address.sin6_addr);
    std::memcpy(&endpoint.storage, &address, sizeof address);
    endpoint.length = sizeof address;
  }
  return endpoint;
}

const void* raw_address(const Endpoint& endpoint) {
  if (endpoint.family() == AF_INET) return &reinterpret_cast<const sockaddr_in*>(&endpoint.storage)->sin_addr;
  return &reinterpret_cast<const sockaddr_in6*>(&endpoint.storage)->sin6_addr;
}

bool listed(std::string_view list, std::string_view name) {
  while (!list.empty()) {
    const auto comma = list.find(',');
    if (list.substr(0, comma) == name) return true;
    if (comma == std::string_view::npos) break;
    list.remove_prefix(comma + 1);
  }
  return false;
}

/// Bridges and taps of containers and virtual machines: their addresses are often the same on every host.
bool is_virtual(std::string_view name) {
  constexpr std::array<std::string_view, 7> kPrefixes{"docker", "br-", "virbr", "veth", "cni", "flannel", "podman"};
  return std::any_of(kPrefixes.begin(), kPrefixes.end(), [&](auto prefix) { return name.starts_with(prefix); });
}

int rank_of(const ifaddrs& interface) {
  const bool v6 = interface.ifa_addr->sa_family == AF_INET6;
  if ((interface.ifa_flags & IFF_LOOPBACK) != 0) return v6 ? 5 : 4;
  if (is_virtual(interface.ifa_name)) return v6 ? 3 : 2;
  return v6 ? 1 : 0;
}

}  // namespace

std::uint16_t Endpoint::port() const noexcept {
  if (family() == AF_INET) return ntohs(reinterpret_cast<const sockaddr_in*>(&storage)->sin_port);
  return ntohs(reinterpret_cast<const sockaddr_in6*>(&storage)->sin6_port);
}

Endpoint Endpoint::with_port(std::uint16_t port) const noexcept {
  return endpoint_of(family(), raw_address(*this), port);
}

std::string Endpoint::to_string() const {
  if (length == 0) return "?";
  const void* raw = raw_address(*this);
  int shown = family();
  if (shown == AF_INET6 && IN6_IS_ADDR_V4MAPPED(static_cast<const in6_addr*>(raw))) {
    raw = static_cast<const std::uint8_t*>(raw) + 12;
    shown = AF_INET;
  }
  char text[INET6_ADDRSTRLEN] = "?";
  ::inet_ntop(shown, raw, text, sizeof text);
  const std::string host = shown == AF_INET6 ? "[" + std::string(text) + "]" : std::string(text);
  return host + ":" + std::to_string(port());
}

Result<Endpoint> parse_endpoint(const std::string& numeric, std::uint16_t port) {
  std::array<std::uint8_t, 16> bytes{};
  for (const int family : {AF_INET, AF_INET6}) {
    if (::inet_pton(family, numeric.c_str(), bytes.data()) == 1) return endpoint_of(family, bytes.data(), port);
  }
  return fail(Errc::invalid_argument, "'" + numeric + "' is not a numeric internet address", "tcp address");
}

Result<std::vector<Endpoint>> local_endpoints(const TcpOptions& options, std::uint16_t port) {
  constexpr const char* kOperation = "find tcp addresses";
  const bool any = options.bind_address.empty() || options.bind_address == "0.0.0.0" || options.bind_address == "::";
  if (!any) {
    if (const auto endpoint = parse_endpoint(options.bind_address, port)) return std::vector<Endpoint>{*endpoint};
  }
  ifaddrs* first = nullptr;
  if (::getifaddrs(&first) != 0) return fail(errno_error(errno, "getifaddrs", kOperation));
  const std::unique_ptr<ifaddrs, decltype(&::freeifaddrs)> list(first, &::freeifaddrs);

  std::vector<std::pair<int, Endpoint>> found;
  for (const ifaddrs* it = first; it != nullptr; it = it->ifa_next) {
    if (it->ifa_addr == nullptr || (it->ifa_flags & IFF_UP) == 0) continue;
    const int family = it->ifa_addr->sa_family;
    if (family != AF_INET && family != AF_INET6) continue;
    if (family == AF_INET6 && options.bind_address == "0.0.0.0") continue;
    if (!any && !listed(options.bind_address, it->ifa_name)) continue;
    const void* raw = family == AF_INET
                          ? static_cast<const void*>(&reinterpret_cast<const sockaddr_in*>(it->ifa_addr)->sin_addr)
                          : &reinterpret_cast<const sockaddr_in6*>(it->ifa_addr)->sin6_addr;
    // A link-local address means nothing without the interface of the one who connects.
    if (family == AF_INET6 && IN6_IS_ADDR_LINKLOCAL(static_cast<const in6_addr*>(raw))) continue;
    found.emplace_back(rank_of(*it), endpoint_of(family, raw, port));
  }
  if (found.empty()) {
    if (any) return fail(Errc::unsupported, "this host has no internet address", kOperation);
    return fail(Errc::invalid_argument,
                "'" + options.bind_address + "' is neither an address nor an interface that is up and has one",
                kOperation);
  }
  std::stable_sort(found.begin(), found.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<Endpoint> endpoints;
  for (const auto& [rank, endpoint] : found) {
    if (endpoints.size() < kMaxEntries) endpoints.push_back(endpoint);
  }
  return endpoints;
}

std::vector<std::byte> encode(std::span<const Endpoint> endpoints) {
  std::vector<std::byte> bytes(endpoints.size() * sizeof(Entry));
  for (std::size_t i = 0; i < endpoints.size(); ++i) {
    const Endpoint& endpoint = endpoints[i];
    Entry entry;
    entry.family = endpoint.family() == AF_INET ? 4 : 6;
    entry.port = endpoint.port();
    std::memcpy(entry.bytes.data(), raw_address(endpoint), entry.family == 4 ? 4 : 16);
    std::memcpy(bytes.data() + i * sizeof entry, &entry, sizeof entry);
  }
  return bytes;
}

Result<std::vector<Endpoint>> decode(std::span<const std::byte> bytes) {
  if (bytes.empty() || bytes.size() % sizeof(Entry) != 0 || bytes.size() / sizeof(Entry) > kMaxEntries) {
    return fail(Errc::protocol_error, "an address of " + std::to_string(bytes.size()) + " bytes is not tcp's",
                "tcp address");
  }
  std::vector<Endpoint> endpoints;
  for (std::size_t at = 0; at < bytes.size(); at += sizeof(Entry)) {
    Entry entry;
    std::memcpy(&entry, bytes.data() + at, sizeof entry);
    if ((entry.family != 4 && entry.family != 6) || entry.reserved != 0 || entry.port == 0) {
      return fail(Errc::protocol_error, "the address list is malformed", "tcp address");
    }
    endpoints.push_back(endpoint_of(entry.family == 4 ? AF_INET : AF_INET6, entry.bytes.data(), entry.port));
  }
  return endpoints;
}

}  // namespace fabric::tcp
}  // namespace dtr::inline v0
