// What the tests of messages share: the ways between ranks, and data that tells when it is wrong.
#pragma once

#include <string>
#include <vector>

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

/// `ranks` ranks over each transport, and over slots so small that every message goes through them many times.
inline std::vector<Job> message_ways(int ranks = 2) {
  return {{.transport = "shm", .workers = ranks, .servers = 0},
          {.transport = "tcp", .workers = ranks, .servers = 0},
          {.transport = "verbs", .workers = ranks, .servers = 0},
          {.transport = "shm", .workers = ranks, .servers = 0, .config = {{"shm.cma", "off"}}},
          {.transport = "shm",
           .workers = ranks,
           .servers = 0,
           .config = {{"messages.slot_count", "2"}, {"messages.slot_bytes", "4096"}}},
          {.transport = "tcp",
           .workers = ranks,
           .servers = 0,
           .config = {{"messages.slot_count", "3"}, {"messages.slot_bytes", "5000"}}}};
}

inline std::string way_name(const ::testing::TestParamInfo<Job>& info) {
  std::string name = info.param.transport;
  for (const auto& [key, value] : info.param.config) name += "_" + key.substr(key.find('.') + 1) + "_" + value;
  return name;
}

inline Deadline soon() { return scaled(30s); }

}  // namespace dtr::testing
