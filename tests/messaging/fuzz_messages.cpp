// libFuzzer on a Messenger and the peers it hears.
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "messaging/strange_peers.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  // Never destroyed: what it uses of the library would be gone by then.
  static auto& peers = *std::make_unique<dtr::testing::StrangePeers>().release();
  const std::string wrong = peers.play(std::as_bytes(std::span(data, size)));
  if (wrong.empty()) return 0;
  std::fprintf(stderr, "%s\n", wrong.c_str());
  std::abort();
}
