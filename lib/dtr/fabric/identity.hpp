// Who a process is within its job, and the secret that its members share.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace dtr::inline v0 {
namespace fabric {

/// 32 random bytes from rank 0, spread by MPI at start; never on the wire of libdtr itself.
using JobToken = std::array<std::byte, 32>;

struct Identity {
  std::uint32_t self = 0;   ///< this process's PeerId
  std::uint32_t world = 1;  ///< number of ranks
  std::string host_id{};    ///< equal for ranks on one host
  JobToken token{};
};

}  // namespace fabric
}  // namespace dtr::inline v0
