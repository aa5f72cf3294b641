#include "support/software_nic/queue_pair.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "support/software_nic/device.hpp"

namespace dtr::software_nic {

namespace {

ibv_wc_opcode completion_opcode(ibv_wr_opcode opcode) noexcept {
  switch (opcode) {
    case IBV_WR_RDMA_WRITE:
    case IBV_WR_RDMA_WRITE_WITH_IMM:
      return IBV_WC_RDMA_WRITE;
    case IBV_WR_RDMA_READ:
      return IBV_WC_RDMA_READ;
    case IBV_WR_ATOMIC_CMP_AND_SWP:
      return IBV_WC_COMP_SWAP;
    case IBV_WR_ATOMIC_FETCH_AND_ADD:
      return IBV_WC_FETCH_ADD;
    default:
      return IBV_WC_SEND;
  }
}

bool executable(ibv_wr_opcode opcode) noexcept {
  switch (opcode) {
    case IBV_WR_RDMA_WRITE:
    case IBV_WR_RDMA_WRITE_WITH_IMM:
    case IBV_WR_SEND:
    case IBV_WR_SEND_WITH_IMM:
    case IBV_WR_RDMA_READ:
    case IBV_WR_ATOMIC_CMP_AND_SWP:
    case IBV_WR_ATOMIC_FETCH_AND_ADD:
      return true;
    default:
      return false;
  }
}

bool reads(ibv_wr_opcode opcode) noexcept {
  return opcode == IBV_WR_RDMA_READ || opcode == IBV_WR_ATOMIC_CMP_AND_SWP || opcode == IBV_WR_ATOMIC_FETCH_AND_ADD;
}

}  // namespace

QueuePair::QueuePair(Device& owner, ibv_pd& domain, const ibv_qp_init_attr& wanted, std::uint32_t number)
    : ibv_qp{},
      device(owner),
      initial(wanted),
      ring(std::max(wanted.cap.max_send_wr, 1U)),
      pieces(ring.size() * wanted.cap.max_send_sge),
      inline_data(ring.size() * wanted.cap.max_inline_data) {
  context = domain.context;
  qp_context = wanted.qp_context;
  pd = &domain;
  send_cq = wanted.send_cq;
  recv_cq = wanted.recv_cq;
  srq = wanted.srq;
  qp_num = number;
  state = IBV_QPS_RESET;
  qp_type = wanted.qp_type;
  attributes.cap = wanted.cap;
}

int QueuePair::check(const ibv_send_wr& request) const noexcept {
  if (!executable(request.opcode)) return EINVAL;
  if (request.num_sge < 0 || static_cast<std::uint32_t>(request.num_sge) > initial.cap.max_send_sge) return EINVAL;
  if ((request.send_flags & IBV_SEND_INLINE) == 0) return 0;
  if (reads(request.opcode)) return EINVAL;
  std::uint64_t bytes = 0;
  for (int i = 0; i < request.num_sge; ++i) bytes += request.sg_list[i].length;
  return bytes > initial.cap.max_inline_data ? EINVAL : 0;
}

void QueuePair::store(const ibv_send_wr& request) noexcept {
  const std::size_t slot = posted % ring.size();
  SendEntry& entry = ring[slot];
  entry = {.wr_id = request.wr_id,
           .opcode = request.opcode,
           .flags = request.send_flags,
           .immediate = request.imm_data,
           .pieces = request.num_sge};
  if (request.opcode == IBV_WR_ATOMIC_CMP_AND_SWP || request.opcode == IBV_WR_ATOMIC_FETCH_AND_ADD) {
    entry.remote = request.wr.atomic.remote_addr;
    entry.rkey = request.wr.atomic.rkey;
    entry.compare_add = request.wr.atomic.compare_add;
    entry.swap = request.wr.atomic.swap;
  } else {
    entry.remote = request.wr.rdma.remote_addr;
    entry.rkey = request.wr.rdma.rkey;
  }
  if ((request.send_flags & IBV_SEND_INLINE) != 0) {
    std::byte* copy = inline_data.data() + slot * initial.cap.max_inline_data;
    for (int i = 0; i < request.num_sge; ++i) {
      const ibv_sge& piece = request.sg_list[i];
      if (piece.length > 0) {
        const void* from = reinterpret_cast<const void*>(piece.addr);  // NOLINT(performance-no-int-to-ptr): verbs' way
        std::memcpy(copy + entry.inline_bytes, from, piece.length);
      }
      entry.inline_bytes += piece.length;
    }
    entry.pieces = 0;
  } else {
    std::copy_n(request.sg_list, request.num_sge,
                pieces.begin() + static_cast<std::ptrdiff_t>(slot * initial.cap.max_send_sge));
  }
  if (device.network().has_rules()) {
    RawGid to{};
    std::memcpy(to.data(), attributes.ah_attr.grh.dgid.raw, to.size());
    const Network::Place place = device.network().find(to);
    const Clock::duration latency = place.device == nullptr
                                        ? Clock::duration{}
                                        : device.network().latency(device.full_name(), place.device->full_name());
    entry.sent_at = Clock::now();
    if (latency.count() > 0) last_ready = std::max(last_ready, entry.sent_at + latency);
    entry.ready_at = last_ready;
  }
  ++posted;
}

int QueuePair::post(ibv_send_wr* first, ibv_send_wr** bad) noexcept {
  const Execution mode = device.execution();
  std::uint64_t taken = 0;
  int error = 0;
  bool overrun = false;
  {
    const std::lock_guard lock(mutex);
    if (gone || (now != IBV_QPS_RTS && now != IBV_QPS_ERR)) {
      *bad = first;
      return EINVAL;
    }
    std::uint64_t freed = slots_freed.load(std::memory_order_acquire);
    for (ibv_send_wr* request = first; request != nullptr; request = request->next, ++taken) {
      error = check(*request);
      if (error == 0 && posted - freed == ring.size()) {
        freed = slots_freed.load(std::memory_order_acquire);
        if (posted - freed == ring.size()) error = ENOMEM;
      }
      if (error != 0) {
        *bad = request;
        break;
      }
      if (mode != Execution::complete_at_post || now == IBV_QPS_ERR) {
        store(*request);
        continue;
      }
      launched = answered = ++posted;
      if (initial.sq_sig_all == 0 && (request->send_flags & IBV_SEND_SIGNALED) == 0) continue;
      CompletionQueue::Entry done;
      done.completion.wr_id = request->wr_id;
      done.completion.opcode = completion_opcode(request->opcode);
      done.completion.qp_num = qp_num;
      done.queue_pair = this;
      done.slots = &slots_freed;
      done.free_up_to = posted;
      bool first_time = false;
      overrun = !send_queue().push(done, first_time) || overrun;
    }
  }
  device.count_posted(taken);
  if (overrun) enter_error();
  if (taken > 0 && mode != Execution::complete_at_post) device.engine().kick(*this);
  return error;
}

void QueuePair::complete(const SendEntry& entry, std::uint64_t position, ibv_wc_status status,
                         std::uint32_t bytes) noexcept {
  CompletionQueue::Entry done;
  done.completion.wr_id = entry.wr_id;
  done.completion.status = status;
  done.completion.qp_num = qp_num;
  if (status == IBV_WC_SUCCESS) {
    done.completion.opcode = completion_opcode(entry.opcode);
    done.completion.byte_len = bytes;
  } else {
    // Nothing but these is valid with an error, so let who reads more be found out.
    done.completion.opcode = static_cast<ibv_wc_opcode>(0x7F);
    done.completion.byte_len = 0xFFFFFFFF;
    done.completion.vendor_err = 0x100U + static_cast<std::uint32_t>(status);
  }
  done.queue_pair = this;
  done.slots = &slots_freed;
  done.free_up_to = position + 1;
  push(send_queue(), done);
}

void QueuePair::push(CompletionQueue& queue, const CompletionQueue::Entry& completion) noexcept {
  bool first_time = false;
  if (queue.push(completion, first_time)) return;
  if (first_time) device.post_event(*context, IBV_EVENT_CQ_ERR, &queue);
  bool fatal = false;
  {
    const std::lock_guard lock(mutex);
    fatal = now != IBV_QPS_ERR;
  }
  if (fatal) device.post_event(*context, IBV_EVENT_QP_FATAL, this);
  enter_error();
}

void QueuePair::enter_error() noexcept {
  {
    const std::lock_guard lock(mutex);
    if (gone || now == IBV_QPS_RESET || now == IBV_QPS_ERR) return;
    now = IBV_QPS_ERR;
  }
  device.engine().kick(*this);
}

void QueuePair::destroy() noexcept {
  {
    const std::lock_guard no_request(requesting);
    leave_on_wire(*this);
    const std::lock_guard no_answer(answering);
    const std::lock_guard lock(mutex);
    gone = true;
    now = IBV_QPS_RESET;
  }
  send_queue().purge(this);
  receive_queue().purge(this);
}

void QueuePair::complete_posted() noexcept {
  const std::lock_guard no_request(requesting);
  while (true) {
    std::uint64_t position = 0;
    {
      const std::lock_guard lock(mutex);
      if (gone || now != IBV_QPS_RTS || launched == posted) return;
      position = launched;
      launched = answered = position + 1;
    }
    const SendEntry& entry = at(position);
    if (signalled(entry)) complete(entry, position, IBV_WC_SUCCESS);
  }
}

}  // namespace dtr::software_nic
