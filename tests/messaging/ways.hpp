// The ways that messages go between the ranks of a test.
#pragma once

#include <string>
#include <vector>

#include "messaging/data.hpp"

namespace dtr::testing {

/// `ranks` ranks over each transport, and over slots so small that every message goes through them many times.
inline std::vector<Job> message_ways(int ranks = 2) {
  return {{.transport = "shm", .workers = ranks, .servers = 0},
          {.transport = "tcp", .workers = ranks, .servers = 0},
          {.transport = "verbs", .workers = ranks, .servers = 0},
          {.transport = "shm", .workers = ranks, .servers = 0, .config = {{"shm.cma", "off"}}},
          {.transport = "shm", .workers = ranks, .servers = 0, .config = {{"messages.thresholds", DTR_READ_TABLE}}},
          {.transport = "shm",
           .workers = ranks,
           .servers = 0,
           .config = {{"messages.slot_count", "2"}, {"messages.slot_bytes", "4096"}}},
          {.transport = "tcp",
           .workers = ranks,
           .servers = 0,
           .config = {{"messages.slot_count", "3"}, {"messages.slot_bytes", "5000"}, {"tcp.eager_bytes", "4096"}}}};
}

inline std::string way_name(const ::testing::TestParamInfo<Job>& info) {
  std::string name = info.param.transport;
  for (const auto& [key, value] : info.param.config) {
    name += key == "messages.thresholds" ? "_read" : "_" + key.substr(key.find('.') + 1) + "_" + value;
  }
  return name;
}

}  // namespace dtr::testing
