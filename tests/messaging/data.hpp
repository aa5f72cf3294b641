// What the tests of messages share: data that tells when it is wrong, and how long to wait for it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "common/memory.hpp"
#include "common/messages_read.hpp"
#include "dtr/messaging/messenger.hpp"
#include "pushpull/job.hpp"

namespace dtr::testing {

using Bytes = std::vector<std::byte>;

/// Different for each seed, at each place.
inline Bytes data_of(std::size_t bytes, std::uint64_t seed = 0) {
  Bytes data(bytes);
  std::uint64_t x = (seed + 1) * 0x9E37'79B9'7F4A'7C15ULL;
  for (std::byte& each : data) {
    x = x * 6364136223846793005ULL + 1442695040888963407ULL;
    each = static_cast<std::byte>(x >> 56);
  }
  return data;
}

using common::Memory;

using common::messages_read;

inline Deadline soon() { return scaled(std::chrono::seconds(30)); }

}  // namespace dtr::testing
