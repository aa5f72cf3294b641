#include "dtr/fabric/verbs/gid.hpp"

#include <algorithm>
#include <bit>

#include <arpa/inet.h>

namespace dtr::inline v0 {
namespace fabric::verbs {

namespace {

constexpr std::size_t kMaxRails = 8;

bool is_mapped_v4(const Gid& gid) noexcept {
  return std::all_of(gid.begin(), gid.begin() + 10, [](auto byte) { return byte == 0; }) && gid[10] == 0xFF &&
         gid[11] == 0xFF;
}

/// Higher is better; negative = not at all.
int rank_pair(const GidEntry& a, const GidEntry& b, bool ethernet, bool same_host) noexcept {
  if (is_empty(a.gid) || is_empty(b.gid)) return -1;
  if (!ethernet) return 0;
  if (a.routable_roce == 0 || b.routable_roce == 0) return -1;
  const bool local = is_link_local(a.gid) || is_link_local(b.gid);
  if (local && !same_host) return -1;
  if (is_mapped_v4(a.gid) != is_mapped_v4(b.gid)) return -1;
  if (local) return is_link_local(a.gid) && is_link_local(b.gid) ? 0 : -1;
  return share_subnet(a, b) ? 2 : 1;
}

}  // namespace

std::string to_string(const Gid& gid) {
  char text[INET6_ADDRSTRLEN] = {};
  if (is_mapped_v4(gid)) {
    ::inet_ntop(AF_INET, gid.data() + 12, text, sizeof text);
  } else {
    ::inet_ntop(AF_INET6, gid.data(), text, sizeof text);
  }
  return text;
}

bool is_link_local(const Gid& gid) noexcept { return gid[0] == 0xFE && (gid[1] & 0xC0) == 0x80; }

bool is_empty(const Gid& gid) noexcept {
  return std::all_of(gid.begin(), gid.end(), [](auto byte) { return byte == 0; });
}

int common_bits(const Gid& a, const Gid& b) noexcept {
  for (std::size_t i = 0; i < a.size(); ++i) {
    const auto differ = static_cast<std::uint8_t>(a[i] ^ b[i]);
    if (differ != 0) return static_cast<int>(8 * i) + std::countl_zero(differ);
  }
  return 128;
}

bool share_subnet(const GidEntry& a, const GidEntry& b) noexcept {
  const auto prefix = [](const GidEntry& entry) {
    if (entry.prefix_bits != 0) return static_cast<int>(entry.prefix_bits);
    return is_mapped_v4(entry.gid) ? 96 + 24 : 64;
  };
  return common_bits(a.gid, b.gid) >= std::max(prefix(a), prefix(b));
}

std::optional<GidChoice> choose_gids(const PortOffer& ours, const PortOffer& theirs, bool same_host, int wanted) {
  if (ours.ethernet != theirs.ethernet) return std::nullopt;
  int best = -1;
  GidChoice choice;
  for (const GidEntry& a : ours.gids) {
    if (wanted >= 0 && a.index != static_cast<std::uint32_t>(wanted)) continue;
    for (const GidEntry& b : theirs.gids) {
      const int rank = rank_pair(a, b, ours.ethernet, same_host);
      if (rank <= best) continue;
      best = rank;
      choice.ours = a;
      choice.theirs = b;
      choice.same_subnet = rank == 2;
    }
  }
  if (best < 0) return std::nullopt;
  choice.reason = "GID " + std::to_string(choice.ours.index) + " " + to_string(choice.ours.gid) + " to " +
                  to_string(choice.theirs.gid) + ": ";
  if (wanted >= 0) choice.reason += "the one asked for by verbs.gid_index, ";
  if (!ours.ethernet) {
    choice.reason += "InfiniBand";
  } else if (best == 2) {
    choice.reason += "RoCE v2, same subnet";
  } else if (best == 1) {
    choice.reason += "RoCE v2, routed between subnets";
  } else {
    choice.reason += "RoCE v2, link-local within the host";
  }
  return choice;
}

std::string describe_choice(const PortOffer& offer, int wanted) {
  auto choice = choose_gids(offer, offer, false, wanted);
  const bool between_hosts = choice.has_value();
  if (!between_hosts) choice = choose_gids(offer, offer, true, wanted);
  if (!choice) return "no GID " + std::to_string(wanted) + " (verbs.gid_index)";
  const GidEntry& used = choice->ours;
  std::string text = "GID " + std::to_string(used.index) + " " + to_string(used.gid) + ": ";
  if (wanted >= 0) text += "the one asked for by verbs.gid_index, ";
  if (!offer.ethernet) return text + "InfiniBand";
  text += is_mapped_v4(used.gid) ? "RoCE v2 with an IPv4 address" : "RoCE v2 with an IPv6 address";
  if (used.prefix_bits > 0) {
    text += " in a subnet of /" + std::to_string(used.prefix_bits - (is_mapped_v4(used.gid) ? 96 : 0));
  }
  if (!between_hosts) return text + ", link-local: within this host only";
  std::string local;
  for (const GidEntry& entry : offer.gids) {
    if (is_link_local(entry.gid)) local += (local.empty() ? "" : ", ") + std::to_string(entry.index);
  }
  if (!local.empty()) text += "; not GID " + local + ", link-local";
  return text;
}

std::vector<RailPair> pair_rails(std::span<const PortOffer> lower, std::span<const PortOffer> higher, bool same_host) {
  std::vector<RailPair> pairs;
  std::vector<bool> lower_taken(lower.size());
  std::vector<bool> higher_taken(higher.size());
  for (const bool one_subnet : {true, false}) {
    for (std::size_t i = 0; i < lower.size(); ++i) {
      for (std::size_t k = 0; k < higher.size() && !lower_taken[i] && pairs.size() < kMaxRails; ++k) {
        if (higher_taken[k]) continue;
        const auto choice = choose_gids(lower[i], higher[k], same_host);
        if (!choice || (one_subnet && !choice->same_subnet)) continue;
        lower_taken[i] = higher_taken[k] = true;
        pairs.push_back({.lower = static_cast<std::uint8_t>(i), .higher = static_cast<std::uint8_t>(k)});
      }
    }
  }
  return pairs;
}

}  // namespace fabric::verbs
}  // namespace dtr::inline v0
