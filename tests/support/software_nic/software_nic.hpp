// A software NIC behind the table of verbs calls: ranks of one process talk over simulated reliable queue pairs.
//
//   auto network = std::make_shared<Network>();
//   auto a = std::make_shared<SoftwareNic>(network, NicOptions{.name = "a"});   // one a rank, each with its devices
//   auto b = std::make_shared<SoftwareNic>(network, NicOptions{.name = "b", .devices = {{}, {}}});   // two rails
//   network->set_wire("a/soft0", "b/soft0", {.loss = 0.05});                    // faults: network.hpp, faults.hpp
//
// What a program sees is what libibverbs shows on a good NIC with RoCE; where drivers differ, the stricter one:
//   - A slot of the send queue is free again when a completion at or after it has been polled.
//   - With an error every request ends with a completion, signalled or not: a completion queue must have room for it.
//   - Of a failed completion only wr_id, status, qp_num and vendor_err are valid; the rest is garbage.
//   - lkey and rkey of a region differ, keys and queue pair numbers are never used twice, limits are exact.
//   - Memory with relaxed ordering is written back to front. In other memory aligned 8-byte words are written by
//     single atomic stores in rising order.
//   - Arming a completion queue gives no event for what is in it already.
//   - When modify_qp to ERR (or RESET) or destroy_qp returns, nothing of the peer's lands through that queue pair any
//     more, and its own requests touch no memory. What was on a wire with delay still arrives at the peer, also when
//     the delay is longer than the sender's repetitions and the request has ended with RETRY_EXC_ERR.
//   - When dereg_mr returns, no byte is read or written there.
//   - Requests to a peer that is not there (no route, no queue pair, wrong PSN, port down, frozen) have no answer:
//     they end with RETRY_EXC_ERR after retry_cnt repetitions.
// Not simulated: post_recv (only shared receive queues), SQD and SQE states, memory windows, path migration.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "dtr/fabric/verbs/verbs_api.hpp"
#include "support/software_nic/faults.hpp"
#include "support/software_nic/network.hpp"
#include "support/software_nic/options.hpp"

namespace dtr::software_nic {

struct NicOptions {
  std::string name{};                    ///< of the rank in rules of the wire; empty: "nic0", "nic1", ...
  std::string host{};                    ///< link-local GIDs reach only this host; empty: the name
  std::vector<DeviceOptions> devices{};  ///< empty: one
};

/// All calls from any thread. A device's thread starts with its first request. The destructor destroys what the
/// program has left, as the kernel does when a process ends.
class SoftwareNic : public fabric::verbs::VerbsApi {
 public:
  explicit SoftwareNic(std::shared_ptr<Network> network, NicOptions options = {});
  ~SoftwareNic() override;
  SoftwareNic(const SoftwareNic&) = delete;
  SoftwareNic& operator=(const SoftwareNic&) = delete;

  // --- faults. A device is named as in its options; "" is the first. Unknown names throw std::out_of_range ---

  void set_port(bool up, const std::string& device = {}, std::uint8_t port = 1);
  /// Changes an entry of a GID table; an empty address clears it. Queue pairs that used it lose their peer.
  void set_gid(std::uint32_t index, const GidOptions& gid, const std::string& device = {}, std::uint8_t port = 1);
  /// Device fatal: nothing is executed any more, calls that make or modify give EIO, destroying works.
  void break_device(const std::string& device = {});
  /// The device executes, answers and completes nothing, not even flushed requests, until it is thawed.
  void freeze(const std::string& device = {});
  void thaw(const std::string& device = {});
  void fail_request(const RequestFault& fault);
  void fail_call(const CallFault& fault);
  /// Forgets faults of requests and calls that have not happened yet.
  void clear_faults();

  // --- measuring ---

  /// What post_send does on all devices. To be changed while nothing is under way.
  void set_execution(Execution mode);
  /// With Execution::on_demand: completes what has been posted, successfully.
  void complete_posted();
  [[nodiscard]] std::uint64_t calls(Call call) const noexcept { return calls_.count(call); }
  /// Work requests that post_send has taken; calls(Call::post_send) counts doorbells.
  [[nodiscard]] std::uint64_t posted_requests() const noexcept;
  [[nodiscard]] std::uint64_t posted_requests(const std::string& device) const;
  /// How often a peer has answered that its receive queue is empty.
  [[nodiscard]] std::uint64_t not_ready_answers() const noexcept;
  /// Verbs objects that exist: 0 when everything has been destroyed.
  [[nodiscard]] std::size_t objects() const;

  // --- the table ---

  ibv_device** get_device_list(int* count) noexcept override;
  void free_device_list(ibv_device** list) noexcept override;
  const char* get_device_name(ibv_device* device) noexcept override;
  ibv_context* open_device(ibv_device* device) noexcept override;
  int close_device(ibv_context* context) noexcept override;
  int query_device(ibv_context* context, ibv_device_attr* attributes) noexcept override;
  int query_port(ibv_context* context, std::uint8_t port, ibv_port_attr* attributes) noexcept override;
  int query_gid(ibv_context* context, std::uint8_t port, std::uint32_t index, ibv_gid_entry* entry) noexcept override;
  int get_async_event(ibv_context* context, ibv_async_event* event) noexcept override;
  void ack_async_event(ibv_async_event* event) noexcept override;
  ibv_pd* alloc_pd(ibv_context* context) noexcept override;
  int dealloc_pd(ibv_pd* pd) noexcept override;
  ibv_mr* reg_mr(ibv_pd* pd, void* address, std::size_t length, unsigned access) noexcept override;
  ibv_mr* reg_dmabuf_mr(ibv_pd* pd, std::uint64_t offset, std::size_t length, std::uint64_t iova, int fd,
                        unsigned access) noexcept override;
  int dereg_mr(ibv_mr* mr) noexcept override;
  ibv_comp_channel* create_comp_channel(ibv_context* context) noexcept override;
  int destroy_comp_channel(ibv_comp_channel* channel) noexcept override;
  ibv_cq* create_cq(ibv_context* context, int entries, void* user, ibv_comp_channel* channel,
                    int vector) noexcept override;
  int destroy_cq(ibv_cq* cq) noexcept override;
  int poll_cq(ibv_cq* cq, int entries, ibv_wc* completions) noexcept override;
  int req_notify_cq(ibv_cq* cq, int solicited_only) noexcept override;
  int get_cq_event(ibv_comp_channel* channel, ibv_cq** cq, void** user) noexcept override;
  void ack_cq_events(ibv_cq* cq, unsigned count) noexcept override;
  ibv_srq* create_srq(ibv_pd* pd, ibv_srq_init_attr* attributes) noexcept override;
  int destroy_srq(ibv_srq* srq) noexcept override;
  int post_srq_recv(ibv_srq* srq, ibv_recv_wr* first, ibv_recv_wr** bad) noexcept override;
  ibv_qp* create_qp(ibv_pd* pd, ibv_qp_init_attr* attributes) noexcept override;
  int modify_qp(ibv_qp* qp, ibv_qp_attr* attributes, int mask) noexcept override;
  int query_qp(ibv_qp* qp, ibv_qp_attr* attributes, int mask, ibv_qp_init_attr* initial) noexcept override;
  int destroy_qp(ibv_qp* qp) noexcept override;
  int post_send(ibv_qp* qp, ibv_send_wr* first, ibv_send_wr** bad) noexcept override;

 private:
  [[nodiscard]] Device& named(const std::string& device) const;

  std::shared_ptr<Network> network_;
  std::vector<std::shared_ptr<Device>> devices_;
  CallLedger calls_;
};

}  // namespace dtr::software_nic
