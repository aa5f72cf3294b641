// What can be made to go wrong, and what is counted.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include <infiniband/verbs.h>

namespace dtr::software_nic {

/// The functions of the table.
enum class Call : std::uint8_t {
  get_device_list,
  open_device,
  close_device,
  query_device,
  query_port,
  query_gid,
  get_async_event,
  alloc_pd,
  dealloc_pd,
  reg_mr,
  reg_dmabuf_mr,
  dereg_mr,
  create_comp_channel,
  destroy_comp_channel,
  create_cq,
  destroy_cq,
  poll_cq,
  req_notify_cq,
  get_cq_event,
  ack_cq_events,
  create_srq,
  destroy_srq,
  post_srq_recv,
  create_qp,
  modify_qp,
  query_qp,
  destroy_qp,
  post_send,
};
inline constexpr std::size_t kCalls = static_cast<std::size_t>(Call::post_send) + 1;

/// From the `nth` call of `call` from now on (1 = the next), `times` calls fail with `error`. get_device_list,
/// open_device, query_*, alloc_pd, reg_*, create_*, modify_qp, post_send and post_srq_recv can fail.
struct CallFault {
  Call call = Call::post_send;
  std::uint64_t nth = 1;
  int error = 0;
  std::uint64_t times = 1;
};

/// The `nth` request from now on (1 = the next) that the device, or one of its queue pairs, executes ends with
/// `status`, and the queue pair with it.
struct RequestFault {
  std::string device{};      ///< empty: the first
  std::uint32_t qp_num = 0;  ///< 0: any queue pair of the device
  std::uint64_t nth = 1;
  ibv_wc_status status = IBV_WC_GENERAL_ERR;
  bool landed = false;  ///< it has its effect at the peer all the same, as when only the answer is lost
};

/// What the wire does to all that travels in one direction: requests one way, their answers the other.
struct WireFaults {
  std::chrono::microseconds delay{0};
  std::chrono::microseconds jitter{0};  ///< up to so much more, at random; order within a queue pair stays
  double loss = 0;              ///< probability that a request or an answer is lost; the sender's timer repeats it
  std::uint64_t drop_next = 0;  ///< the next so many are lost
  bool cut = false;             ///< all are lost
  std::chrono::milliseconds lasting{0};  ///< the rule ends after this; 0 = when it is replaced
};

/// What post_send does.
enum class Execution : std::uint8_t {
  normal,
  complete_at_post,  ///< checks and counts only; signalled requests are complete when the call returns
  on_demand,         ///< checks and keeps; SoftwareNic::complete_posted() completes them. Nothing is moved
};

/// Calls made, and those that are to fail.
class CallLedger {
 public:
  /// Counts a call. Not 0: it is to fail with this errno.
  [[nodiscard]] int enter(Call call) noexcept {
    counts_[static_cast<std::size_t>(call)].fetch_add(1, std::memory_order_relaxed);
    return armed_.load(std::memory_order_acquire) ? next_fault(call) : 0;
  }
  [[nodiscard]] std::uint64_t count(Call call) const noexcept {
    return counts_[static_cast<std::size_t>(call)].load(std::memory_order_relaxed);
  }
  void arm(const CallFault& fault);
  void disarm();

 private:
  [[nodiscard]] int next_fault(Call call) noexcept;

  std::array<std::atomic<std::uint64_t>, kCalls> counts_{};
  std::atomic<bool> armed_{false};
  std::mutex mutex_;
  std::vector<CallFault> faults_;
};

/// Requests that are to fail on one device.
class RequestLedger {
 public:
  /// Called once a request that is about to be executed; true: it is to fail as `fault` says.
  [[nodiscard]] bool next(std::uint32_t qp_num, RequestFault& fault) noexcept {
    return armed_.load(std::memory_order_acquire) && take(qp_num, fault);
  }
  void arm(const RequestFault& fault);
  void disarm();

 private:
  [[nodiscard]] bool take(std::uint32_t qp_num, RequestFault& fault) noexcept;

  std::atomic<bool> armed_{false};
  std::mutex mutex_;
  std::vector<RequestFault> faults_;
};

}  // namespace dtr::software_nic
