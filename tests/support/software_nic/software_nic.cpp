#include "support/software_nic/software_nic.hpp"

#include <cerrno>
#include <stdexcept>

#include "support/software_nic/device.hpp"

namespace dtr::software_nic {

namespace {

Context& context_of(ibv_context* context) noexcept { return *static_cast<Context*>(context); }
Device& device_of(const ibv_context* context) noexcept { return static_cast<const Context*>(context)->owner; }

}  // namespace

SoftwareNic::SoftwareNic(std::shared_ptr<Network> network, NicOptions options) : network_(std::move(network)) {
  const int number = network_->next_nic();
  if (options.name.empty()) options.name = "nic" + std::to_string(number);
  if (options.host.empty()) options.host = options.name;
  if (options.devices.empty()) options.devices.emplace_back();
  for (std::size_t i = 0; i < options.devices.size(); ++i) {
    devices_.push_back(std::make_shared<Device>(network_, options.name, options.host, number, static_cast<int>(i),
                                                std::move(options.devices[i])));
    devices_.back()->plug_in();
  }
}

SoftwareNic::~SoftwareNic() {
  for (const auto& device : devices_) device->unplug();
}

Device& SoftwareNic::named(const std::string& name) const {
  if (name.empty()) return *devices_.front();
  for (const auto& device : devices_) {
    if (device->name() == name) return *device;
  }
  throw std::out_of_range("no device " + name);
}

void SoftwareNic::set_port(bool up, const std::string& device, std::uint8_t port) {
  named(device).set_port(port, up ? IBV_PORT_ACTIVE : IBV_PORT_DOWN);
}

void SoftwareNic::set_gid(std::uint32_t index, const GidOptions& gid, const std::string& device, std::uint8_t port) {
  named(device).set_gid(port, index, gid);
}

void SoftwareNic::break_device(const std::string& device) { named(device).break_down(); }
void SoftwareNic::freeze(const std::string& device) { named(device).freeze(true); }
void SoftwareNic::thaw(const std::string& device) { named(device).freeze(false); }
void SoftwareNic::fail_request(const RequestFault& fault) { named(fault.device).request_faults().arm(fault); }
void SoftwareNic::fail_call(const CallFault& fault) { calls_.arm(fault); }

void SoftwareNic::clear_faults() {
  calls_.disarm();
  for (const auto& device : devices_) device->request_faults().disarm();
}

void SoftwareNic::set_execution(Execution mode) {
  for (const auto& device : devices_) {
    device->set_execution(mode);
    for (const auto& queue_pair : device->queue_pairs()) device->engine().kick(*queue_pair);
  }
}

void SoftwareNic::complete_posted() {
  for (const auto& device : devices_) {
    for (const auto& queue_pair : device->queue_pairs()) queue_pair->complete_posted();
  }
}

std::uint64_t SoftwareNic::posted_requests(const std::string& device) const { return named(device).posted(); }

std::uint64_t SoftwareNic::posted_requests() const noexcept {
  std::uint64_t sum = 0;
  for (const auto& device : devices_) sum += device->posted();
  return sum;
}

std::uint64_t SoftwareNic::not_ready_answers() const noexcept {
  std::uint64_t sum = 0;
  for (const auto& device : devices_) sum += device->not_ready();
  return sum;
}

std::size_t SoftwareNic::objects() const {
  std::size_t sum = 0;
  for (const auto& device : devices_) sum += device->objects();
  return sum;
}

ibv_device** SoftwareNic::get_device_list(int* count) noexcept {
  if (const int error = calls_.enter(Call::get_device_list); error != 0) {
    errno = error;
    return nullptr;
  }
  auto list = std::make_unique<ibv_device*[]>(devices_.size() + 1);
  for (std::size_t i = 0; i < devices_.size(); ++i) list[i] = devices_[i]->handle();
  if (count != nullptr) *count = static_cast<int>(devices_.size());
  return list.release();
}

void SoftwareNic::free_device_list(ibv_device** list) noexcept { const std::unique_ptr<ibv_device*[]> freed(list); }

const char* SoftwareNic::get_device_name(ibv_device* device) noexcept { return device->name; }

ibv_context* SoftwareNic::open_device(ibv_device* device) noexcept {
  if (const int error = calls_.enter(Call::open_device); error != 0) {
    errno = error;
    return nullptr;
  }
  return Device::of(device).open();
}

int SoftwareNic::close_device(ibv_context* context) noexcept {
  static_cast<void>(calls_.enter(Call::close_device));
  device_of(context).close(context_of(context));
  return 0;
}

int SoftwareNic::query_device(ibv_context* context, ibv_device_attr* attributes) noexcept {
  if (const int error = calls_.enter(Call::query_device); error != 0) return error;
  device_of(context).describe(*attributes);
  return 0;
}

int SoftwareNic::query_port(ibv_context* context, std::uint8_t port, ibv_port_attr* attributes) noexcept {
  if (const int error = calls_.enter(Call::query_port); error != 0) return error;
  return device_of(context).describe_port(port, *attributes);
}

int SoftwareNic::query_gid(ibv_context* context, std::uint8_t port, std::uint32_t index,
                           ibv_gid_entry* entry) noexcept {
  if (const int error = calls_.enter(Call::query_gid); error != 0) return error;
  return device_of(context).gid(port, index, *entry);
}

int SoftwareNic::get_async_event(ibv_context* context, ibv_async_event* event) noexcept {
  static_cast<void>(calls_.enter(Call::get_async_event));
  return context_of(context).events.take(*event);
}

void SoftwareNic::ack_async_event(ibv_async_event* event) noexcept {
  // Like the library, from the event alone; port and device events need none.
  switch (event->event_type) {
    case IBV_EVENT_CQ_ERR:
      context_of(event->element.cq->context).events.acknowledge(*event);
      break;
    case IBV_EVENT_QP_FATAL:
    case IBV_EVENT_QP_REQ_ERR:
    case IBV_EVENT_QP_ACCESS_ERR:
    case IBV_EVENT_QP_LAST_WQE_REACHED:
      context_of(event->element.qp->context).events.acknowledge(*event);
      break;
    default:
      break;
  }
}

ibv_pd* SoftwareNic::alloc_pd(ibv_context* context) noexcept {
  if (const int error = calls_.enter(Call::alloc_pd); error != 0) {
    errno = error;
    return nullptr;
  }
  return device_of(context).make_domain(*context);
}

int SoftwareNic::dealloc_pd(ibv_pd* pd) noexcept {
  static_cast<void>(calls_.enter(Call::dealloc_pd));
  return device_of(pd->context).drop_domain(*pd);
}

ibv_mr* SoftwareNic::reg_mr(ibv_pd* pd, void* address, std::size_t length, unsigned access) noexcept {
  Device& device = device_of(pd->context);
  const int error = calls_.enter(Call::reg_mr);
  if (error != 0 || device.broken()) {
    errno = error != 0 ? error : EIO;
    return nullptr;
  }
  return device.memory().add(*pd, address, length, access);
}

ibv_mr* SoftwareNic::reg_dmabuf_mr(ibv_pd* pd, std::uint64_t offset, std::size_t length, std::uint64_t iova, int fd,
                                   unsigned access) noexcept {
  Device& device = device_of(pd->context);
  const int error = calls_.enter(Call::reg_dmabuf_mr);
  if (error != 0 || device.broken()) {
    errno = error != 0 ? error : EIO;
    return nullptr;
  }
  return device.memory().add_dmabuf(*pd, offset, length, iova, fd, access);
}

int SoftwareNic::dereg_mr(ibv_mr* mr) noexcept {
  static_cast<void>(calls_.enter(Call::dereg_mr));
  return device_of(mr->context).memory().remove(mr);
}

ibv_comp_channel* SoftwareNic::create_comp_channel(ibv_context* context) noexcept {
  if (const int error = calls_.enter(Call::create_comp_channel); error != 0) {
    errno = error;
    return nullptr;
  }
  return device_of(context).make_channel(*context);
}

int SoftwareNic::destroy_comp_channel(ibv_comp_channel* channel) noexcept {
  static_cast<void>(calls_.enter(Call::destroy_comp_channel));
  return device_of(channel->context).drop_channel(*static_cast<CompletionChannel*>(channel));
}

ibv_cq* SoftwareNic::create_cq(ibv_context* context, int entries, void* user, ibv_comp_channel* channel,
                               int vector) noexcept {
  const int error = calls_.enter(Call::create_cq);
  if (error != 0 || vector < 0 || vector >= context->num_comp_vectors) {
    errno = error != 0 ? error : EINVAL;
    return nullptr;
  }
  return device_of(context).make_queue(*context, entries, user, channel);
}

int SoftwareNic::destroy_cq(ibv_cq* cq) noexcept {
  static_cast<void>(calls_.enter(Call::destroy_cq));
  return device_of(cq->context).drop_queue(*static_cast<CompletionQueue*>(cq));
}

int SoftwareNic::poll_cq(ibv_cq* cq, int entries, ibv_wc* completions) noexcept {
  static_cast<void>(calls_.enter(Call::poll_cq));
  return static_cast<CompletionQueue*>(cq)->poll(entries, completions);
}

int SoftwareNic::req_notify_cq(ibv_cq* cq, int solicited_only) noexcept {
  static_cast<void>(calls_.enter(Call::req_notify_cq));
  static_cast<CompletionQueue*>(cq)->arm(solicited_only != 0);
  return 0;
}

int SoftwareNic::get_cq_event(ibv_comp_channel* channel, ibv_cq** cq, void** user) noexcept {
  static_cast<void>(calls_.enter(Call::get_cq_event));
  return static_cast<CompletionChannel*>(channel)->take(cq, user);
}

void SoftwareNic::ack_cq_events(ibv_cq* cq, unsigned count) noexcept {
  static_cast<void>(calls_.enter(Call::ack_cq_events));
  static_cast<CompletionQueue*>(cq)->acknowledge(count);
}

ibv_srq* SoftwareNic::create_srq(ibv_pd* pd, ibv_srq_init_attr* attributes) noexcept {
  if (const int error = calls_.enter(Call::create_srq); error != 0) {
    errno = error;
    return nullptr;
  }
  return device_of(pd->context).make_receives(*pd, *attributes);
}

int SoftwareNic::destroy_srq(ibv_srq* srq) noexcept {
  static_cast<void>(calls_.enter(Call::destroy_srq));
  return device_of(srq->context).drop_receives(*static_cast<SharedReceiveQueue*>(srq));
}

int SoftwareNic::post_srq_recv(ibv_srq* srq, ibv_recv_wr* first, ibv_recv_wr** bad) noexcept {
  if (const int error = calls_.enter(Call::post_srq_recv); error != 0) {
    *bad = first;
    return error;
  }
  return static_cast<SharedReceiveQueue*>(srq)->post(first, bad);
}

ibv_qp* SoftwareNic::create_qp(ibv_pd* pd, ibv_qp_init_attr* attributes) noexcept {
  if (const int error = calls_.enter(Call::create_qp); error != 0) {
    errno = error;
    return nullptr;
  }
  return device_of(pd->context).make_queue_pair(*pd, *attributes);
}

int SoftwareNic::modify_qp(ibv_qp* qp, ibv_qp_attr* attributes, int mask) noexcept {
  if (const int error = calls_.enter(Call::modify_qp); error != 0) return error;
  return static_cast<QueuePair*>(qp)->modify(*attributes, mask);
}

int SoftwareNic::query_qp(ibv_qp* qp, ibv_qp_attr* attributes, int /*mask*/, ibv_qp_init_attr* initial) noexcept {
  if (const int error = calls_.enter(Call::query_qp); error != 0) return error;
  static_cast<QueuePair*>(qp)->query(*attributes, *initial);
  return 0;
}

int SoftwareNic::destroy_qp(ibv_qp* qp) noexcept {
  static_cast<void>(calls_.enter(Call::destroy_qp));
  return device_of(qp->context).drop_queue_pair(*static_cast<QueuePair*>(qp));
}

int SoftwareNic::post_send(ibv_qp* qp, ibv_send_wr* first, ibv_send_wr** bad) noexcept {
  if (const int error = calls_.enter(Call::post_send); error != 0) {
    *bad = first;
    return error;
  }
  return static_cast<QueuePair*>(qp)->post(first, bad);
}

}  // namespace dtr::software_nic
