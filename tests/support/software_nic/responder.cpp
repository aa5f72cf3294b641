#include "support/software_nic/responder.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>

#include "support/software_nic/device.hpp"

namespace dtr::software_nic {

namespace {

constexpr unsigned kGarbageOpcode = 0x7F;

Answer refuse(QueuePair& target, ibv_wc_status status, ibv_event_type event) {
  target.device.post_event(*target.context, event, &target);
  target.enter_error();
  return {.kind = Answer::Kind::error, .status = status};
}

Answer invalid_request(QueuePair& target) { return refuse(target, IBV_WC_REM_INV_REQ_ERR, IBV_EVENT_QP_REQ_ERR); }
Answer access_denied(QueuePair& target) { return refuse(target, IBV_WC_REM_ACCESS_ERR, IBV_EVENT_QP_ACCESS_ERR); }

/// The right that a request needs, of the queue pair and of the memory.
unsigned right_for(ibv_wr_opcode opcode) noexcept {
  switch (opcode) {
    case IBV_WR_RDMA_WRITE:
    case IBV_WR_RDMA_WRITE_WITH_IMM:
      return IBV_ACCESS_REMOTE_WRITE;
    case IBV_WR_RDMA_READ:
      return IBV_ACCESS_REMOTE_READ;
    case IBV_WR_ATOMIC_CMP_AND_SWP:
    case IBV_WR_ATOMIC_FETCH_AND_ADD:
      return IBV_ACCESS_REMOTE_ATOMIC;
    default:
      return 0;
  }
}

void swap_word(std::byte* place, const Request& request, std::vector<std::byte>& result) {
  const std::atomic_ref<std::uint64_t> word(*reinterpret_cast<std::uint64_t*>(place));
  std::uint64_t old = request.compare_add;
  if (request.opcode == IBV_WR_ATOMIC_FETCH_AND_ADD) {
    old = word.fetch_add(request.compare_add, std::memory_order_acq_rel);
  } else {
    word.compare_exchange_strong(old, request.swap, std::memory_order_acq_rel);
  }
  result.resize(sizeof old);
  std::memcpy(result.data(), &old, sizeof old);
}

void finish_receive(QueuePair& target, std::uint64_t wr_id, const Request& request, ibv_wc_status status) {
  CompletionQueue::Entry entry;
  entry.completion.wr_id = wr_id;
  entry.completion.status = status;
  entry.completion.qp_num = target.qp_num;
  entry.queue_pair = &target;
  entry.solicited = request.solicited;
  if (status != IBV_WC_SUCCESS) {
    entry.completion.opcode = static_cast<ibv_wc_opcode>(kGarbageOpcode);
    entry.completion.byte_len = 0xFFFFFFFF;
    entry.completion.vendor_err = 0x100U + static_cast<std::uint32_t>(status);
  } else {
    entry.completion.opcode = request.opcode == IBV_WR_RDMA_WRITE_WITH_IMM ? IBV_WC_RECV_RDMA_WITH_IMM : IBV_WC_RECV;
    entry.completion.byte_len = static_cast<std::uint32_t>(request.length);
    if (request.opcode != IBV_WR_SEND) {
      entry.completion.wc_flags = IBV_WC_WITH_IMM;
      entry.completion.imm_data = request.immediate;
    }
  }
  target.push(target.receive_queue(), entry);
}

/// Puts a message into a receive's buffers. SUCCESS, LOC_LEN_ERR or LOC_PROT_ERR.
ibv_wc_status scatter(QueuePair& target, const SharedReceiveQueue::Receive& receive, const Request& request) {
  std::uint64_t room = 0;
  for (const ibv_sge& piece : receive.pieces) room += piece.length;
  if (room < request.length) return IBV_WC_LOC_LEN_ERR;
  std::uint64_t done = 0;
  for (const ibv_sge& piece : receive.pieces) {
    const std::uint64_t bytes = std::min<std::uint64_t>(piece.length, request.length - done);
    if (bytes == 0) break;
    const MemoryTable::Pin pin = target.device.memory().pin(MemoryTable::Key::local, piece.lkey, target.pd, piece.addr,
                                                            bytes, IBV_ACCESS_LOCAL_WRITE);
    if (!pin) return IBV_WC_LOC_PROT_ERR;
    land(pin.data(), request.payload + done, bytes, pin.relaxed());
    done += bytes;
  }
  return IBV_WC_SUCCESS;
}

/// One-sided part: writes, reads, atomics. done or an error.
Answer touch_memory(QueuePair& target, const Request& request, std::vector<std::byte>& result) {
  const bool atomic = right_for(request.opcode) == IBV_ACCESS_REMOTE_ATOMIC;
  const std::uint64_t length = atomic ? sizeof(std::uint64_t) : request.length;
  if (request.opcode == IBV_WR_RDMA_READ) result.resize(length);
  if (length == 0) return {.kind = Answer::Kind::done};  // keys are not looked at
  const MemoryTable::Pin pin = target.device.memory().pin(MemoryTable::Key::remote, request.rkey, target.pd,
                                                          request.remote, length, right_for(request.opcode));
  if (!pin) return access_denied(target);
  if (atomic) {
    swap_word(pin.data(), request, result);
  } else if (request.opcode == IBV_WR_RDMA_READ) {
    fetch(result.data(), pin.data(), length, pin.relaxed());
  } else {
    land(pin.data(), request.payload, length, pin.relaxed());
  }
  return {.kind = Answer::Kind::done};
}

}  // namespace

Clock::duration not_ready_time(std::uint8_t code) noexcept {
  constexpr std::array<int, 32> kTensOfMicroseconds = {
      65536, 1,   2,   3,   4,    6,    8,    12,   16,   24,   32,   48,    64,    96,    128,   192,
      256,   384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384, 24576, 32768, 49152};
  return std::chrono::microseconds(10) * kTensOfMicroseconds[code & 31U];
}

bool answers(QueuePair& target) {
  const std::lock_guard lock(target.mutex);
  return !target.gone && (target.now == IBV_QPS_RTR || target.now == IBV_QPS_RTS);
}

Answer execute(QueuePair& target, const Request& request, std::vector<std::byte>& result) {
  const std::lock_guard answering(target.answering);
  unsigned rights = 0;
  std::uint8_t timer = 0;
  bool serves_reads = false;
  {
    const std::lock_guard lock(target.mutex);
    const ibv_qp_attr& own = target.attributes;
    if (target.gone || (target.now != IBV_QPS_RTR && target.now != IBV_QPS_RTS)) return {};
    if (own.dest_qp_num != request.from_qp) return {};
    if (std::memcmp(own.ah_attr.grh.dgid.raw, request.from.data(), request.from.size()) != 0) return {};
    if (!request.repeated && target.expected_psn != request.psn) return {};
    rights = own.qp_access_flags;
    timer = own.min_rnr_timer;
    serves_reads = own.max_dest_rd_atomic > 0;
  }
  const unsigned right = right_for(request.opcode);
  const bool atomic = right == IBV_ACCESS_REMOTE_ATOMIC;
  if ((rights & right) != right) return invalid_request(target);
  if ((atomic || request.opcode == IBV_WR_RDMA_READ) && !serves_reads) return invalid_request(target);
  if (atomic &&
      (request.remote % sizeof(std::uint64_t) != 0 || target.device.options().atomic_cap == IBV_ATOMIC_NONE)) {
    return invalid_request(target);
  }

  const bool consumes = request.opcode == IBV_WR_SEND || request.opcode == IBV_WR_SEND_WITH_IMM ||
                        request.opcode == IBV_WR_RDMA_WRITE_WITH_IMM;
  // As packets do: the data of a write with immediate lands before the receive is looked for.
  if (right != 0) {
    if (const Answer answer = touch_memory(target, request, result); answer.kind != Answer::Kind::done) return answer;
  }
  SharedReceiveQueue::Receive receive;
  if (consumes && (target.shared_receives() == nullptr || !target.shared_receives()->take(receive))) {
    return {.kind = Answer::Kind::not_ready, .wait = not_ready_time(timer)};
  }
  if (right == 0) {
    if (const ibv_wc_status status = scatter(target, receive, request); status != IBV_WC_SUCCESS) {
      finish_receive(target, receive.wr_id, request, status);
      target.enter_error();
      return {.kind = Answer::Kind::error,
              .status = status == IBV_WC_LOC_LEN_ERR ? IBV_WC_REM_INV_REQ_ERR : IBV_WC_REM_OP_ERR};
    }
  }
  if (!request.repeated) {
    const std::lock_guard lock(target.mutex);
    target.expected_psn = (request.psn + request.packets) & 0xFFFFFF;
  }
  if (consumes) finish_receive(target, receive.wr_id, request, IBV_WC_SUCCESS);
  return {.kind = Answer::Kind::done};
}

}  // namespace dtr::software_nic
