#include "dtr/fabric/verbs/rail.hpp"

#include <algorithm>
#include <cstring>
#include <system_error>

#include <sys/random.h>

#include "dtr/fabric/verbs/link.hpp"

namespace dtr::inline v0 {
namespace fabric::verbs {

namespace {

constexpr std::uint8_t kRetries = 6;  // 7 would mean for ever to some devices

/// Exponent of the acknowledgement time-out, 4.096 us * 2^n, with which all retries fit into a quarter of the
/// detection time: a device may wait up to four times as long as told.
std::uint8_t timeout_exponent(std::chrono::milliseconds detect) noexcept {
  const double share = std::chrono::duration<double, std::micro>(detect).count() / 4 / (kRetries + 1);
  std::uint8_t exponent = 10;
  while (exponent < 20 && 4.096 * static_cast<double>(1ULL << (exponent + 1U)) <= share) ++exponent;
  return exponent;
}

tl::unexpected<Error> refusal(int error, const char* step, const std::string& device) {
  return fail(Errc::device_error, std::string(step) + ": " + std::generic_category().message(error), "connect", -1,
              "verbs " + device);
}

}  // namespace

std::uint32_t new_psn(std::uint32_t before) noexcept {
  std::uint32_t random = 0;
  if (::getrandom(&random, sizeof random, GRND_NONBLOCK) != sizeof random) {  // a machine that has just booted
    random = before + static_cast<std::uint32_t>(now_ns() | 1);
  }
  random &= 0xFFFFFF;
  return random != before ? random : random ^ 0x800000;
}

Rail::Rail(Link& owner, std::uint32_t place, std::size_t nic_place, std::size_t port_place, std::uint32_t depth)
    : link(owner), number(place), nic(nic_place), port(port_place), ring(depth) {}

Result<void> Rail::make(Nic& device, std::uint32_t receives) {
  auto made = device.make_queue_pair(*this, ring.depth(), receives, &max_inline);
  if (!made) return fail(std::move(made.error()));
  queue_pair = std::move(*made);
  psn = new_psn(psn);
  return {};
}

void Rail::start_counting() noexcept {
  ring.restart();
  bytes_under_way = 0;
  ordered = 0;
  spent = peer_consumed = consumed = returned = 0;
  received = 0;
  used = false;
  flushed = 0;
  errored = last_receive = false;
  refused = 0;
  peer_ready = false;
  peer_received.reset();
}

void Rail::adopt(EarlyQueuePair made) {
  queue_pair = std::move(made.queue_pair);
  psn = made.psn;
  max_inline = made.max_inline;
  epoch = 1;
  link.nic_of(*this).redirect(queue_pair->qp_num, *this);
}

Result<void> Rail::connect(const PortAddress& peer, const GidChoice& choice, QueuePairName theirs,
                           std::chrono::milliseconds detect) {
  Nic& device = link.nic_of(*this);
  ibv_qp_attr towards{};
  towards.qp_state = IBV_QPS_RTR;
  towards.path_mtu = static_cast<ibv_mtu>(std::min(peer.mtu, device.address().mtu));
  towards.dest_qp_num = theirs.number;
  towards.rq_psn = theirs.psn;
  towards.max_dest_rd_atomic = device.address().rd_atomic;
  towards.min_rnr_timer = 12;
  towards.ah_attr.port_num = device.port();
  towards.ah_attr.dlid = peer.lid;
  if (peer.offer.ethernet) {
    towards.ah_attr.is_global = 1;
    towards.ah_attr.grh.hop_limit = 64;
    towards.ah_attr.grh.sgid_index = static_cast<std::uint8_t>(choice.ours.index);
    std::memcpy(towards.ah_attr.grh.dgid.raw, choice.theirs.gid.data(), choice.theirs.gid.size());
  }
  VerbsApi& api = device.api();
  if (const int error = api.modify_qp(queue_pair.get(), &towards,
                                      IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
                                          IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER);
      error != 0) {
    return refusal(error, "queue pair to ready-to-receive", device.name());
  }
  ibv_qp_attr sends{};
  sends.qp_state = IBV_QPS_RTS;
  sends.timeout = timeout_exponent(detect);
  sends.retry_cnt = kRetries;
  sends.rnr_retry = kRetries;  // credits see to it that it is never needed
  sends.sq_psn = psn;
  sends.max_rd_atomic = std::min(peer.rd_atomic, device.address().rd_atomic);
  if (const int error = api.modify_qp(queue_pair.get(), &sends,
                                      IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY |
                                          IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC);
      error != 0) {
    return refusal(error, "queue pair to ready-to-send", device.name());
  }
  gids = choice.reason;
  our_gid = choice.ours;
  our_lid = device.address().lid;
  mailbox = peer.mailbox;
  mailbox_rkey = peer.mailbox_rkey;
  return {};
}

void Rail::stop() noexcept {
  if (!queue_pair) return;
  ibv_qp_attr error{};
  error.qp_state = IBV_QPS_ERR;
  static_cast<void>(link.nic_of(*this).api().modify_qp(queue_pair.get(), &error, IBV_QP_STATE));
}

void Rail::drop(Nic& device) noexcept { device.drop_queue_pair(std::move(queue_pair)); }

void Rail::on_sent(const ibv_wc& completion) noexcept { link.on_sent(*this, completion); }

void Rail::on_received(const ibv_wc& completion, std::span<const std::byte> bytes) noexcept {
  link.on_received(*this, completion, bytes);
}

}  // namespace fabric::verbs
}  // namespace dtr::inline v0
