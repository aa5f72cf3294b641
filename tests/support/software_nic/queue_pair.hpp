// A queue pair: its state, its send queue, and what it expects from its peer.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include <infiniband/verbs.h>

#include "support/software_nic/completion.hpp"
#include "support/software_nic/network.hpp"
#include "support/software_nic/receive_queue.hpp"

namespace dtr::software_nic {

class Device;

/// A work request in the send queue.
struct SendEntry {
  std::uint64_t wr_id = 0;
  ibv_wr_opcode opcode = IBV_WR_RDMA_WRITE;
  unsigned flags = 0;
  __be32 immediate = 0;
  std::uint32_t rkey = 0;
  std::uint64_t remote = 0;
  std::uint64_t compare_add = 0;
  std::uint64_t swap = 0;
  int pieces = 0;
  std::uint32_t inline_bytes = 0;
  Clock::time_point sent_at{};   ///< known while there are rules for the wire
  Clock::time_point ready_at{};  ///< when it reaches the peer

  // What the engine has made of it.
  bool counted = false;                   ///< against the request faults
  bool landed = false;                    ///< the peer has executed it; its answer may have been lost
  ibv_wc_status forced = IBV_WC_SUCCESS;  ///< by a fault, whatever the peer answers
  std::uint32_t psn = 0;
  ibv_wc_status status = IBV_WC_SUCCESS;
  Clock::time_point answered_at{};
  std::vector<std::byte> result{};  ///< of reads and atomics

  [[nodiscard]] bool reads() const noexcept {
    return opcode == IBV_WR_RDMA_READ || opcode == IBV_WR_ATOMIC_CMP_AND_SWP || opcode == IBV_WR_ATOMIC_FETCH_AND_ADD;
  }
};

/// Locks are taken in this order: `requesting`, then the peer's or the own `answering`, then `mutex`. Who holds an
/// `answering` never waits for a `requesting`.
struct QueuePair : ibv_qp, std::enable_shared_from_this<QueuePair> {
  QueuePair(Device& device, ibv_pd& domain, const ibv_qp_init_attr& attributes, std::uint32_t number);

  [[nodiscard]] CompletionQueue& send_queue() const noexcept { return *static_cast<CompletionQueue*>(send_cq); }
  [[nodiscard]] CompletionQueue& receive_queue() const noexcept { return *static_cast<CompletionQueue*>(recv_cq); }
  [[nodiscard]] SharedReceiveQueue* shared_receives() const noexcept { return static_cast<SharedReceiveQueue*>(srq); }

  [[nodiscard]] int post(ibv_send_wr* first, ibv_send_wr** bad) noexcept;
  [[nodiscard]] int modify(const ibv_qp_attr& wanted, int mask) noexcept;
  void query(ibv_qp_attr& attributes, ibv_qp_init_attr& initial_attributes) noexcept;
  /// Nothing happens through it any more when this returns.
  void destroy() noexcept;

  /// Ends its use because of an error; pending requests are flushed by the device's engine.
  void enter_error() noexcept;
  /// A completion of the send queue; signalled or not is for the caller to know.
  void complete(const SendEntry& entry, std::uint64_t position, ibv_wc_status status, std::uint32_t bytes = 0) noexcept;
  void push(CompletionQueue& queue, const CompletionQueue::Entry& completion) noexcept;
  /// Completes what was posted without executing it.
  void complete_posted() noexcept;

  [[nodiscard]] SendEntry& at(std::uint64_t position) noexcept { return ring[position % ring.size()]; }
  [[nodiscard]] std::span<const ibv_sge> pieces_of(std::uint64_t position) const noexcept {
    const std::size_t slot = position % ring.size();
    return {pieces.data() + slot * initial.cap.max_send_sge, static_cast<std::size_t>(ring[slot].pieces)};
  }
  [[nodiscard]] std::span<const std::byte> inline_of(std::uint64_t position) const noexcept {
    const std::size_t slot = position % ring.size();
    return {inline_data.data() + slot * initial.cap.max_inline_data, ring[slot].inline_bytes};
  }
  [[nodiscard]] bool signalled(const SendEntry& entry) const noexcept {
    return initial.sq_sig_all != 0 || (entry.flags & IBV_SEND_SIGNALED) != 0;
  }

  Device& device;
  const ibv_qp_init_attr initial;

  std::mutex requesting;  ///< held while one of its requests is executed
  std::mutex answering;   ///< held while a request of the peer is executed here
  std::mutex mutex;       ///< of all that follows but the engine's part

  ibv_qp_state now = IBV_QPS_RESET;  ///< ibv_qp's own field is what the last modify_qp made of it
  bool gone = false;
  bool last_receive_told = false;
  ibv_qp_attr attributes{};
  std::uint32_t expected_psn = 0;

  // Positions in the send queue: slots_freed <= answered <= launched <= posted.
  std::vector<SendEntry> ring;
  std::vector<ibv_sge> pieces;
  std::vector<std::byte> inline_data;
  std::uint64_t posted = 0;
  std::uint64_t launched = 0;
  std::uint64_t answered = 0;
  std::atomic<std::uint64_t> slots_freed{0};
  Clock::time_point last_ready{};

  // The engine's part, under `requesting`.
  std::uint32_t send_psn = 0;
  int tries = 0;
  int not_ready_tries = 0;
  Clock::time_point retry_at{};
  bool stalled = false;  ///< a request failed; nothing after it is executed
  Clock::time_point last_answer{};
  Clock::time_point last_progress{};  ///< when an answer came

  // Under the engine's own lock.
  bool listed = false;
  Clock::time_point due{};

 private:
  [[nodiscard]] int check(const ibv_send_wr& request) const noexcept;
  void store(const ibv_send_wr& request) noexcept;
  void reset() noexcept;
};

/// What is required of, and allowed in, modify_qp for a change of state. False: there is no such change.
[[nodiscard]] bool transition(ibv_qp_state from, ibv_qp_state to, int& required, int& allowed) noexcept;

}  // namespace dtr::software_nic
