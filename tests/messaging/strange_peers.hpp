// A real Messenger among ranks that are not there: bytes decide what they say and what its user does. For tests and the
// fuzzer. One thread, no clock, no network: the same bytes do the same.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

namespace dtr::testing {

class StrangePeers {
 public:
  StrangePeers();
  ~StrangePeers();
  StrangePeers(const StrangePeers&) = delete;
  StrangePeers& operator=(const StrangePeers&) = delete;

  /// Does what the bytes say, by a rank that has not spoken before. What was wrong about it, or nothing.
  [[nodiscard]] std::string play(std::span<const std::byte> script);

 private:
  struct World;
  class Play;

  [[nodiscard]] std::string neighbour_is_served();

  std::unique_ptr<World> world_;
  std::uint64_t worlds_ = 0;
};

}  // namespace dtr::testing
