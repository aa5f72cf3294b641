// The parser of requests as tests and the fuzzer feed it.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <span>
#include <vector>

#include "dtr/fabric/tcp/request_reader.hpp"
#include "fabric_tcp/node.hpp"

namespace dtr::testing {

/// A target without sockets: memory with forbidden ground on both sides, and what the receiver was told.
struct StreamTarget {
  StreamTarget() : regions(value_or_throw(RegionTable::create())) {
    region = value_or_throw(regions->add(std::span(memory).subspan(4096, 8192), {}));
  }
  [[nodiscard]] fabric::tcp::RequestHeader header(fabric::tcp::RequestType type, std::uint64_t offset,
                                                  std::uint64_t length) const {
    const RemoteKey& key = region->key();
    return {.type = type,
            .port = 1,
            .slot = key.slot,
            .generation = key.generation,
            .secret = key.secret,
            .offset = offset,
            .length = length};
  }
  /// True if nobody wrote outside of the region.
  [[nodiscard]] bool intact() const {
    for (std::size_t i = 0; i < 4096; ++i) {
      if (memory[i] != std::byte{0} || memory[4096 + 8192 + i] != std::byte{0}) return false;
    }
    return true;
  }

  std::vector<std::byte> memory = std::vector<std::byte>(4096 + 8192 + 4096);
  std::unique_ptr<RegionTable> regions;
  Region* region = nullptr;
  Recorder recorder;
  fabric::tcp::Inbound inbound;
};

/// Feeds bytes in pieces of the sizes that next_size() gives, and takes the replies away as a socket would.
template <class NextSize>
void feed(StreamTarget& target, std::span<const std::byte> bytes, NextSize&& next_size) {
  fabric::tcp::ReplyQueue replies(0, target.inbound.processed);
  fabric::tcp::Outbox outbox;
  fabric::tcp::RequestReader reader(0, target.inbound, *target.regions, target.recorder, replies);
  while (!bytes.empty() && reader.error() == nullptr) {
    if (reader.blocked()) {
      while (replies.fill(outbox)) outbox.clear();
      replies.flushed();
      reader.received(0);
      continue;
    }
    iovec pieces[2];
    const std::size_t count = reader.prepare(pieces);
    std::size_t left = std::min<std::size_t>(bytes.size(), next_size());
    std::size_t given = 0;
    for (std::size_t i = 0; i < count && left > 0; ++i) {
      const std::size_t n = std::min(left, pieces[i].iov_len);
      std::memcpy(pieces[i].iov_base, bytes.data() + given, n);
      given += n;
      left -= n;
    }
    if (given == 0) return;  // nothing is read any more
    bytes = bytes.subspan(given);
    reader.received(given);
    replies.acknowledge(target.inbound.processed);
  }
}

}  // namespace dtr::testing
