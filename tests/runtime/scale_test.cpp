// What one rank of a job of ten thousand pays for those that it does not use. The job is simulated: see the header.
#include <array>
#include <random>
#include <set>

#include <gtest/gtest.h>
#include <malloc.h>

#include "dtr/runtime/runtime.hpp"
#include "support/simulated_world.hpp"

namespace dtr::testing {
namespace {

using namespace std::chrono_literals;

std::unique_ptr<Runtime> rank_of(int rank, int size, Asked& asked) {
  RuntimeOptions options;
  options.bootstrap = std::make_unique<SimulatedWorld>(rank, size, 8);
  options.transports = stand_ins(asked);
  options.config.overrides = {{"progress.mode", "inline"},
                              {"host.id", "a-host-with-a-name-of-some-length"},
                              {"runtime.heartbeat_interval_ms", "36000000"},  // only those that a test asks for
                              {"runtime.heartbeat_timeout_ms", "80000000"}};
  return value_or_throw(Runtime::init(std::move(options)));
}

#if !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
TEST(ScaleTest, APeerOfAWorldOfTenThousandThatIsNotUsedHoldsAtMostAKibibyte) {
  const auto held = [](int size) {
    Asked asked;
    const auto in_use = [] {
      const auto info = ::mallinfo2();
      return static_cast<double>(info.uordblks + info.hblkhd);
    };
    const double before = in_use();
    const auto rt = rank_of(77, size, asked);
    return in_use() - before;
  };
  static_cast<void>(held(100));  // what a process makes once
  const double a_peer = (held(10'000) - held(1'000)) / 9'000;
  EXPECT_LT(a_peer, 1024);
  EXPECT_GT(a_peer, 64) << "less than a name and an address: this measures nothing";
}
#endif

TEST(ScaleTest, EveryRankOfTenThousandIsConnectedWithItsNeighboursAlone) {
  for (const int rank : {0, 1, 77, 5000, 9999}) {
    Asked asked;
    const auto rt = rank_of(rank, 10'000, asked);
    EXPECT_LE(asked.connects, 1U) << "a rank says hello to its parent";
    ASSERT_TRUE(rt->heartbeat());
    ASSERT_TRUE(rt->barrier());
    EXPECT_LE(asked.connects, 65U);
    EXPECT_EQ(rt->place().hosts, 1250);
    EXPECT_EQ(rt->place().local_size, 8);
  }
}

TEST(ScaleTest, ConnectionsAreMadeWithThePeersUsedAndProgressLooksAtThoseAlone) {
  Asked asked;
  const auto rt = rank_of(0, 10'000, asked);
  auto& fabric = rt->fabric();
  std::mt19937 random(5);
  std::set<fabric::PeerId> used;
  while (used.size() < 100) used.insert(1 + static_cast<fabric::PeerId>(random() % 9'999));
  fabric::Completion done;
  const std::array<std::byte, 8> word{};
  const auto request = fabric::WorkRequest::send(200, word, &done);
  for (const auto peer : used) fabric.submit(peer, std::span(&request, 1), 60s);
  EXPECT_TRUE(done.done());
  EXPECT_EQ(asked.connects, used.size());
  for (const auto peer : used) fabric.submit(peer, std::span(&request, 1), 60s);
  EXPECT_EQ(asked.connects, used.size()) << "a connection is made once";

  // Three of them have no room: progress asks these three at every look, and nobody else.
  asked.full = true;
  const std::vector<fabric::PeerId> waiting{*used.begin(), *std::next(used.begin(), 50), *used.rbegin()};
  for (const auto peer : waiting) fabric.submit(peer, std::span(&request, 1), 60s);
  const std::uint64_t before = asked.posts;
  for (int look = 0; look < 10; ++look) static_cast<void>(rt->progress());
  EXPECT_EQ(asked.posts - before, 30U);
  asked.full = false;
  static_cast<void>(rt->progress());
  EXPECT_TRUE(done.done());
  const std::uint64_t drained = asked.posts;
  for (int look = 0; look < 10; ++look) static_cast<void>(rt->progress());
  EXPECT_EQ(asked.posts, drained) << "nobody waits any more";
}

}  // namespace
}  // namespace dtr::testing
