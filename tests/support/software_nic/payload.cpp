#include "support/software_nic/payload.hpp"

#include "support/software_nic/device.hpp"

namespace dtr::software_nic {

ibv_wc_status collect(QueuePair& queue_pair, std::uint64_t position, std::uint32_t max_message, Payload& payload) {
  const SendEntry& entry = queue_pair.at(position);
  if ((entry.flags & IBV_SEND_INLINE) != 0) {
    payload.data = queue_pair.inline_of(position).data();
    payload.length = entry.inline_bytes;
    return IBV_WC_SUCCESS;
  }
  const auto pieces = queue_pair.pieces_of(position);
  const unsigned access = entry.reads() ? static_cast<unsigned>(IBV_ACCESS_LOCAL_WRITE) : 0U;
  payload.pins.reserve(pieces.size());
  for (const ibv_sge& piece : pieces) {
    if (piece.length == 0) continue;
    payload.pins.push_back(queue_pair.device.memory().pin(MemoryTable::Key::local, piece.lkey, queue_pair.pd,
                                                          piece.addr, piece.length, access));
    if (!payload.pins.back()) return IBV_WC_LOC_PROT_ERR;
    payload.length += piece.length;
  }
  const bool atomic = entry.reads() && entry.opcode != IBV_WR_RDMA_READ;
  if (payload.length > max_message) return IBV_WC_LOC_LEN_ERR;
  if (atomic && payload.length != sizeof(std::uint64_t)) return IBV_WC_LOC_LEN_ERR;
  if (entry.reads() || payload.pins.empty()) return IBV_WC_SUCCESS;
  payload.data = payload.pins.front().data();
  if (payload.pins.size() == 1) return IBV_WC_SUCCESS;
  payload.joined.reserve(payload.length);
  std::size_t pin = 0;
  for (const ibv_sge& piece : pieces) {
    if (piece.length == 0) continue;
    const std::byte* from = payload.pins[pin++].data();
    payload.joined.insert(payload.joined.end(), from, from + piece.length);
  }
  payload.data = payload.joined.data();
  return IBV_WC_SUCCESS;
}

}  // namespace dtr::software_nic
