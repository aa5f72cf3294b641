#include "software_nic/ends.hpp"

#include <cstring>
#include <thread>

#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>

namespace dtr::software_nic {

namespace {

constexpr std::uint32_t kFirstPsn = 0xFFFFF0;  // wraps soon

std::byte pattern(std::size_t i, unsigned seed) {
  return static_cast<std::byte>((i * 31 + std::size_t{seed} * 7 + 1) & 0xFF);
}

}  // namespace

End::End(SoftwareNic& nic, const EndOptions& wanted_options) : api(nic), options(wanted_options) {
  ibv_device** list = api.get_device_list(nullptr);
  context = api.open_device(list[options.device]);
  api.free_device_list(list);
  pd = api.alloc_pd(context);
  channel = api.create_comp_channel(context);
  cq = api.create_cq(context, options.completion_queue, this, channel, 0);
  ibv_srq_init_attr receives{};
  receives.attr.max_wr = 64;
  receives.attr.max_sge = 1;
  srq = api.create_srq(pd, &receives);
  mr = api.reg_mr(pd, memory.data(), memory.size(), kAllAccess);
  ibv_qp_init_attr attributes = wanted();
  qp = api.create_qp(pd, &attributes);
  EXPECT_NE(qp, nullptr);
}

End::~End() {
  if (qp != nullptr) {
    EXPECT_EQ(api.destroy_qp(qp), 0);
  }
  if (mr != nullptr) {
    EXPECT_EQ(api.dereg_mr(mr), 0);
  }
  EXPECT_EQ(api.destroy_srq(srq), 0);
  if (cq != nullptr) {
    EXPECT_EQ(api.destroy_cq(cq), 0);
  }
  EXPECT_EQ(api.destroy_comp_channel(channel), 0);
  EXPECT_EQ(api.dealloc_pd(pd), 0);
  EXPECT_EQ(api.close_device(context), 0);
}

ibv_qp_init_attr End::wanted() const {
  ibv_qp_init_attr attributes{};
  attributes.send_cq = attributes.recv_cq = cq;
  attributes.srq = options.shared_receives ? srq : nullptr;
  attributes.cap.max_send_wr = options.send_queue;
  attributes.cap.max_send_sge = options.max_sge;
  attributes.cap.max_inline_data = options.max_inline;
  attributes.qp_type = IBV_QPT_RC;
  attributes.sq_sig_all = options.signal_all;
  return attributes;
}

ibv_gid End::gid(std::uint32_t index) const {
  ibv_gid_entry entry{};
  EXPECT_EQ(api.query_gid(context, 1, index, &entry), 0);
  return entry.gid;
}

int End::to_init(unsigned access) {
  ibv_qp_attr attributes{};
  attributes.qp_state = IBV_QPS_INIT;
  attributes.port_num = 1;
  attributes.qp_access_flags = access;
  return api.modify_qp(qp, &attributes, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS);
}

int End::to_ready(const End& peer, const LinkOptions& link) {
  ibv_qp_attr attributes{};
  attributes.qp_state = IBV_QPS_RTR;
  attributes.path_mtu = IBV_MTU_1024;
  attributes.dest_qp_num = peer.qp->qp_num;
  attributes.rq_psn = (kFirstPsn + link.psn_error) & 0xFFFFFF;
  attributes.max_dest_rd_atomic = link.reads;
  attributes.min_rnr_timer = link.not_ready_timer;
  attributes.ah_attr.is_global = 1;
  attributes.ah_attr.port_num = 1;
  attributes.ah_attr.grh.dgid = peer.gid(link.gid_index);
  attributes.ah_attr.grh.sgid_index = static_cast<std::uint8_t>(link.gid_index);
  attributes.ah_attr.grh.hop_limit = 64;
  return api.modify_qp(qp, &attributes,
                       IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
                           IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER);
}

int End::to_send(const LinkOptions& link) {
  ibv_qp_attr attributes{};
  attributes.qp_state = IBV_QPS_RTS;
  attributes.timeout = link.timeout;
  attributes.retry_cnt = link.retry_count;
  attributes.rnr_retry = link.not_ready_retries;
  attributes.sq_psn = kFirstPsn;
  attributes.max_rd_atomic = link.reads;
  return api.modify_qp(
      qp, &attributes,
      IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC);
}

int End::to_state(ibv_qp_state state) {
  ibv_qp_attr attributes{};
  attributes.qp_state = state;
  return api.modify_qp(qp, &attributes, IBV_QP_STATE);
}

int End::post(const End& peer, const Request& request) {
  ibv_sge piece{.addr = reinterpret_cast<std::uintptr_t>(&memory[request.from]),
                .length = request.length,
                .lkey = request.lkey ? *request.lkey : mr->lkey};
  ibv_send_wr work{};
  work.wr_id = request.id;
  work.sg_list = &piece;
  work.num_sge = 1;
  work.opcode = request.opcode;
  work.send_flags = request.flags;
  work.imm_data = htonl(request.immediate);
  const auto remote = reinterpret_cast<std::uintptr_t>(peer.memory.data()) + request.to;
  const std::uint32_t rkey = request.rkey ? *request.rkey : (peer.mr != nullptr ? peer.mr->rkey : 0);
  if (request.opcode == IBV_WR_ATOMIC_CMP_AND_SWP || request.opcode == IBV_WR_ATOMIC_FETCH_AND_ADD) {
    work.wr.atomic.remote_addr = remote;
    work.wr.atomic.rkey = rkey;
    work.wr.atomic.compare_add = request.compare_add;
    work.wr.atomic.swap = request.swap;
  } else {
    work.wr.rdma.remote_addr = remote;
    work.wr.rdma.rkey = rkey;
  }
  ibv_send_wr* bad = nullptr;
  const int error = api.post_send(qp, &work, &bad);
  EXPECT_EQ(bad, error == 0 ? nullptr : &work);
  return error;
}

void End::receive(std::uint64_t id, std::size_t offset, std::uint32_t length) {
  ibv_sge piece{.addr = reinterpret_cast<std::uintptr_t>(&memory[offset]), .length = length, .lkey = mr->lkey};
  ibv_recv_wr work{.wr_id = id, .next = nullptr, .sg_list = &piece, .num_sge = 1};
  ibv_recv_wr* bad = nullptr;
  ASSERT_EQ(api.post_srq_recv(srq, &work, &bad), 0);
}

ibv_wc End::completion(std::chrono::milliseconds bound) {
  const auto end = Clock::now() + testing::scaled(bound);
  ibv_wc found{};
  while (api.poll_cq(cq, 1, &found) == 0) {
    if (Clock::now() > end) {
      ADD_FAILURE() << "no completion";
      found.status = IBV_WC_GENERAL_ERR;
      return found;
    }
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
  return found;
}

std::vector<ibv_wc> End::completions(std::size_t count) {
  std::vector<ibv_wc> all;
  while (all.size() < count) {
    all.push_back(completion());
    if (all.back().status == IBV_WC_GENERAL_ERR) break;
  }
  return all;
}

bool End::quiet(std::chrono::milliseconds time) {
  std::this_thread::sleep_for(time);
  ibv_wc found{};
  return api.poll_cq(cq, 1, &found) == 0;
}

bool End::has_event() const { return readable(context->async_fd, std::chrono::milliseconds(0)); }

ibv_event_type End::event() {
  ibv_async_event event{};
  if (!readable(context->async_fd, testing::scaled(std::chrono::seconds(10)))) {
    ADD_FAILURE() << "no event";
    return IBV_EVENT_SM_CHANGE;
  }
  EXPECT_EQ(api.get_async_event(context, &event), 0);
  api.ack_async_event(&event);
  return event.event_type;
}

Pair::Pair(const LinkOptions& link, const DeviceOptions& device, const EndOptions& options)
    : nic_a(std::make_shared<SoftwareNic>(network, NicOptions{.name = "a", .host = {}, .devices = {device}})),
      nic_b(std::make_shared<SoftwareNic>(network, NicOptions{.name = "b", .host = {}, .devices = {device}})),
      a(std::make_unique<End>(*nic_a, options)),
      b(std::make_unique<End>(*nic_b, options)) {
  connect(*a, *b, link);
}

void connect(End& a, End& b, const LinkOptions& link) {
  ASSERT_EQ(a.to_init(link.access), 0);
  ASSERT_EQ(b.to_init(link.access), 0);
  ASSERT_EQ(a.to_ready(b, link), 0);
  ASSERT_EQ(b.to_ready(a, link), 0);
  ASSERT_EQ(a.to_send(link), 0);
  ASSERT_EQ(b.to_send(link), 0);
}

bool readable(int fd, std::chrono::milliseconds bound) {
  pollfd entry{.fd = fd, .events = POLLIN, .revents = 0};
  return ::poll(&entry, 1, static_cast<int>(bound.count())) == 1;
}

void fill(End& end, std::size_t offset, std::size_t length, unsigned seed) {
  for (std::size_t i = 0; i < length; ++i) end.memory[offset + i] = pattern(i, seed);
}

bool filled(const End& end, std::size_t offset, std::size_t length, unsigned seed) {
  for (std::size_t i = 0; i < length; ++i) {
    if (end.memory[offset + i] != pattern(i, seed)) return false;
  }
  return true;
}

}  // namespace dtr::software_nic
