// The initiator's memory that a request reads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "support/software_nic/memory.hpp"

namespace dtr::software_nic {

struct QueuePair;

/// The bytes of a request, held for as long as they are needed.
struct Payload {
  std::vector<MemoryTable::Pin> pins{};
  std::vector<std::byte> joined{};
  const std::byte* data = nullptr;
  std::uint64_t length = 0;
};

/// Checks and holds the memory of the request at `position`; for reads and atomics it is where the result goes.
/// SUCCESS, LOC_LEN_ERR, LOC_PROT_ERR.
[[nodiscard]] ibv_wc_status collect(QueuePair& queue_pair, std::uint64_t position, std::uint32_t max_message,
                                    Payload& payload);

}  // namespace dtr::software_nic
