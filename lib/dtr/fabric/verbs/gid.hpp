// Which address of a NIC to talk from, and to which of the peer's: pure rules, explained in words.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace dtr::inline v0 {
namespace fabric::verbs {

using Gid = std::array<std::uint8_t, 16>;

/// One entry of a port's GID table.
struct GidEntry {
  Gid gid{};
  std::uint32_t index = 0;
  std::uint8_t routable_roce = 0;  ///< RoCE v2; 0: RoCE v1 or InfiniBand
  std::uint8_t prefix_bits = 0;    ///< of its subnet, counted in the 128 bits; 0 = unknown
  std::uint16_t reserved = 0;
};
static_assert(sizeof(GidEntry) == 24);

/// "10.77.0.1" for an IPv4-mapped one, else as IPv6.
[[nodiscard]] std::string to_string(const Gid& gid);

[[nodiscard]] bool is_link_local(const Gid& gid) noexcept;
/// All zero.
[[nodiscard]] bool is_empty(const Gid& gid) noexcept;
/// Leading bits that two have in common, 0 to 128.
[[nodiscard]] int common_bits(const Gid& a, const Gid& b) noexcept;
/// Both are in the subnet that their prefixes name.
[[nodiscard]] bool share_subnet(const GidEntry& a, const GidEntry& b) noexcept;

/// What one port offers.
struct PortOffer {
  bool ethernet = true;  ///< RoCE; else InfiniBand, where the first GID serves and the LID routes
  std::vector<GidEntry> gids{};
};

struct GidChoice {
  GidEntry ours{};
  GidEntry theirs{};
  bool same_subnet = false;
  std::string reason{};
};

/// The pair of addresses to connect over, or nothing if the two ports cannot reach each other. RoCE: version 2 at both
/// ends; one subnet is better than two that have to be routed; link-local only within one host. `wanted` >= 0 names
/// our entry.
[[nodiscard]] std::optional<GidChoice> choose_gids(const PortOffer& ours, const PortOffer& theirs, bool same_host,
                                                   int wanted = -1);

/// The address that a port would use towards a host of its own subnet, and why: for dtr_info, before peers are known.
[[nodiscard]] std::string describe_choice(const PortOffer& offer, int wanted);

/// Two ports that form a rail, by their places in the two lists.
struct RailPair {
  std::uint8_t lower = 0;   ///< port of the rank with the lower number
  std::uint8_t higher = 0;  ///< port of the rank with the higher number
  friend bool operator==(const RailPair&, const RailPair&) = default;
};

/// Pairs up the ports of two ranks; both compute the same. In the order of the lower rank's ports, each takes the
/// first free port of the other in its own subnet; what is left over takes the first that it can reach at all.
[[nodiscard]] std::vector<RailPair> pair_rails(std::span<const PortOffer> lower, std::span<const PortOffer> higher,
                                               bool same_host);

}  // namespace fabric::verbs
}  // namespace dtr::inline v0
