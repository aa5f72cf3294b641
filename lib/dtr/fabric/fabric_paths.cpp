// Which transports there are, and which of them leads to which peer.
#include <algorithm>
#include <string_view>
#include <utility>

#include "dtr/base/bytes.hpp"
#include "dtr/base/log.hpp"
#include "dtr/fabric/detail/peer.hpp"
#include "dtr/fabric/fabric.hpp"
#include "dtr/fabric/loopback/loopback.hpp"

namespace dtr::inline v0 {
namespace fabric {

Result<void> Fabric::make_transports() {
  // Each counts in a meter of its own.
  const TransportContext own{.identity = identity_, .regions = *regions_, .receiver = *this};
  auto loopback = make_loopback(own, {.eager_bytes = options_.eager_bytes});
  if (!loopback) return fail(std::move(loopback.error()));
  transports_.push_back(std::move(*loopback));
  meters_.push_back(own.traffic);
  reports_.push_back({.name = "loopback", .viable = true, .reason = "always there"});

  for (const std::string& name : options_.allow) {
    const bool known = std::any_of(options_.transports.begin(), options_.transports.end(),
                                   [&](const TransportFactory& factory) { return factory.name == name; });
    if (known) continue;
    std::string names;
    for (const auto& factory : options_.transports) names += (names.empty() ? "" : ", ") + factory.name;
    return fail(Errc::not_found, "transport \"" + name + "\" is not there; this build has " + names, "start fabric");
  }
  for (const TransportFactory& factory : options_.transports) {
    if (!options_.allow.empty() &&
        std::find(options_.allow.begin(), options_.allow.end(), factory.name) == options_.allow.end()) {
      reports_.push_back({.name = factory.name, .viable = false, .reason = "not in transport.allow"});
      continue;
    }
    const TransportContext context{.identity = identity_, .regions = *regions_, .receiver = *this};
    auto made = factory.make(context);
    if (made && (*made)->max_message() < options_.eager_bytes) {
      return fail(Errc::config_error,
                  factory.name + " sends messages of at most " + std::to_string((*made)->max_message()) +
                      " bytes, and fabric.eager_bytes is " + std::to_string(options_.eager_bytes),
                  "start fabric");
    }
    if (made) {
      transports_.push_back(std::move(*made));
      meters_.push_back(context.traffic);
      reports_.push_back({.name = factory.name, .viable = true, .reason = transports_.back()->describe()});
    } else {
      reports_.push_back({.name = factory.name, .viable = false, .reason = made.error().to_string()});
      DTR_LOG_INFO("transport ", factory.name, " is not viable: ", made.error().to_string());
    }
  }
  return {};
}

std::vector<std::byte> Fabric::address() const {
  ByteWriter out;
  out.value(static_cast<std::uint32_t>(transports_.size() - 1));
  for (std::size_t i = 1; i < transports_.size(); ++i) {
    out.text(transports_[i]->name()).text(transports_[i]->domain()).bytes(transports_[i]->address());
  }
  return out.take();
}

Result<void> Fabric::choose_path(PeerId id, std::span<const std::byte> address, std::span<const std::string> domains) {
  Peer& peer = *peers_.emplace_back(std::make_unique<Peer>(id, *waiters_));
  if (id == self()) {
    peer.transport = transports_.front().get();
    peer.why = &*reasons_.emplace("this process").first;
    return {};
  }
  struct Offer {
    std::string_view name;
    std::string_view domain;
    std::span<const std::byte> address;
  };
  std::vector<Offer> offers;
  ByteReader in(address);
  const auto text = [&in] {
    const auto bytes = in.bytes();
    return std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  };
  const auto count = in.value<std::uint32_t>();
  for (std::uint32_t i = 0; i < count && in.ok(); ++i) {
    const auto name = text();
    const auto domain = text();
    offers.push_back({.name = name, .domain = domain, .address = in.bytes()});
  }
  if (!in.ok() || !in.at_end()) {
    return fail(Errc::truncated, "the address is malformed", "start fabric", static_cast<int>(id));
  }
  std::string passed_over;
  for (std::size_t i = 1; i < transports_.size(); ++i) {
    const std::string_view name = transports_[i]->name();
    const auto offer =
        std::find_if(offers.begin(), offers.end(), [&](const Offer& candidate) { return candidate.name == name; });
    if (offer == offers.end()) {
      passed_over.append(name).append(": the peer does not have it; ");
    } else if (offer->domain != domains[i]) {
      passed_over.append(name).append(": domain ").append(domains[i]).append(" here, ");
      passed_over.append(offer->domain).append(" there; ");
    } else {
      peer.transport = transports_[i].get();
      peer.address.assign(offer->address.begin(), offer->address.end());
      peer.why = &*reasons_.insert(passed_over.append("same domain ").append(offer->domain)).first;
      DTR_LOG_INFO("rank ", id, " by ", name, ": ", *peer.why);
      return peer.transport->introduce(id, peer.address);
    }
  }
  peer.why = &*reasons_.insert(passed_over).first;
  return fail(Errc::unreachable, passed_over.empty() ? "no transport is left here" : passed_over, "start fabric",
              static_cast<int>(id));
}

std::size_t Fabric::max_message(PeerId id) const noexcept {
  const Transport* const transport = id < peers_.size() ? peers_[id]->transport : nullptr;
  return transport != nullptr ? transport->max_message() : options_.eager_bytes;
}

PathReport Fabric::path(PeerId id) const {
  PathReport report{.peer = id, .transport = "none", .reason = "no such rank", .detail = {}};
  if (id >= peers_.size()) return report;
  const Peer& peer = *peers_[id];
  report.transport = peer.transport != nullptr ? std::string(peer.transport->name()) : "none";
  if (peer.why != nullptr) report.reason = *peer.why;
  const Channel* channel = peer.channel.load(std::memory_order_acquire);
  report.detail = channel != nullptr ? channel->path() : "not connected yet";
  return report;
}

}  // namespace fabric
}  // namespace dtr::inline v0
