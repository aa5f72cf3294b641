// Sleeping on the descriptor: whoever sends something wakes the sleeper, always.
#include <atomic>
#include <random>
#include <thread>

#include <poll.h>

#include "fabric_shm/node.hpp"

namespace dtr::testing {
namespace {

using fabric::WorkRequest;
using fabric::shm::CmaUse;

constexpr auto kHang = 10s;  ///< a wake-up that takes this long was lost

/// Progress as an engine makes it: until there is nothing to do, then asleep. False = slept through something.
template <class Done>
bool drive(Node& node, int spins, Done&& done) {
  while (!done()) {
    bool moved = false;
    for (int i = 0; i <= spins && !moved; ++i) moved = node.pump() > 0;
    if (moved || done() || !node.transport->prepare_sleep()) continue;
    pollfd waiting{.fd = node.transport->wait_descriptor(), .events = POLLIN, .revents = 0};
    const auto left = Deadline(node.transport->next_deadline()).left_ms();
    const auto bound = std::min<std::chrono::milliseconds>(left, scaled(kHang));
    const auto start = std::chrono::steady_clock::now();
    ::poll(&waiting, 1, static_cast<int>(bound.count()));
    if (std::chrono::steady_clock::now() - start >= scaled(kHang)) return false;
  }
  return true;
}

TEST(SleepTest, PingPongBetweenSleepersLosesNoWakeUp) {
  Node first(0);
  Node second(1);
  const auto forth = open_channel(first, second);
  const auto back = open_channel(second, first);
  constexpr std::uint64_t kRounds = 5000;
  const auto play = [&](Node& node, fabric::Channel& channel, std::uint64_t offset, unsigned seed) {
    std::mt19937 random(seed);
    for (std::uint64_t round = 0; round < kRounds; ++round) {
      const WorkRequest notify = WorkRequest::notify(1, static_cast<std::uint32_t>(round), nullptr);
      if (offset == 0 && channel.post({&notify, 1}, scaled(10s)).finished != 1) return false;
      const std::uint64_t wanted = round + 1;
      const int spins = static_cast<int>(random() % 200);
      if (!drive(node, spins, [&] { return node.events.notifications >= wanted; })) return false;
      if (offset == 1 && channel.post({&notify, 1}, scaled(10s)).finished != 1) return false;
    }
    return true;
  };
  bool second_ok = false;
  std::thread other([&] { second_ok = play(second, *back, 1, 2); });
  EXPECT_TRUE(play(first, *forth, 0, 1));
  other.join();
  EXPECT_TRUE(second_ok);
}

TEST(SleepTest, SenderThatWaitsForRoomIsWokenWhenThereIsSome) {
  Node receiver(0, {.ring_bytes = 16 << 10, .eager_bytes = 1024});
  Node sender(1, {.ring_bytes = 16 << 10, .eager_bytes = 1024});
  const auto channel = open_channel(sender, receiver);
  constexpr std::uint64_t kMessages = 20000;
  bool sender_ok = true;
  std::thread other([&] {
    std::vector<std::byte> payload(1000);
    for (std::uint64_t sent = 0; sent < kMessages && sender_ok;) {
      const WorkRequest send = WorkRequest::send(1, payload, nullptr);
      const auto result = channel->post({&send, 1}, scaled(30s));
      sent += result.accepted;
      if (result.accepted == 1) continue;
      // Until it has slept once: whom nobody tells of room lies here until the bound.
      int looks = 0;
      sender_ok = drive(sender, 0, [&] { return looks++ >= 2; });
    }
  });
  EXPECT_TRUE(drive(receiver, 3, [&] { return receiver.events.messages >= kMessages; }));
  other.join();
  EXPECT_TRUE(sender_ok);
}

TEST(SleepTest, RequestsThroughTheRingMoveOnWhileBothSidesSleepBetween) {
  Node target(0, {.cma = CmaUse::off});
  Node node(1, {.cma = CmaUse::off});
  const auto channel = open_channel(node, target);
  constexpr std::size_t kBytes = 3 << 20;
  Region& region = target.memory(kBytes, false);
  Region& local = node.memory(kBytes);
  const auto* remote = value_or_throw(channel->import(region.key()));
  bool target_ok = false;
  std::thread other([&] { target_ok = drive(target, 0, [&] { return target.events.notifications > 0; }); });
  for (int round = 0; round < 20; ++round) {
    std::memset(local.data(), round + 1, kBytes);
    fabric::Completion done;
    done.arm(3);
    const std::vector<WorkRequest> requests{WorkRequest::put({&local, 0}, {remote, 0}, kBytes, &done),
                                            WorkRequest::get({remote, 0}, {&local, 0}, kBytes, &done).fenced(),
                                            WorkRequest::fetch_add({remote, 8}, 1, {&local, 0}, &done).fenced()};
    ASSERT_EQ(channel->post(requests, scaled(20s)).accepted, 3U);
    ASSERT_TRUE(drive(node, 0, [&] { return done.done(); }));
    ASSERT_TRUE(done.status().ok());
    ASSERT_EQ(region.data()[kBytes - 1], static_cast<std::byte>(round + 1));
  }
  const WorkRequest last = WorkRequest::notify(1, 1, nullptr);
  ASSERT_EQ(channel->post({&last, 1}, scaled(5s)).finished, 1U);
  other.join();
  EXPECT_TRUE(target_ok);
}

TEST(SleepTest, SleeperIsWokenToConnectToImportAndToMeetADeadline) {
  Node target(0, {.cma = CmaUse::off});
  Node node(1, {.cma = CmaUse::off});
  Region& region = target.memory(4096);
  Region& plain = target.memory(4096, false);
  Region& local = node.memory(4096);
  std::atomic<bool> stop{false};
  bool node_ok = false;
  std::atomic<bool> node_done{false};
  std::thread other([&] {
    node_ok = drive(node, 0, [&] { return stop.load(); });
    node_done = true;
  });
  std::this_thread::sleep_for(20ms);  // asleep by now
  const auto channel = value_or_throw(node.transport->connect(0, target.transport->address(), scaled(10s)));
  {
    const Pump pump(target);
    const Deadline deadline(scaled(kHang));
    while (channel->state() != fabric::ChannelState::open && !deadline.passed()) std::this_thread::sleep_for(1ms);
    ASSERT_EQ(channel->state(), fabric::ChannelState::open);
    std::this_thread::sleep_for(20ms);
    const auto* remote = value_or_throw(channel->import(region.key()));
    while (remote->mapped.load() == nullptr && !deadline.passed()) std::this_thread::sleep_for(1ms);
    EXPECT_NE(remote->mapped.load(), nullptr);
  }
  // The target stands still now, so only the deadline can end this.
  const auto* remote = value_or_throw(channel->import(plain.key()));
  fabric::Completion done;
  done.arm(1);
  const WorkRequest get = WorkRequest::get({remote, 0}, {&local, 0}, 8, &done);
  ASSERT_EQ(channel->post({&get, 1}, scaled(50ms)).accepted, 1U);
  const Deadline deadline(scaled(10s));
  while (!done.done() && !deadline.passed()) std::this_thread::sleep_for(1ms);
  EXPECT_TRUE(done.done());
  EXPECT_EQ(done.status().code, Errc::timed_out);
  stop = true;
  const auto back = value_or_throw(target.transport->connect(1, node.transport->address(), scaled(10s)));  // wakes it
  ASSERT_TRUE(pump_until({&target}, kHang, [&] { return node_done.load(); }));
  other.join();
  EXPECT_TRUE(node_ok);
}

}  // namespace
}  // namespace dtr::testing
