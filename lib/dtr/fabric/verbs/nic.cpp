#include "dtr/fabric/verbs/nic.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <exception>
#include <new>
#include <utility>

#include <fcntl.h>
#include <ifaddrs.h>
#include <netinet/in.h>

#include "dtr/base/log.hpp"
#include "dtr/fabric/verbs/limits.hpp"
#include "dtr/fabric/verbs/nodes.hpp"

namespace dtr::inline v0 {
namespace fabric::verbs {

namespace {

constexpr const char* kOperation = "open verbs";
constexpr std::uint64_t kReceiveMark = 1ULL << 63;
constexpr std::uint32_t kQueueEntries = 8192;  ///< of one completion queue, if the device allows
constexpr std::uint32_t kReceiveQueue = 16384;
constexpr std::uint32_t kBuffersPerChunk = 64;
constexpr int kPolledAtOnce = 32;  ///< completions; so many buffers are spare, for receives that are being looked at
constexpr std::size_t kMailboxBytes = 64;
constexpr std::uint32_t kMaxGids = 256;  ///< an address handle counts its entries with one byte

void make_nonblocking(int fd) noexcept {
  ::fcntl(fd, F_SETFL, ::fcntl(fd, F_GETFL) | O_NONBLOCK);
  ::fcntl(fd, F_SETFD, FD_CLOEXEC);
}

void log_event(const std::string& device, ibv_event_type event) noexcept {
  try {
    DTR_LOG_INFO("verbs: ", device, ": ", to_words(event));
  } catch (const std::exception&) {  // a line less
  }
}

/// Length of the subnet's prefix that an interface of this host gives the address, in the GID's bits; 0 = unknown.
std::uint8_t prefix_of(const Gid& gid, const ifaddrs* interfaces) {
  for (const ifaddrs* entry = interfaces; entry != nullptr; entry = entry->ifa_next) {
    if (entry->ifa_addr == nullptr || entry->ifa_netmask == nullptr) continue;
    const auto ones = [](const void* mask, std::size_t bytes) {
      int count = 0;
      for (std::size_t i = 0; i < bytes; ++i) count += std::popcount(static_cast<const std::uint8_t*>(mask)[i]);
      return count;
    };
    if (entry->ifa_addr->sa_family == AF_INET) {
      const auto* address = reinterpret_cast<const sockaddr_in*>(entry->ifa_addr);
      if (std::memcmp(&address->sin_addr, gid.data() + 12, 4) != 0 || gid[10] != 0xFF || gid[11] != 0xFF) continue;
      const auto* mask = reinterpret_cast<const sockaddr_in*>(entry->ifa_netmask);
      return static_cast<std::uint8_t>(96 + ones(&mask->sin_addr, 4));
    }
    if (entry->ifa_addr->sa_family == AF_INET6) {
      const auto* address = reinterpret_cast<const sockaddr_in6*>(entry->ifa_addr);
      if (std::memcmp(&address->sin6_addr, gid.data(), 16) != 0) continue;
      const auto* mask = reinterpret_cast<const sockaddr_in6*>(entry->ifa_netmask);
      return static_cast<std::uint8_t>(ones(&mask->sin6_addr, 16));
    }
  }
  return 0;
}

}  // namespace

Result<std::unique_ptr<Nic>> Nic::open(VerbsApi& api, ibv_device* device, std::uint8_t port,
                                       const VerbsOptions& options) {
  std::unique_ptr<Nic> nic(new Nic(api, options));
  if (auto done = nic->set_up(device, port); !done) return fail(std::move(done.error()));
  return nic;
}

Nic::~Nic() {
  // A queue cannot be destroyed while an event of it is not acknowledged.
  for (Queue& queue : queues_) {
    if (queue.cq && queue.unacknowledged > 0) api_.ack_cq_events(queue.cq.get(), queue.unacknowledged);
  }
}

Result<void> Nic::set_up(ibv_device* device, std::uint8_t port) {
  port_ = port;
  numa_node_ = node_of_device(device->ibdev_path);
  address_.name = std::string(api_.get_device_name(device)) + ":" + std::to_string(port);
  const auto refused = [&](int number, const std::string& what, const std::string& limits = "none known") {
    return fail(device_refusal(number, what, limits, address_.name, kOperation));
  };
  context_ = Context(api_, api_.open_device(device));
  if (!context_) return refused(errno, "to be opened");
  if (const int error = api_.query_device(context_.get(), &attributes_); error != 0) {
    return refused(error, "to tell its attributes");
  }
  ibv_port_attr state{};
  if (const int error = api_.query_port(context_.get(), port, &state); error != 0) {
    return refused(error, "to tell its port's state");
  }
  if (state.state != IBV_PORT_ACTIVE) return fail(Errc::unsupported, address_.name + " is not active", kOperation);
  address_.offer.ethernet = state.link_layer == IBV_LINK_LAYER_ETHERNET;
  address_.lid = state.lid;
  address_.mtu = static_cast<std::uint8_t>(state.active_mtu);
  address_.rd_atomic = static_cast<std::uint8_t>(std::clamp(attributes_.max_qp_rd_atom, 1, 16));
  max_message_ = state.max_msg_sz == 0 ? 1U << 20 : state.max_msg_sz;
  read_gids();
  if (address_.offer.gids.empty()) {
    return fail(Errc::unsupported, address_.name + " has no GID for RoCE v2 or InfiniBand", kOperation);
  }
  make_nonblocking(context_->async_fd);

  pd_ = ProtectionDomain(api_, api_.alloc_pd(context_.get()));
  if (!pd_) return refused(errno, "a protection domain", "max_pd " + std::to_string(attributes_.max_pd));
  mailbox_ = std::make_unique<std::byte[]>(kMailboxBytes);
  mailbox_mr_ = MemoryRegion(
      api_, api_.reg_mr(pd_.get(), mailbox_.get(), kMailboxBytes, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_READ));
  if (!mailbox_mr_) return refused(errno, "a memory region", "max_mr " + std::to_string(attributes_.max_mr));
  address_.mailbox = reinterpret_cast<std::uintptr_t>(mailbox_.get());
  address_.mailbox_rkey = mailbox_mr_->rkey;
  channel_ = CompletionChannel(api_, api_.create_comp_channel(context_.get()));
  if (!channel_) return refused(errno, "a completion channel");
  make_nonblocking(channel_->fd);

  srq_capacity_ =
      std::min<std::uint32_t>(kReceiveQueue, static_cast<std::uint32_t>(std::max(attributes_.max_srq_wr, 0)));
  if (srq_capacity_ == 0) return fail(Errc::unsupported, address_.name + " has no shared receive queues", kOperation);
  ibv_srq_init_attr receive{};
  receive.attr.max_wr = srq_capacity_;
  receive.attr.max_sge = 1;
  srq_ = SharedReceiveQueue(api_, api_.create_srq(pd_.get(), &receive));
  if (!srq_) {
    return refused(
        errno, "a shared receive queue of " + std::to_string(srq_capacity_) + " entries",
        "max_srq " + std::to_string(attributes_.max_srq) + ", max_srq_wr " + std::to_string(attributes_.max_srq_wr));
  }
  srq_capacity_ = std::min(srq_capacity_, receive.attr.max_wr);
  buffer_bytes_ = sizeof(MessageHeader) + std::max(options_.eager_bytes, sizeof(AtomicBody));
  return {};
}

void Nic::read_gids() {
  ifaddrs* interfaces = nullptr;
  if (::getifaddrs(&interfaces) != 0) interfaces = nullptr;
  const std::unique_ptr<ifaddrs, void (*)(ifaddrs*)> owner(interfaces, [](ifaddrs* list) {
    if (list != nullptr) ::freeifaddrs(list);
  });
  std::vector<GidEntry> gids;
  ibv_gid_entry entry{};
  for (std::uint32_t index = 0; index < kMaxGids; ++index) {
    const int error = api_.query_gid(context_.get(), port_, index, &entry);
    if (error == ENODATA) continue;  // a hole in the table
    if (error != 0) break;
    GidEntry found;
    std::memcpy(found.gid.data(), entry.gid.raw, found.gid.size());
    found.index = index;
    found.routable_roce = entry.gid_type == IBV_GID_TYPE_ROCE_V2 ? 1 : 0;
    if (is_empty(found.gid) || (address_.offer.ethernet && found.routable_roce == 0)) continue;
    found.prefix_bits = prefix_of(found.gid, interfaces);
    gids.push_back(found);
  }
  address_.offer.gids = std::move(gids);
}

Result<std::size_t> Nic::promise(std::uint32_t entries) {
  for (std::size_t i = 0; i < queues_.size(); ++i) {
    if (queues_[i].capacity - queues_[i].promised < entries) continue;
    queues_[i].promised += entries;
    return i;
  }
  const auto most = static_cast<std::uint32_t>(std::max(attributes_.max_cqe, 0));
  const std::string limits = "max_cq " + std::to_string(attributes_.max_cq) + ", max_cqe " + std::to_string(most) +
                             " (verbs.send_queue and verbs.credits make a queue pair need fewer entries)";
  if (entries > most) {
    return fail(device_refusal(ENOMEM, "a completion queue of " + std::to_string(entries) + " entries", limits, name(),
                               "connect"));
  }
  const std::uint32_t wanted = std::clamp(kQueueEntries, entries, most);
  ibv_cq* made = api_.create_cq(context_.get(), static_cast<int>(wanted), nullptr, channel_.get(), 0);
  if (made == nullptr) {
    return fail(device_refusal(errno, "a completion queue of " + std::to_string(wanted) + " entries", limits, name(),
                               "connect"));
  }
  Queue& queue = queues_.emplace_back();
  queue.cq = CompletionQueue(api_, made);
  queue.capacity = std::min(wanted, static_cast<std::uint32_t>(made->cqe));
  queue.promised = entries;
  return queues_.size() - 1;
}

std::byte* Nic::buffer(std::uint32_t number) const noexcept {
  return chunks_[number / kBuffersPerChunk].memory.get() + (number % kBuffersPerChunk) * buffer_bytes_;
}

Result<void> Nic::keep_receives(std::uint32_t wanted) {
  if (wanted > srq_capacity_) {
    return fail(device_refusal(
        ENOMEM, std::to_string(wanted) + " receives",
        "max_srq_wr " + std::to_string(srq_capacity_) + " (verbs.credits makes a queue pair need fewer receives)",
        name(), "connect"));
  }
  while (chunks_.size() * kBuffersPerChunk < wanted + std::size_t{kPolledAtOnce}) {
    const std::size_t bytes = kBuffersPerChunk * buffer_bytes_;
    Chunk chunk{.memory = std::make_unique<std::byte[]>(bytes), .mr = {}};
    chunk.mr = MemoryRegion(api_, api_.reg_mr(pd_.get(), chunk.memory.get(), bytes, IBV_ACCESS_LOCAL_WRITE));
    if (!chunk.mr) {
      return fail(device_refusal(errno, std::to_string(bytes) + " bytes for receives",
                                 "max_mr " + std::to_string(attributes_.max_mr), name(), "connect"));
    }
    const auto first = static_cast<std::uint32_t>(chunks_.size() * kBuffersPerChunk);
    idle_buffers_.reserve(first + kBuffersPerChunk);
    chunks_.push_back(std::move(chunk));
    for (std::uint32_t i = kBuffersPerChunk; i-- > 0;) idle_buffers_.push_back(first + i);
  }
  const std::uint32_t before = std::exchange(wanted_, wanted);
  post_receives();
  if (posted_ < wanted_) {
    wanted_ = before;
    return fail(device_refusal(ENOMEM, std::to_string(wanted) + " receives",
                               "max_srq_wr " + std::to_string(srq_capacity_), name(), "connect"));
  }
  return {};
}

void Nic::post_receives() noexcept {
  constexpr std::size_t kBatch = 64;
  std::array<ibv_recv_wr, kBatch> requests;
  std::array<ibv_sge, kBatch> pieces;
  while (posted_ < wanted_ && !idle_buffers_.empty()) {
    std::size_t count = 0;
    while (count < kBatch && posted_ + count < wanted_ && count < idle_buffers_.size()) {
      const std::uint32_t number = idle_buffers_[idle_buffers_.size() - 1 - count];
      pieces[count] = {.addr = reinterpret_cast<std::uintptr_t>(buffer(number)),
                       .length = static_cast<std::uint32_t>(buffer_bytes_),
                       .lkey = chunks_[number / kBuffersPerChunk].mr->lkey};
      requests[count] = {.wr_id = kReceiveMark | number, .next = nullptr, .sg_list = &pieces[count], .num_sge = 1};
      if (count > 0) requests[count - 1].next = &requests[count];
      ++count;
    }
    ibv_recv_wr* bad = nullptr;
    const int error = api_.post_srq_recv(srq_.get(), requests.data(), &bad);
    const std::size_t taken = bad == nullptr ? 0 : static_cast<std::size_t>(bad - requests.data());
    const std::size_t done = error == 0 ? count : taken;
    idle_buffers_.resize(idle_buffers_.size() - done);
    posted_ += static_cast<std::uint32_t>(done);
    if (error != 0) return;
  }
}

Result<QueuePair> Nic::make_queue_pair(CompletionSink& sink, std::uint32_t sends, std::uint32_t receives,
                                       std::uint32_t* max_inline) {
  auto queue = promise(sends + receives);
  if (!queue) return fail(std::move(queue.error()));
  Member member{.sink = &sink, .queue = *queue, .entries = sends + receives, .receives = receives};
  const auto give_up = [&](Error error) -> tl::unexpected<Error> {
    queues_[member.queue].promised -= member.entries;
    return fail(std::move(error));
  };
  if (auto kept = keep_receives(wanted_ + receives); !kept) return give_up(std::move(kept.error()));

  ibv_qp_init_attr wanted{};
  wanted.send_cq = wanted.recv_cq = queues_[member.queue].cq.get();
  wanted.srq = srq_.get();
  wanted.cap.max_send_wr = sends;
  wanted.cap.max_send_sge = 1;
  wanted.qp_type = IBV_QPT_RC;
  ibv_qp* made = nullptr;
  for (const std::uint32_t inline_bytes : {220U, 60U, 0U}) {  // not every device can
    wanted.cap.max_inline_data = inline_bytes;
    made = api_.create_qp(pd_.get(), &wanted);
    if (made != nullptr || errno != EINVAL) break;
  }
  if (made == nullptr) {
    const int number = errno;
    wanted_ -= receives;
    return give_up(device_refusal(number, "a queue pair of " + std::to_string(sends) + " work requests",
                                  "max_qp " + std::to_string(attributes_.max_qp) + " (" +
                                      std::to_string(members_.size()) + " in use here), max_qp_wr " +
                                      std::to_string(attributes_.max_qp_wr),
                                  name(), "connect"));
  }
  QueuePair queue_pair(api_, made);
  ibv_qp_attr initial{};
  initial.qp_state = IBV_QPS_INIT;
  initial.port_num = port_;
  initial.qp_access_flags = IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_ATOMIC;
  const int error =
      api_.modify_qp(made, &initial, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS);
  if (error != 0) {
    wanted_ -= receives;
    return give_up(device_refusal(error, "to initialise a queue pair", "none known", name(), "connect"));
  }
  *max_inline = wanted.cap.max_inline_data;
  try {
    members_[made->qp_num] = member;
  } catch (const std::bad_alloc&) {
    wanted_ -= receives;
    return give_up({.code = Errc::resource_exhausted, .message = "no memory for a queue pair", .operation = "connect"});
  }
  return queue_pair;
}

void Nic::redirect(std::uint32_t queue_pair_number, CompletionSink& sink) noexcept {
  recent_sink_ = nullptr;
  if (const auto found = members_.find(queue_pair_number); found != members_.end()) found->second.sink = &sink;
}

void Nic::drop_queue_pair(QueuePair queue_pair) noexcept {
  if (!queue_pair) return;
  recent_sink_ = nullptr;
  const auto found = members_.find(queue_pair->qp_num);
  if (found != members_.end()) {
    queues_[found->second.queue].promised -= found->second.entries;
    wanted_ -= found->second.receives;
    members_.erase(found);
  }
  queue_pair.reset();
}

CompletionSink* Nic::sink_of(std::uint32_t queue_pair_number) noexcept {
  if (recent_sink_ == nullptr || recent_number_ != queue_pair_number) {
    const auto found = members_.find(queue_pair_number);
    recent_sink_ = found == members_.end() ? nullptr : found->second.sink;
    recent_number_ = queue_pair_number;
  }
  return recent_sink_;
}

int Nic::poll(int budget) noexcept {
  std::array<ibv_wc, kPolledAtOnce> completions;
  int handled = 0;
  if (posted_ < wanted_) post_receives();  // what the device refused before
  for (std::size_t i = 0; i < queues_.size(); ++i) {
    int got = 0;
    do {
      got = api_.poll_cq(queues_[i].cq.get(), kPolledAtOnce, completions.data());
      const auto receives = std::count_if(completions.begin(), completions.begin() + std::max(got, 0),
                                          [](const ibv_wc& each) { return (each.wr_id & kReceiveMark) != 0; });
      // Others are posted in their place before anybody gives credits back for them.
      posted_ -= static_cast<std::uint32_t>(receives);
      if (receives > 0) post_receives();
      for (int k = 0; k < got; ++k) {
        const ibv_wc& completion = completions[static_cast<std::size_t>(k)];
        CompletionSink* const sink = sink_of(completion.qp_num);  // it may end the member
        if ((completion.wr_id & kReceiveMark) == 0) {
          if (sink != nullptr) sink->on_sent(completion);
          continue;
        }
        const auto number = static_cast<std::uint32_t>(completion.wr_id & ~kReceiveMark);
        if (sink != nullptr) {
          const bool message = completion.status == IBV_WC_SUCCESS && completion.opcode == IBV_WC_RECV;
          sink->on_received(completion, {buffer(number), message ? completion.byte_len : 0});
        }
        idle_buffers_.push_back(number);  // room was reserved with the buffer
      }
      handled += std::max(got, 0);
    } while (got == kPolledAtOnce && handled < budget);
  }
  return handled;
}

void Nic::arm() noexcept {
  for (Queue& queue : queues_) static_cast<void>(api_.req_notify_cq(queue.cq.get(), 0));
}

void Nic::clear_events() noexcept {
  constexpr unsigned kAtOnce = 64;  // acknowledging takes a lock
  ibv_cq* cq = nullptr;
  void* user = nullptr;
  while (api_.get_cq_event(channel_.get(), &cq, &user) == 0) {
    for (Queue& queue : queues_) {
      if (queue.cq.get() != cq || ++queue.unacknowledged < kAtOnce) continue;
      api_.ack_cq_events(cq, queue.unacknowledged);
      queue.unacknowledged = 0;
    }
  }
}

bool Nic::next_event(Event& event) noexcept {
  if (address_is_old_ && read_address()) {
    event = {.kind = Event::Kind::address};
    return true;
  }
  ibv_async_event got{};
  while (api_.get_async_event(context_.get(), &got) == 0) {
    const bool our_port = got.element.port_num == port_;  // of events about a port
    bool matters = true;
    switch (got.event_type) {
      case IBV_EVENT_PORT_ERR:
        event = {.kind = Event::Kind::port_lost};
        matters = our_port;
        if (our_port) active_ = false;
        break;
      case IBV_EVENT_PORT_ACTIVE:
        event = {.kind = Event::Kind::port_back};
        matters = our_port;
        if (our_port) active_ = true;
        break;
      case IBV_EVENT_GID_CHANGE:
      case IBV_EVENT_LID_CHANGE:
        event = {.kind = Event::Kind::address};
        matters = our_port;
        break;
      case IBV_EVENT_DEVICE_FATAL:
      case IBV_EVENT_CQ_ERR:
      case IBV_EVENT_SRQ_ERR:
        event = {.kind = Event::Kind::fatal};
        active_ = false;
        break;
      case IBV_EVENT_QP_FATAL:
      case IBV_EVENT_QP_REQ_ERR:
      case IBV_EVENT_QP_ACCESS_ERR:
        event = {.kind = Event::Kind::queue_pair, .queue_pair = got.element.qp->qp_num};
        break;
      case IBV_EVENT_QP_LAST_WQE_REACHED:
        event = {.kind = Event::Kind::drained, .queue_pair = got.element.qp->qp_num};
        break;
      default:
        matters = false;
        break;
    }
    if (got.event_type != IBV_EVENT_QP_LAST_WQE_REACHED) log_event(name(), got.event_type);
    api_.ack_async_event(&got);
    if (!matters) continue;
    // A port that comes back may have new ones.
    const bool readdressed = event.kind == Event::Kind::address || event.kind == Event::Kind::port_back;
    if (readdressed && !read_address() && event.kind == Event::Kind::address) continue;  // told once it is read
    return true;
  }
  return false;
}

bool Nic::read_address() noexcept {
  read_lid();
  try {
    read_gids();
    address_is_old_ = false;
  } catch (const std::bad_alloc&) {
    address_is_old_ = true;
  }
  return !address_is_old_;
}

bool Nic::has(const GidEntry& gid, std::uint16_t lid) const noexcept {
  if (!address_.offer.ethernet && address_.lid != lid) return false;
  const auto& gids = address_.offer.gids;
  return std::any_of(gids.begin(), gids.end(), [&](const GidEntry& entry) {
    return entry.index == gid.index && entry.gid == gid.gid && entry.routable_roce == gid.routable_roce;
  });
}

void Nic::read_lid() noexcept {
  ibv_port_attr state{};
  if (api_.query_port(context_.get(), port_, &state) == 0) address_.lid = state.lid;
}

}  // namespace fabric::verbs
}  // namespace dtr::inline v0
