// What can be chosen about the verbs transport.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace dtr::inline v0 {
namespace fabric::verbs {

struct VerbsOptions {
  /// "mlx5_0", "mlx5_1:2" (device, or device and port), best first. Empty = every active port of this host, by name.
  std::vector<std::string> devices{};
  int gid_index = -1;              ///< -1 = by rule, see gid.hpp
  std::size_t eager_bytes = 4096;  ///< largest `send`
  /// Up to so many ranks queue pairs are made at start and exchanged with the addresses.
  std::uint32_t eager_world = 8;
  std::uint32_t queue_depth = 4096;                ///< open requests a channel; a power of two
  std::uint32_t send_queue = 256;                  ///< work requests a queue pair; a power of two
  std::uint32_t credits = 32;                      ///< messages and notifications under way to one peer and rail
  std::size_t slice_bytes = 1024 * 1024;           ///< a larger transfer goes in slices over all rails
  std::size_t message_pool = 16 * 1024 * 1024;     ///< copies of messages under way, all peers together
  std::chrono::milliseconds failure_detect{5000};  ///< a peer that no rail reaches for so long has failed
};

}  // namespace fabric::verbs
}  // namespace dtr::inline v0
