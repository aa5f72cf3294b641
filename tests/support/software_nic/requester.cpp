// The initiator's side of a request: local checks, the way to the peer, repetition, completion.
#include <algorithm>
#include <cstring>

#include "support/software_nic/device.hpp"
#include "support/software_nic/payload.hpp"

namespace dtr::software_nic {

namespace {

constexpr Clock::time_point kNever = Clock::time_point::max();
constexpr std::size_t kKeptResult = 65536;
constexpr int kForever = 7;

Clock::duration timeout_of(std::uint8_t code) noexcept { return std::chrono::nanoseconds(4096LL << code); }

std::uint32_t packets_of(std::uint64_t length, ibv_mtu mtu) noexcept {
  const std::uint64_t bytes = 128ULL << static_cast<unsigned>(mtu);
  return static_cast<std::uint32_t>(std::max<std::uint64_t>((length + bytes - 1) / bytes, 1));
}

Request request_of(const QueuePair& queue_pair, const SendEntry& entry, const Payload& payload, ibv_mtu mtu) {
  return {.opcode = entry.opcode,
          .solicited = (entry.flags & IBV_SEND_SOLICITED) != 0,
          .immediate = entry.immediate,
          .rkey = entry.rkey,
          .remote = entry.remote,
          .compare_add = entry.compare_add,
          .swap = entry.swap,
          .payload = payload.data,
          .length = payload.length,
          .packets = packets_of(payload.length, mtu),
          .from_qp = queue_pair.qp_num};
}

/// The peer's queue pair, if a packet can get there now. Fills in the sender's address.
std::shared_ptr<QueuePair> route(Device& device, const ibv_qp_attr& attributes, RawGid& from,
                                 std::shared_ptr<Device>& peer) {
  const std::uint8_t port = attributes.ah_attr.port_num;
  ibv_gid_entry source{};
  if (!device.port_active(port) || device.gid(port, attributes.ah_attr.grh.sgid_index, source) != 0) return nullptr;
  std::memcpy(from.data(), source.gid.raw, from.size());
  RawGid to{};
  std::memcpy(to.data(), attributes.ah_attr.grh.dgid.raw, to.size());
  Network::Place place = device.network().find(to);
  peer = std::move(place.device);
  if (peer == nullptr || !peer->reachable(place.port, to, static_cast<ibv_gid_type>(source.gid_type))) return nullptr;
  if (!device.network().connects(from, device.host(), to, peer->host())) return nullptr;
  return peer->find_queue_pair(attributes.dest_qp_num);
}

/// One attempt: the answer, or Kind::none if none came.
Answer attempt(QueuePair& queue_pair, SendEntry& entry, const Payload& payload, const ibv_qp_attr& attributes) {
  Device& device = queue_pair.device;
  Request request = request_of(queue_pair, entry, payload, attributes.path_mtu);
  request.psn = entry.psn;
  std::shared_ptr<Device> peer;
  const std::shared_ptr<QueuePair> target = route(device, attributes, request.from, peer);
  if (peer == nullptr || device.network().loses(device.full_name(), peer->full_name()) || target == nullptr) return {};
  if (entry.landed && !answers(*target)) return {};
  Answer answer{.kind = Answer::Kind::done};
  request.repeated = entry.landed;
  if (!entry.landed || entry.opcode == IBV_WR_RDMA_READ) answer = execute(*target, request, entry.result);
  entry.landed = entry.landed || answer.kind == Answer::Kind::done;
  if (answer.kind != Answer::Kind::none && device.network().loses(peer->full_name(), device.full_name())) return {};
  if (answer.kind == Answer::Kind::done) {
    queue_pair.last_answer = std::max(queue_pair.last_answer,
                                      Clock::now() + device.network().latency(peer->full_name(), device.full_name()));
  }
  return answer;
}

/// Executes the request at `position`. True: it has ended, with entry.status.
bool launch(QueuePair& queue_pair, std::uint64_t position, const ibv_qp_attr& attributes) {
  SendEntry& entry = queue_pair.at(position);
  Device& device = queue_pair.device;
  const auto ended = [&](ibv_wc_status status) {
    entry.status = status;
    return true;
  };
  const bool forever = attributes.retry_cnt == kForever && device.options().retry_seven_forever;
  if (queue_pair.tries > attributes.retry_cnt && !forever) return ended(IBV_WC_RETRY_EXC_ERR);
  if (!entry.counted) {
    entry.counted = true;
    RequestFault fault;
    if (device.request_faults().next(queue_pair.qp_num, fault)) {
      if (!fault.landed) return ended(fault.status);
      entry.forced = fault.status;
    }
  }
  if (entry.reads() && attributes.max_rd_atomic == 0) return ended(IBV_WC_LOC_QP_OP_ERR);
  Payload payload;
  const std::uint32_t limit = device.options().ports[attributes.port_num - 1U].max_message;
  if (const ibv_wc_status status = collect(queue_pair, position, limit, payload); status != IBV_WC_SUCCESS)
    return ended(status);
  if (queue_pair.tries == 0 && queue_pair.not_ready_tries == 0) {
    entry.psn = queue_pair.send_psn;
    queue_pair.send_psn = (queue_pair.send_psn + packets_of(payload.length, attributes.path_mtu)) & 0xFFFFFF;
  }
  const Answer answer = attempt(queue_pair, entry, payload, attributes);
  switch (answer.kind) {
    case Answer::Kind::none:
      ++queue_pair.tries;
      queue_pair.retry_at = attributes.timeout == 0 ? kNever : Clock::now() + timeout_of(attributes.timeout);
      return false;
    case Answer::Kind::not_ready:
      device.count_not_ready();
      if (attributes.rnr_retry != kForever && queue_pair.not_ready_tries == attributes.rnr_retry) {
        return ended(IBV_WC_RNR_RETRY_EXC_ERR);
      }
      ++queue_pair.not_ready_tries;
      queue_pair.retry_at = Clock::now() + answer.wait;
      return false;
    case Answer::Kind::done:
      return ended(entry.forced);
    case Answer::Kind::error:
      break;
  }
  return ended(answer.status);
}

/// The answer has arrived: results of reads and atomics land. SUCCESS or what the request ends with.
ibv_wc_status finish(QueuePair& queue_pair, std::uint64_t position) {
  SendEntry& entry = queue_pair.at(position);
  if (entry.status != IBV_WC_SUCCESS || !entry.reads()) return entry.status;
  std::size_t done = 0;
  for (const ibv_sge& piece : queue_pair.pieces_of(position)) {
    const std::size_t bytes = std::min<std::size_t>(piece.length, entry.result.size() - done);
    if (bytes == 0) continue;
    const MemoryTable::Pin pin = queue_pair.device.memory().pin(MemoryTable::Key::local, piece.lkey, queue_pair.pd,
                                                                piece.addr, bytes, IBV_ACCESS_LOCAL_WRITE);
    if (!pin) return IBV_WC_LOC_PROT_ERR;
    land(pin.data(), entry.result.data() + done, bytes, pin.relaxed());
    done += bytes;
  }
  return IBV_WC_SUCCESS;
}

struct Positions {
  ibv_qp_state state = IBV_QPS_RESET;
  std::uint64_t answered = 0;
  std::uint64_t launched = 0;
  std::uint64_t posted = 0;
};

Positions positions_of(QueuePair& queue_pair, ibv_qp_attr* attributes) {
  const std::lock_guard lock(queue_pair.mutex);
  if (attributes != nullptr) *attributes = queue_pair.attributes;
  return {.state = queue_pair.gone ? IBV_QPS_RESET : queue_pair.now,
          .answered = queue_pair.answered,
          .launched = queue_pair.launched,
          .posted = queue_pair.posted};
}

void advance(QueuePair& queue_pair, std::uint64_t& counter) {
  const std::lock_guard lock(queue_pair.mutex);
  ++counter;
}

}  // namespace

void flush(QueuePair& queue_pair) {
  while (true) {
    const Positions at = positions_of(queue_pair, nullptr);
    if (at.state != IBV_QPS_ERR) return;
    if (at.answered == at.posted) break;
    queue_pair.complete(queue_pair.at(at.answered), at.answered, IBV_WC_WR_FLUSH_ERR);
    const std::lock_guard lock(queue_pair.mutex);
    ++queue_pair.answered;
    queue_pair.launched = std::max(queue_pair.launched, queue_pair.answered);
  }
  if (queue_pair.shared_receives() == nullptr) return;
  const std::lock_guard no_answer(queue_pair.answering);  // a receive that was being filled is complete
  {
    const std::lock_guard lock(queue_pair.mutex);
    if (queue_pair.now != IBV_QPS_ERR || queue_pair.last_receive_told) return;
    queue_pair.last_receive_told = true;
  }
  queue_pair.device.post_event(*queue_pair.context, IBV_EVENT_QP_LAST_WQE_REACHED, &queue_pair);
}

namespace {

/// When the oldest request has had all its repetitions without an answer, if its way there or back takes longer.
Clock::time_point patience_of(QueuePair& queue_pair, const Positions& at, const ibv_qp_attr& attributes) {
  if (at.answered == at.posted || attributes.timeout == 0) return kNever;
  if (attributes.retry_cnt == kForever && queue_pair.device.options().retry_seven_forever) return kNever;
  const SendEntry& oldest = queue_pair.at(at.answered);
  const bool waits = at.answered == at.launched;
  if (oldest.sent_at == Clock::time_point{} || (waits && queue_pair.tries > 0)) return kNever;
  const Clock::time_point end =
      std::max(oldest.sent_at, queue_pair.last_progress) + timeout_of(attributes.timeout) * (attributes.retry_cnt + 1);
  return (waits ? oldest.ready_at : oldest.answered_at) > end ? end : kNever;
}

}  // namespace

Clock::time_point step(QueuePair& queue_pair) {
  const std::lock_guard requesting(queue_pair.requesting);
  ibv_qp_attr attributes{};
  Positions at = positions_of(queue_pair, &attributes);
  if (at.state == IBV_QPS_ERR) flush(queue_pair);
  if (at.state != IBV_QPS_RTS || queue_pair.device.execution() == Execution::on_demand) return kNever;

  const Clock::time_point now = Clock::now();
  const auto complete_answered = [&] {
    for (; at.answered < at.launched && queue_pair.at(at.answered).answered_at <= now; ++at.answered) {
      SendEntry& entry = queue_pair.at(at.answered);
      const ibv_wc_status status = finish(queue_pair, at.answered);
      const auto bytes = static_cast<std::uint32_t>(entry.result.size());
      queue_pair.last_progress = now;
      if (entry.result.capacity() > kKeptResult) entry.result = {};
      // The last look at the entry: whoever polls the completion may use its slot again.
      if (status != IBV_WC_SUCCESS || queue_pair.signalled(entry)) {
        queue_pair.complete(entry, at.answered, status, bytes);
      }
      advance(queue_pair, queue_pair.answered);
      if (status == IBV_WC_SUCCESS) continue;
      queue_pair.enter_error();
      flush(queue_pair);
      return false;
    }
    return true;
  };
  if (!complete_answered()) return kNever;

  if (patience_of(queue_pair, at, attributes) <= now) {
    leave_on_wire(queue_pair);
    queue_pair.complete(queue_pair.at(at.answered), at.answered, IBV_WC_RETRY_EXC_ERR);
    advance(queue_pair, queue_pair.answered);
    queue_pair.enter_error();
    flush(queue_pair);
    return kNever;
  }

  // Why the next request may have to wait: the wire, a repetition, a fence, or too many reads under way.
  Clock::time_point start = kNever;
  if (at.launched < at.posted && !queue_pair.stalled) {
    const SendEntry& entry = queue_pair.at(at.launched);
    std::uint64_t reads = 0;
    for (std::uint64_t i = at.answered; i < at.launched; ++i) reads += queue_pair.at(i).reads() ? 1U : 0U;
    const bool held = ((entry.flags & IBV_SEND_FENCE) != 0 && reads > 0) ||
                      (entry.reads() && attributes.max_rd_atomic > 0 && reads >= attributes.max_rd_atomic);
    if (!held) start = std::max(entry.ready_at, queue_pair.retry_at);
  }
  if (start <= now) {
    if (launch(queue_pair, at.launched, attributes)) {
      SendEntry& entry = queue_pair.at(at.launched);
      entry.answered_at = queue_pair.last_answer;
      queue_pair.stalled = entry.status != IBV_WC_SUCCESS;
      queue_pair.tries = queue_pair.not_ready_tries = 0;
      queue_pair.retry_at = {};
      advance(queue_pair, queue_pair.launched);
      ++at.launched;
      if (entry.answered_at <= now && !complete_answered()) return kNever;
      start = now;
    } else {
      start = queue_pair.retry_at;
    }
  }
  const Clock::time_point answer = at.answered < at.launched ? queue_pair.at(at.answered).answered_at : kNever;
  if (start == now && at.launched == at.posted) start = kNever;
  return std::min({start, answer, patience_of(queue_pair, at, attributes)});
}

void leave_on_wire(QueuePair& queue_pair) {
  ibv_qp_attr attributes{};
  const Positions at = positions_of(queue_pair, &attributes);
  if (at.state != IBV_QPS_RTS || queue_pair.tries > 0 || queue_pair.not_ready_tries > 0 || queue_pair.stalled) return;
  const Clock::time_point now = Clock::now();
  Device& device = queue_pair.device;
  ibv_gid_entry source{};
  if (device.gid(attributes.ah_attr.port_num, attributes.ah_attr.grh.sgid_index, source) != 0) return;
  for (std::uint64_t position = at.launched; position < at.posted; ++position) {
    const SendEntry& entry = queue_pair.at(position);
    if (entry.ready_at <= now || (entry.flags & IBV_SEND_FENCE) != 0) return;
    Payload payload;
    const std::uint32_t limit = device.options().ports[attributes.port_num - 1U].max_message;
    if (collect(queue_pair, position, limit, payload) != IBV_WC_SUCCESS) return;
    Straggler straggler{.due = entry.ready_at,
                        .to_qp = attributes.dest_qp_num,
                        .request = request_of(queue_pair, entry, payload, attributes.path_mtu)};
    std::memcpy(straggler.to.data(), attributes.ah_attr.grh.dgid.raw, straggler.to.size());
    std::memcpy(straggler.request.from.data(), source.gid.raw, straggler.request.from.size());
    straggler.request.psn = queue_pair.send_psn;
    queue_pair.send_psn = (queue_pair.send_psn + straggler.request.packets) & 0xFFFFFF;
    if (payload.data != nullptr) straggler.payload.assign(payload.data, payload.data + payload.length);
    device.engine().send_later(std::move(straggler));
  }
}

}  // namespace dtr::software_nic
