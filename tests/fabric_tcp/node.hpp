// One process's end of the TCP transport, driven by hand: several of them in one test, no threads, no Fabric above.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "dtr/fabric/tcp/tcp.hpp"
#include "support/test_support.hpp"

namespace dtr::testing {

using namespace std::chrono_literals;
using fabric::Channel;
using fabric::ChannelState;
using fabric::Completion;
using fabric::PeerId;
using fabric::Port;
using fabric::RemoteRegion;
using fabric::Status;
using fabric::WorkRequest;

/// Keeps what the transport tells.
struct Recorder final : fabric::Receiver {
  struct Notification {
    PeerId from = 0;
    Port port = 0;
    std::uint32_t value = 0;
  };
  struct Message {
    PeerId from = 0;
    Port port = 0;
    std::vector<std::byte> payload{};
  };
  struct Down {
    PeerId peer = 0;
    Errc code = Errc::ok;
    std::string why{};
  };

  void on_notify(PeerId from, Port port, std::uint32_t value) noexcept override {
    notifications.push_back({from, port, value});
  }
  void on_message(PeerId from, Port port, std::span<const std::byte> payload) noexcept override {
    messages.push_back({from, port, {payload.begin(), payload.end()}});
  }
  void on_peer_down(PeerId peer, Errc code, std::string_view why) noexcept override {
    downs.push_back({peer, code, std::string(why)});
  }

  std::vector<Notification> notifications;
  std::vector<Message> messages;
  std::vector<Down> downs;
};

struct Node {
  Node(PeerId self, std::uint32_t world, fabric::tcp::TcpOptions options = {}, std::uint8_t token = 7) {
    identity.self = self;
    identity.world = world;
    identity.token.fill(std::byte{token});
    regions = value_or_throw(RegionTable::create());
    if (options.bind_address.empty()) options.bind_address = "127.0.0.1";
    transport = value_or_throw(
        fabric::tcp::make_tcp({.identity = identity, .regions = *regions, .receiver = recorder}, options));
  }

  [[nodiscard]] std::unique_ptr<Channel> connect(const Node& to, std::chrono::milliseconds bound = 10s) {
    return value_or_throw(transport->connect(to.identity.self, to.transport->address(), Deadline(scaled(bound))));
  }
  [[nodiscard]] Region* add(std::span<std::byte> memory, RegionOptions options = {}) {
    return value_or_throw(regions->add(memory, options));
  }
  void progress() { static_cast<void>(transport->progress(256)); }

  fabric::Identity identity{};
  std::unique_ptr<RegionTable> regions;
  Recorder recorder;
  std::unique_ptr<fabric::Transport> transport;
};

/// Progress of all these until `done()`; false at the bound.
template <class Done, class... Nodes>
[[nodiscard]] bool drive_until(std::chrono::milliseconds bound, Done&& done, Nodes&... nodes) {
  const Deadline deadline(scaled(bound));
  while (!done()) {
    (nodes.progress(), ...);
    if (deadline.passed()) return done();
  }
  return true;
}

/// Progress of all these for so long, and a few times at least: a busy machine may use up a short span by itself.
template <class... Nodes>
void drive_for(std::chrono::milliseconds span, Nodes&... nodes) {
  const Deadline deadline(span);
  for (int rounds = 0; rounds < 20 || !deadline.passed(); ++rounds) (nodes.progress(), ...);
}

/// Bytes that show any shift or mix-up.
inline void fill_pattern(std::span<std::byte> memory, std::uint64_t seed) {
  std::uint64_t x = seed * 0x9E3779B97F4A7C15ULL + 1;
  for (std::byte& byte : memory) {
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    byte = static_cast<std::byte>(x >> 32);
  }
}
[[nodiscard]] inline std::vector<std::byte> pattern(std::size_t bytes, std::uint64_t seed) {
  std::vector<std::byte> memory(bytes);
  fill_pattern(memory, seed);
  return memory;
}

/// Two ranks with an open channel from 0 to 1.
struct Pair {
  explicit Pair(const fabric::tcp::TcpOptions& options = {}) : a(0, 2, patient(options)), b(1, 2, patient(options)) {
    channel = a.connect(b);
    EXPECT_TRUE(drive([&] { return channel->state() == ChannelState::open; }));
  }

  template <class Done>
  [[nodiscard]] bool drive(Done&& done, std::chrono::milliseconds bound = 20s) {
    return drive_until(bound, std::forward<Done>(done), a, b);
  }

  /// Posts all of them, with progress where there is no room.
  void post(std::span<const WorkRequest> requests, std::chrono::milliseconds timeout = 20s) {
    while (!requests.empty()) {
      const auto result = channel->post(requests, Deadline(scaled(timeout)));
      ASSERT_EQ(result.finished, 0U);
      requests = requests.subspan(result.accepted);
      if (requests.empty()) break;
      ASSERT_EQ(result.status.code, Errc::again) << to_string(result.status.code);
      a.progress();
      b.progress();
    }
  }

  /// Posts one request and waits for its end.
  [[nodiscard]] Status run(WorkRequest request, std::chrono::milliseconds timeout = 20s) {
    Completion done;
    done.arm(1);
    request.completion = &done;
    const auto result = channel->post(std::span(&request, 1), Deadline(scaled(timeout)));
    if (result.accepted == 0) return result.status;
    EXPECT_TRUE(drive([&] { return done.done(); }, timeout + 5s));
    return done.status();
  }

  [[nodiscard]] const RemoteRegion* import(const Region* region) {
    return value_or_throw(channel->import(region->key()));
  }
  /// Where a test says nothing about it, a broken connection has as long to come back as a busy machine needs.
  [[nodiscard]] static fabric::tcp::TcpOptions patient(fabric::tcp::TcpOptions options) {
    if (options.reconnect_grace != fabric::tcp::TcpOptions{}.reconnect_grace) return options;
    options.reconnect_grace = scaled(5s);
    options.failure_detect = std::max(options.failure_detect, 2 * options.reconnect_grace);
    return options;
  }

  Node a;
  Node b;
  std::unique_ptr<Channel> channel;
};

}  // namespace dtr::testing
