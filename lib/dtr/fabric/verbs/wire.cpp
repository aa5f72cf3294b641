#include "dtr/fabric/verbs/wire.hpp"

#include "dtr/base/bytes.hpp"

namespace dtr::inline v0 {
namespace fabric::verbs {

namespace {

constexpr std::size_t kMaxPorts = 8;  // a region's key has room for so many
constexpr std::size_t kMaxGids = 256;
constexpr std::size_t kMaxEarly = std::size_t{1} << 16;

}  // namespace

std::vector<std::byte> Address::encode() const {
  ByteWriter out;
  out.bytes(control).text(host).value(credits).value(message_bytes).value(static_cast<std::uint32_t>(ports.size()));
  for (const PortAddress& port : ports) {
    out.text(port.name).value(static_cast<std::uint8_t>(port.offer.ethernet ? 1 : 0)).value(port.lid).value(port.mtu);
    out.value(port.rd_atomic).value(port.mailbox).value(port.mailbox_rkey);
    out.value(static_cast<std::uint32_t>(port.offer.gids.size()));
    for (const GidEntry& entry : port.offer.gids) out.value(entry);
  }
  out.value(static_cast<std::uint32_t>(early.size()));
  for (const QueuePairName& name : early) out.value(name);
  return out.take();
}

Result<Address> Address::decode(std::span<const std::byte> bytes) {
  const auto refuse = [](const char* why) { return fail(Errc::protocol_error, why, "read verbs address"); };
  Address address;
  ByteReader in(bytes);
  const auto control = in.bytes();
  address.control.assign(control.begin(), control.end());
  address.host = in.text();
  address.credits = in.value<std::uint32_t>();
  address.message_bytes = in.value<std::uint32_t>();
  const auto ports = in.value<std::uint32_t>();
  if (!in.ok() || ports > kMaxPorts) return refuse("impossible number of ports");
  for (std::uint32_t i = 0; i < ports; ++i) {
    PortAddress& port = address.ports.emplace_back();
    port.name = in.text();
    port.offer.ethernet = in.value<std::uint8_t>() != 0;
    port.lid = in.value<std::uint16_t>();
    port.mtu = in.value<std::uint8_t>();
    port.rd_atomic = in.value<std::uint8_t>();
    port.mailbox = in.value<std::uint64_t>();
    port.mailbox_rkey = in.value<std::uint32_t>();
    const auto gids = in.value<std::uint32_t>();
    if (!in.ok() || gids > kMaxGids) return refuse("impossible number of GIDs");
    for (std::uint32_t k = 0; k < gids; ++k) port.offer.gids.push_back(in.value<GidEntry>());
  }
  const auto early = in.value<std::uint32_t>();
  if (!in.ok() || early > kMaxEarly) return refuse("impossible number of queue pairs");
  for (std::uint32_t i = 0; i < early; ++i) address.early.push_back(in.value<QueuePairName>());
  if (!in.ok() || !in.at_end()) return refuse("wrong length");
  return address;
}

const char* malformed(const ControlMessage& message) noexcept {
  if (message.type < ControlType::connect || message.type > ControlType::refuse) return "unknown type";
  if (message.rail >= kMaxPorts) return "impossible rail";
  if (message.epoch == 0) return "epoch 0";
  if (message.type == ControlType::connect && (message.queue_pair == 0 || message.queue_pair > 0xFFFFFF)) {
    return "impossible queue pair number";
  }
  if (message.type == ControlType::connect && message.psn > 0xFFFFFF) return "impossible packet sequence number";
  return nullptr;
}

}  // namespace fabric::verbs
}  // namespace dtr::inline v0
