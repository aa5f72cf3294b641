// One process with a thousand peers, driven by one thread.
#include <algorithm>
#include <deque>
#include <fstream>

#include <gtest/gtest.h>
#include <sys/resource.h>

#include "fabric_tcp/node.hpp"

namespace dtr::testing {
namespace {

constexpr std::uint32_t kPeers = 1000;
constexpr rlim_t kDescriptors = 8 * kPeers;  // a peer has three of its own, and there are four ends of connections

class ManyPeersTest : public ::testing::Test {
 protected:
  void SetUp() override {
    rlimit limit{};
    ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &limit), 0);
    before_ = limit;
    limit.rlim_cur = limit.rlim_max;
    if (limit.rlim_max < kDescriptors || ::setrlimit(RLIMIT_NOFILE, &limit) != 0) {
      GTEST_SKIP() << "this process may have " << limit.rlim_max << " descriptors and needs " << kDescriptors;
    }
  }
  void TearDown() override { static_cast<void>(::setrlimit(RLIMIT_NOFILE, &before_)); }

 private:
  rlimit before_{};
};

/// As little as a peer can be: all of them have their memory in one table.
struct SmallPeer {
  SmallPeer(PeerId self, std::uint32_t world, RegionTable& regions, const fabric::tcp::TcpOptions& options) {
    identity.self = self;
    identity.world = world;
    identity.token.fill(std::byte{7});
    transport = value_or_throw(
        fabric::tcp::make_tcp({.identity = identity, .regions = regions, .receiver = recorder}, options));
  }

  fabric::Identity identity{};
  Recorder recorder;
  std::unique_ptr<fabric::Transport> transport;
};

Region* add(RegionTable& regions, std::span<std::byte> memory) { return value_or_throw(regions.add(memory, {})); }

std::unique_ptr<Channel> connect(fabric::Transport& from, const fabric::Transport& to, PeerId peer) {
  return value_or_throw(from.connect(peer, to.address(), Deadline(scaled(60s))));
}

