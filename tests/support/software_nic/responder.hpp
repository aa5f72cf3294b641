// The target's side of a request.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include <infiniband/verbs.h>

#include "support/software_nic/network.hpp"

namespace dtr::software_nic {

struct QueuePair;

/// What travels.
struct Request {
  ibv_wr_opcode opcode = IBV_WR_RDMA_WRITE;
  bool solicited = false;
  __be32 immediate = 0;
  std::uint32_t rkey = 0;
  std::uint64_t remote = 0;
  std::uint64_t compare_add = 0;
  std::uint64_t swap = 0;
  const std::byte* payload = nullptr;
  std::uint64_t length = 0;
  std::uint32_t psn = 0;
  std::uint32_t packets = 1;
  RawGid from{};
  std::uint32_t from_qp = 0;
  bool repeated = false;  ///< executed before; its answer was lost. Reads are executed again
};

struct Answer {
  enum class Kind : std::uint8_t { none, done, not_ready, error };
  Kind kind = Kind::none;
  ibv_wc_status status = IBV_WC_SUCCESS;
  Clock::duration wait{};  ///< not_ready
};

/// Executes a request at its target, with all the checks of the target's side. Reads and atomics fill `result`.
[[nodiscard]] Answer execute(QueuePair& target, const Request& request, std::vector<std::byte>& result);

/// It takes requests; what it has executed before it acknowledges again.
[[nodiscard]] bool answers(QueuePair& target);

/// min_rnr_timer's code as time.
[[nodiscard]] Clock::duration not_ready_time(std::uint8_t code) noexcept;

}  // namespace dtr::software_nic
