// The state machine of reliable connected queue pairs.
#include <cerrno>

#include "support/software_nic/device.hpp"

namespace dtr::software_nic {

bool transition(ibv_qp_state from, ibv_qp_state to, int& required, int& allowed) noexcept {
  required = 0;
  allowed = 0;
  if (to == IBV_QPS_RESET) return true;
  if (to == IBV_QPS_ERR) return from != IBV_QPS_RESET;
  constexpr int kBasics = IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS;
  if (from == IBV_QPS_RESET && to == IBV_QPS_INIT) {
    required = kBasics;
    return true;
  }
  if (from == IBV_QPS_INIT && to == IBV_QPS_INIT) {
    allowed = kBasics;
    return true;
  }
  if (from == IBV_QPS_INIT && to == IBV_QPS_RTR) {
    required = IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN | IBV_QP_MAX_DEST_RD_ATOMIC |
               IBV_QP_MIN_RNR_TIMER;
    allowed = IBV_QP_ALT_PATH | IBV_QP_ACCESS_FLAGS | IBV_QP_PKEY_INDEX;
    return true;
  }
  constexpr int kLater =
      IBV_QP_CUR_STATE | IBV_QP_ALT_PATH | IBV_QP_ACCESS_FLAGS | IBV_QP_MIN_RNR_TIMER | IBV_QP_PATH_MIG_STATE;
  if (from == IBV_QPS_RTR && to == IBV_QPS_RTS) {
    required = IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC;
    allowed = kLater;
    return true;
  }
  if (from == IBV_QPS_RTS && to == IBV_QPS_RTS) {
    allowed = kLater;
    return true;
  }
  return false;
}

namespace {

/// 0, or EINVAL for a value that the device cannot take.
int check_values(const Device& device, const ibv_qp_attr& wanted, int mask, std::uint8_t port) noexcept {
  const auto has = [&](int bit) { return (mask & bit) != 0; };
  ibv_port_attr state{};
  if (has(IBV_QP_PORT)) port = wanted.port_num;
  if (device.describe_port(port, state) != 0) return EINVAL;
  if (has(IBV_QP_PKEY_INDEX) && wanted.pkey_index != 0) return EINVAL;
  if (has(IBV_QP_PATH_MTU) && (wanted.path_mtu < IBV_MTU_256 || wanted.path_mtu > state.active_mtu)) return EINVAL;
  if (has(IBV_QP_AV)) {
    ibv_gid_entry entry{};
    const ibv_ah_attr& path = wanted.ah_attr;
    if (path.is_global == 0 || path.port_num != port) return EINVAL;
    if (device.gid(port, path.grh.sgid_index, entry) != 0) return EINVAL;
  }
  if (has(IBV_QP_MAX_QP_RD_ATOMIC) && wanted.max_rd_atomic > device.options().max_qp_rd_atom) return EINVAL;
  if (has(IBV_QP_MAX_DEST_RD_ATOMIC) && wanted.max_dest_rd_atomic > device.options().max_qp_rd_atom) return EINVAL;
  if (has(IBV_QP_MIN_RNR_TIMER) && wanted.min_rnr_timer > 31) return EINVAL;
  if (has(IBV_QP_TIMEOUT) && wanted.timeout > 31) return EINVAL;
  if (has(IBV_QP_RETRY_CNT) && wanted.retry_cnt > 7) return EINVAL;
  if (has(IBV_QP_RNR_RETRY) && wanted.rnr_retry > 7) return EINVAL;
  if (has(IBV_QP_DEST_QPN) && wanted.dest_qp_num > 0xFFFFFF) return EINVAL;
  return 0;
}

void apply(const ibv_qp_attr& wanted, int mask, ibv_qp_attr& kept) noexcept {
  const auto has = [&](int bit) { return (mask & bit) != 0; };
  if (has(IBV_QP_ACCESS_FLAGS)) kept.qp_access_flags = wanted.qp_access_flags;
  if (has(IBV_QP_PKEY_INDEX)) kept.pkey_index = wanted.pkey_index;
  if (has(IBV_QP_PORT)) kept.port_num = wanted.port_num;
  if (has(IBV_QP_AV)) kept.ah_attr = wanted.ah_attr;
  if (has(IBV_QP_PATH_MTU)) kept.path_mtu = wanted.path_mtu;
  if (has(IBV_QP_DEST_QPN)) kept.dest_qp_num = wanted.dest_qp_num;
  if (has(IBV_QP_RQ_PSN)) kept.rq_psn = wanted.rq_psn & 0xFFFFFF;
  if (has(IBV_QP_SQ_PSN)) kept.sq_psn = wanted.sq_psn & 0xFFFFFF;
  if (has(IBV_QP_MAX_DEST_RD_ATOMIC)) kept.max_dest_rd_atomic = wanted.max_dest_rd_atomic;
  if (has(IBV_QP_MAX_QP_RD_ATOMIC)) kept.max_rd_atomic = wanted.max_rd_atomic;
  if (has(IBV_QP_MIN_RNR_TIMER)) kept.min_rnr_timer = wanted.min_rnr_timer;
  if (has(IBV_QP_TIMEOUT)) kept.timeout = wanted.timeout;
  if (has(IBV_QP_RETRY_CNT)) kept.retry_cnt = wanted.retry_cnt;
  if (has(IBV_QP_RNR_RETRY)) kept.rnr_retry = wanted.rnr_retry;
}

}  // namespace

void QueuePair::reset() noexcept {
  attributes = {};
  attributes.cap = initial.cap;
  posted = launched = answered = 0;
  slots_freed.store(0, std::memory_order_release);
  last_ready = {};
  tries = not_ready_tries = 0;
  retry_at = {};
  stalled = false;
  last_answer = last_progress = {};
  last_receive_told = false;
}

int QueuePair::modify(const ibv_qp_attr& wanted, int mask) noexcept {
  if (device.broken()) return EIO;
  const bool changes = (mask & IBV_QP_STATE) != 0;
  const bool ends = changes && (wanted.qp_state == IBV_QPS_ERR || wanted.qp_state == IBV_QPS_RESET);
  bool flushes = false;
  {
    const std::lock_guard no_request(requesting);
    if (ends) leave_on_wire(*this);
    const std::lock_guard no_answer(answering);
    std::unique_lock lock(mutex);
    const ibv_qp_state from = now;
    const ibv_qp_state to = changes ? wanted.qp_state : from;
    if ((mask & IBV_QP_CUR_STATE) != 0 && wanted.cur_qp_state != from) return EINVAL;
    int required = 0;
    int allowed = 0;
    if (!transition(from, to, required, allowed)) return EINVAL;
    const int given = mask & ~IBV_QP_STATE;
    if ((given & required) != required || (given & ~(required | allowed)) != 0) return EINVAL;
    if (given != 0 && check_values(device, wanted, given, attributes.port_num) != 0) return EINVAL;
    apply(wanted, given, attributes);
    if (to == IBV_QPS_RESET) reset();
    if (from == IBV_QPS_INIT && to == IBV_QPS_RTR) expected_psn = attributes.rq_psn;
    if (from == IBV_QPS_RTR && to == IBV_QPS_RTS) send_psn = attributes.sq_psn;
    now = to;
    if (changes) state = to;
    flushes = to == IBV_QPS_ERR;
    lock.unlock();
    if (to == IBV_QPS_RESET) {
      send_queue().purge(this);
      receive_queue().purge(this);
    }
  }
  if (flushes) device.engine().kick(*this);
  return 0;
}

void QueuePair::query(ibv_qp_attr& wanted, ibv_qp_init_attr& initial_attributes) noexcept {
  const std::lock_guard lock(mutex);
  wanted = attributes;
  wanted.qp_state = wanted.cur_qp_state = now;
  wanted.path_mig_state = IBV_MIG_MIGRATED;
  initial_attributes = initial;
}

}  // namespace dtr::software_nic