TEST_F(ManyPeersTest, AThousandPeersExchangeMessagesAndPutsWithOneThread) {
  const fabric::tcp::TcpOptions few{
      .bind_address = "127.0.0.1", .max_pending_handshakes = 4, .failure_detect = scaled(20s)};
  Node hub(0, kPeers + 1, {.failure_detect = scaled(20s)});
  const auto regions = value_or_throw(RegionTable::create());
  std::deque<SmallPeer> peers;
  for (PeerId id = 1; id <= kPeers; ++id) peers.emplace_back(id, kPeers + 1, *regions, few);
  std::vector<std::unique_ptr<Channel>> out;  // from the hub
  std::vector<std::unique_ptr<Channel>> in;   // to the hub
  const auto all_look = [&] {
    hub.progress();
    for (SmallPeer& peer : peers) static_cast<void>(peer.transport->progress(256));
  };
  const auto drive = [&](auto&& done) {
    const Deadline deadline(scaled(60s));
    while (!done()) {
      if (deadline.passed()) return false;
      all_look();
    }
    return true;
  };

  // All of them at once, in both directions.
  for (SmallPeer& peer : peers) {
    out.push_back(connect(*hub.transport, *peer.transport, peer.identity.self));
    in.push_back(connect(*peer.transport, *hub.transport, 0));
  }
  const auto open = [](const auto& channel) { return channel->state() == ChannelState::open; };
  ASSERT_TRUE(
      drive([&] { return std::all_of(out.begin(), out.end(), open) && std::all_of(in.begin(), in.end(), open); }));

  // Each peer sends a message and puts its number into a table of the hub; the hub answers with a message and a put.
  std::vector<std::uint64_t> table(kPeers + 1);
  Region* region = hub.add(std::as_writable_bytes(std::span(table)));
  std::vector<std::uint64_t> mine(kPeers + 1);
  std::vector<std::uint64_t> answers(kPeers + 1);
  std::vector<Region*> source;
  std::vector<Region*> landing;
  std::vector<std::uint64_t> greeting(1000);
  Region* from_hub = hub.add(std::as_writable_bytes(std::span(greeting)));
  Completion done;
  const Deadline patience(scaled(60s));
  const auto post = [&](Channel& channel, const WorkRequest& request) {
    done.arm(1);
    while (true) {
      const auto result = channel.post(std::span(&request, 1), patience);
      if (result.accepted == 1) return;
      ASSERT_EQ(result.status.code, Errc::again);
      ASSERT_FALSE(patience.passed());
      all_look();
    }
  };
  for (std::size_t i = 0; i < kPeers; ++i) {
    mine[i] = 1'000'000 + i;
    greeting[i] = 2'000'000 + i;
    source.push_back(add(*regions, std::as_writable_bytes(std::span(&mine[i], 1))));
    landing.push_back(add(*regions, std::as_writable_bytes(std::span(&answers[i], 1))));
    const RemoteRegion* to = value_or_throw(in[i]->import(region->key()));
    post(*in[i], WorkRequest::put({source[i]}, {to, i * 8}, 8, &done));
    post(*in[i], WorkRequest::send(5, std::as_bytes(std::span(&mine[i], 1)), &done));
  }
  ASSERT_TRUE(drive([&] { return hub.recorder.messages.size() == kPeers && done.done(); }));
  std::vector<bool> heard(kPeers + 1);
  for (const auto& message : hub.recorder.messages) {
    ASSERT_EQ(message.payload.size(), 8U);
    std::uint64_t said = 0;
    std::memcpy(&said, message.payload.data(), sizeof said);
    EXPECT_EQ(said, 1'000'000 + message.from - 1);
    EXPECT_FALSE(heard[message.from]) << message.from << " was heard twice";
    heard[message.from] = true;
  }
  for (std::size_t i = 0; i < kPeers; ++i) ASSERT_EQ(table[i], mine[i]);
  for (std::size_t i = 0; i < kPeers; ++i) {
    const RemoteRegion* to = value_or_throw(out[i]->import(landing[i]->key()));
    post(*out[i], WorkRequest::put_notify({from_hub, i * 8}, {to, 0}, 8, 5, 7, &done));
  }
  ASSERT_TRUE(drive([&] { return done.done(); }));
  EXPECT_TRUE(done.status().ok());
  ASSERT_TRUE(drive([&] {
    return std::all_of(peers.begin(), peers.end(),
                       [](const SmallPeer& peer) { return peer.recorder.notifications.size() == 1; });
  }));
  for (std::size_t i = 0; i < kPeers; ++i) ASSERT_EQ(answers[i], greeting[i]);
  EXPECT_TRUE(hub.recorder.downs.empty());
  for (auto& channel : out) channel->close();
  for (auto& channel : in) channel->close();
  // Who hears the other's goodbye first has been left instead of leaving.
  const auto over = [](const auto& channel) {
    return channel->state() == ChannelState::closed || channel->state() == ChannelState::failed;
  };
  EXPECT_TRUE(
      drive([&] { return std::all_of(out.begin(), out.end(), over) && std::all_of(in.begin(), in.end(), over); }));
}

TEST_F(ManyPeersTest, AConnectionThatIsHardlyUsedHoldsTheMemoryOfWhatIsOpenNotOfWhatMayBe) {
#if defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "the thread sanitizer writes a shadow of all memory that is given out";
#endif
  // Room for 65,536 open requests is 5 MB a channel: sixteen of them would be 80 MB if it were all taken.
  const fabric::tcp::TcpOptions wide{.queue_depth = 65536, .max_pending_handshakes = 4, .failure_detect = scaled(20s)};
  Node hub(0, 17, wide);
  std::deque<Node> peers;
  for (PeerId id = 1; id <= 16; ++id) peers.emplace_back(id, 17, wide);
  const auto resident = [] {
    std::ifstream file("/proc/self/statm");
    long pages = 0;
    long present = 0;
    file >> pages >> present;
    return present * 4096;
  };
  const long before = resident();
  std::vector<std::unique_ptr<Channel>> out;
  for (Node& peer : peers) out.push_back(hub.connect(peer));
  const Deadline deadline(scaled(60s));
  const auto drive = [&](auto&& done) {
    while (!done()) {
      if (deadline.passed()) return false;
      hub.progress();
      for (Node& peer : peers) peer.progress();
    }
    return true;
  };
  ASSERT_TRUE(drive([&] {
    return std::all_of(out.begin(), out.end(), [](const auto& c) { return c->state() == ChannelState::open; });
  }));
  Completion done;
  for (int round = 0; round < 10; ++round) {
    for (auto& channel : out) {
      const auto request = WorkRequest::notify(5, 1, &done);
      done.arm(1);
      ASSERT_EQ(channel->post(std::span(&request, 1), deadline).accepted, 1U);
    }
    ASSERT_TRUE(drive([&] { return done.done(); }));
  }
  EXPECT_LT(resident() - before, 16L << 20);
}

}  // namespace
}  // namespace dtr::testing
