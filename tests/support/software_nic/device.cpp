// What a device is and what happens to it. Its objects: device_objects.cpp.
#include "support/software_nic/device.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <stdexcept>

#include <arpa/inet.h>

namespace dtr::software_nic {

namespace {

/// As a driver fills it for one interface with one IPv4 address.
std::vector<GidOptions> usual_gids(int nic, int place) {
  const std::string v4 =
      "10." + std::to_string(77 + place) + "." + std::to_string(nic / 250) + "." + std::to_string(nic % 250 + 1);
  char local[32];
  std::snprintf(local, sizeof local, "fe80::%x:%x", place + 1, nic + 1);
  return {{.address = local, .type = IBV_GID_TYPE_ROCE_V1},
          {.address = local, .type = IBV_GID_TYPE_ROCE_V2},
          {.address = v4, .type = IBV_GID_TYPE_ROCE_V1},
          {.address = v4, .type = IBV_GID_TYPE_ROCE_V2}};
}

ibv_gid_entry entry_of(const GidOptions& gid, std::uint32_t index, std::uint32_t port) {
  ibv_gid_entry entry{};
  entry.gid_index = index;
  entry.port_num = port;
  entry.gid_type = gid.type;
  if (!gid.address.empty()) {
    const RawGid raw = parse_gid(gid.address);
    std::memcpy(entry.gid.raw, raw.data(), raw.size());
  }
  return entry;
}

bool is_empty(const ibv_gid_entry& entry) noexcept {
  return std::all_of(std::begin(entry.gid.raw), std::end(entry.gid.raw), [](std::uint8_t byte) { return byte == 0; });
}

}  // namespace

RawGid parse_gid(const std::string& address) {
  RawGid gid{};
  if (::inet_pton(AF_INET, address.c_str(), gid.data() + 12) == 1) {
    gid[10] = gid[11] = 0xFF;
  } else if (::inet_pton(AF_INET6, address.c_str(), gid.data()) != 1) {
    throw std::invalid_argument("not an address: " + address);
  }
  return gid;
}

Device::Device(std::shared_ptr<Network> network, const std::string& nic, std::string host, int number, int place,
               DeviceOptions options)
    : network_(std::move(network)),
      options_(std::move(options)),
      host_(std::move(host)),
      memory_(options_, *network_),
      engine_(*this) {
  if (options_.name.empty()) options_.name = "soft" + std::to_string(place);
  if (options_.ports.empty()) options_.ports.emplace_back();
  full_name_ = nic + "/" + options_.name;
  std::strncpy(handle_.name, options_.name.c_str(), sizeof handle_.name - 1);
  std::strncpy(handle_.ibdev_path, options_.sysfs.c_str(), sizeof handle_.ibdev_path - 1);
  std::strncpy(handle_.dev_name, ("uverbs" + std::to_string(place)).c_str(), sizeof handle_.dev_name - 1);
  handle_.node_type = IBV_NODE_CA;
  handle_.transport_type = IBV_TRANSPORT_IB;
  handle_.owner = this;
  for (std::size_t i = 0; i < options_.ports.size(); ++i) {
    PortOptions& wanted = options_.ports[i];
    if (wanted.gids.empty())
      wanted.gids = usual_gids(number, place * static_cast<int>(options_.ports.size()) + static_cast<int>(i));
    Port port{.state = wanted.state};
    for (std::size_t k = 0; k < wanted.gids.size(); ++k) {
      port.gids.push_back(entry_of(wanted.gids[k], static_cast<std::uint32_t>(k), static_cast<std::uint32_t>(i + 1)));
    }
    port.gids.resize(std::max(port.gids.size(), static_cast<std::size_t>(wanted.gid_table_length)));
    ports_.push_back(std::move(port));
  }
}

void Device::announce(std::uint8_t port) {
  std::vector<RawGid> gids;
  {
    const std::shared_lock lock(mutex_);
    for (const ibv_gid_entry& entry : ports_[port - 1U].gids) {
      if (is_empty(entry)) continue;
      RawGid& gid = gids.emplace_back();
      std::memcpy(gid.data(), entry.gid.raw, gid.size());
    }
  }
  network_->attach(shared_from_this(), port, gids);
}

void Device::plug_in() {
  for (std::size_t i = 1; i <= ports_.size(); ++i) announce(static_cast<std::uint8_t>(i));
}

void Device::unplug() {
  network_->detach(*this);
  std::vector<Context*> open;
  {
    const std::shared_lock lock(mutex_);
    for (const auto& [key, context] : contexts_) open.push_back(context.get());
  }
  for (Context* context : open) close(*context);
  engine_.stop();
}

void Device::describe(ibv_device_attr& attributes) const {
  attributes = {};
  std::strncpy(attributes.fw_ver, "software", sizeof attributes.fw_ver - 1);
  attributes.max_mr_size = options_.max_mr_size;
  attributes.page_size_cap = 4096;
  attributes.max_qp = options_.max_qp;
  attributes.max_qp_wr = options_.max_qp_wr;
  attributes.device_cap_flags = IBV_DEVICE_PORT_ACTIVE_EVENT | IBV_DEVICE_RC_RNR_NAK_GEN;
  attributes.max_sge = attributes.max_sge_rd = options_.max_sge;
  attributes.max_cq = options_.max_cq;
  attributes.max_cqe = options_.max_cqe;
  attributes.max_mr = options_.max_mr;
  attributes.max_pd = options_.max_pd;
  attributes.max_qp_rd_atom = attributes.max_qp_init_rd_atom = options_.max_qp_rd_atom;
  attributes.max_res_rd_atom = options_.max_qp_rd_atom * options_.max_qp;
  attributes.atomic_cap = options_.atomic_cap;
  attributes.max_srq = options_.max_srq;
  attributes.max_srq_wr = options_.max_srq_wr;
  attributes.max_srq_sge = options_.max_srq_sge;
  attributes.max_pkeys = 1;
  attributes.phys_port_cnt = static_cast<std::uint8_t>(options_.ports.size());
}

int Device::describe_port(std::uint8_t port, ibv_port_attr& attributes) const {
  if (port == 0 || port > options_.ports.size()) return EINVAL;
  const PortOptions& made = options_.ports[port - 1U];
  const std::shared_lock lock(mutex_);
  const Port& now = ports_[port - 1U];
  attributes = {};
  attributes.state = now.state;
  attributes.max_mtu = made.max_mtu;
  attributes.active_mtu = made.active_mtu;
  attributes.gid_tbl_len = static_cast<int>(now.gids.size());
  attributes.port_cap_flags = IBV_PORT_CM_SUP | IBV_PORT_IP_BASED_GIDS;
  attributes.max_msg_sz = made.max_message;
  attributes.pkey_tbl_len = 1;
  attributes.active_width = 2;
  attributes.active_speed = 32;
  attributes.phys_state = now.state == IBV_PORT_ACTIVE ? 5 : 3;  // link up, disabled
  attributes.link_layer = IBV_LINK_LAYER_ETHERNET;
  return 0;
}

int Device::gid(std::uint8_t port, std::uint32_t index, ibv_gid_entry& entry) const {
  if (port == 0 || port > options_.ports.size()) return EINVAL;
  const std::shared_lock lock(mutex_);
  const Port& now = ports_[port - 1U];
  if (index >= now.gids.size()) return EINVAL;
  if (is_empty(now.gids[index])) return ENODATA;
  entry = now.gids[index];
  return 0;
}

bool Device::port_active(std::uint8_t port) const {
  if (port == 0 || port > options_.ports.size() || broken()) return false;
  const std::shared_lock lock(mutex_);
  return ports_[port - 1U].state == IBV_PORT_ACTIVE;
}

bool Device::reachable(std::uint8_t port, const RawGid& gid, ibv_gid_type type) const {
  if (frozen() || !port_active(port)) return false;
  const std::shared_lock lock(mutex_);
  const std::vector<ibv_gid_entry>& gids = ports_[port - 1U].gids;
  return std::any_of(gids.begin(), gids.end(), [&](const ibv_gid_entry& entry) {
    return entry.gid_type == static_cast<std::uint32_t>(type) &&
           std::memcmp(entry.gid.raw, gid.data(), gid.size()) == 0;
  });
}

void Device::tell_all(ibv_event_type type, int port) {
  const std::shared_lock lock(mutex_);
  for (const auto& [key, context] : contexts_) {
    ibv_async_event event{};
    event.event_type = type;
    event.element.port_num = port;
    context->events.post(event);
  }
}

void Device::set_port(std::uint8_t port, ibv_port_state state) {
  {
    const std::unique_lock lock(mutex_);
    Port& now = ports_.at(port - 1U);
    if (now.state == state) return;
    now.state = state;
  }
  tell_all(state == IBV_PORT_ACTIVE ? IBV_EVENT_PORT_ACTIVE : IBV_EVENT_PORT_ERR, port);
}

void Device::set_gid(std::uint8_t port, std::uint32_t index, const GidOptions& gid) {
  const ibv_gid_entry entry = entry_of(gid, index, port);
  {
    const std::unique_lock lock(mutex_);
    ports_.at(port - 1U).gids.at(index) = entry;
  }
  announce(port);
  tell_all(IBV_EVENT_GID_CHANGE, port);
}

void Device::break_down() {
  if (broken_.exchange(true, std::memory_order_acq_rel)) return;
  engine_.freeze(true);
  tell_all(IBV_EVENT_DEVICE_FATAL, 0);
}

void Device::freeze(bool frozen) {
  frozen_.store(frozen, std::memory_order_release);
  engine_.freeze(frozen || broken());
}

void Device::post_event(ibv_context& context, ibv_event_type type, ibv_qp* queue_pair) noexcept {
  ibv_async_event event{};
  event.event_type = type;
  event.element.qp = queue_pair;
  static_cast<Context&>(context).events.post(event);
}

void Device::post_event(ibv_context& context, ibv_event_type type, ibv_cq* queue) noexcept {
  ibv_async_event event{};
  event.event_type = type;
  event.element.cq = queue;
  static_cast<Context&>(context).events.post(event);
}

}  // namespace dtr::software_nic
