// libFuzzer on the parser of requests. The input's first bytes cut the rest into pieces.
#include <cstdint>
#include <cstdlib>

#include "fabric_tcp/stream_target.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace dtr;
  using namespace dtr::testing;
  constexpr std::size_t kCuts = 8;
  if (size < kCuts) return 0;
  const std::span input(reinterpret_cast<const std::byte*>(data), size);
  StreamTarget target;
  // The fuzzer cannot guess a secret: where a header could begin, it gets the key of the region.
  std::vector<std::byte> stream(input.begin() + kCuts, input.end());
  const fabric::tcp::RequestHeader honest = target.header(fabric::tcp::RequestType::put, 0, 0);
  for (std::size_t at = 0; at + sizeof honest <= stream.size();) {
    fabric::tcp::RequestHeader header;
    std::memcpy(&header, stream.data() + at, sizeof header);
    if (header.slot % 2 == 0) {
      header.slot = honest.slot;
      header.generation = honest.generation;
      header.secret = honest.secret;
      header.offset %= 10000;
      header.length %= 10000;
      header.reserved = 0;
      std::memcpy(stream.data() + at, &header, sizeof header);
    }
    at += sizeof header + std::min<std::uint64_t>(fabric::tcp::payload_bytes(header), stream.size());
  }
  std::size_t turn = 0;
  feed(target, stream, [&]() -> std::size_t { return std::size_t{1} + data[turn++ % kCuts] * 3U; });
  if (!target.intact() || target.region->uses() != 0) std::abort();
  return 0;
}
