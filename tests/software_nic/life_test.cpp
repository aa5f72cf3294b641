// Many threads, several devices, and ends in the middle of traffic.
#include <atomic>
#include <thread>

#include "software_nic/ends.hpp"

namespace dtr::software_nic {
namespace {

using namespace std::chrono_literals;

TEST(LifeTest, RailsFailApart) {
  auto network = std::make_shared<Network>();
  SoftwareNic nic_a(network, {.name = "a", .host = {}, .devices = {{}, {}}});
  SoftwareNic nic_b(network, {.name = "b", .host = {}, .devices = {{}, {}}});
  End a0(nic_a);
  End b0(nic_b);
  End a1(nic_a, {.device = 1});
  End b1(nic_b, {.device = 1});
  connect(a0, b0);
  connect(a1, b1);
  network->cut("a/soft1", "b/soft1");
  ASSERT_EQ(a0.post(b0, {.length = 8}), 0);
  ASSERT_EQ(a1.post(b1, {.length = 8}), 0);
  EXPECT_EQ(a0.completion().status, IBV_WC_SUCCESS);
  EXPECT_EQ(a1.completion().status, IBV_WC_RETRY_EXC_ERR);
  EXPECT_EQ(a1.event(), IBV_EVENT_QP_LAST_WQE_REACHED);
  nic_a.set_port(false, "soft1");
  EXPECT_EQ(a1.event(), IBV_EVENT_PORT_ERR);
  EXPECT_FALSE(a0.has_event());
  ASSERT_EQ(a0.post(b0, {.length = 8}), 0);
  EXPECT_EQ(a0.completion().status, IBV_WC_SUCCESS);
  EXPECT_THROW(nic_a.set_port(true, "soft2"), std::out_of_range);
}

TEST(LifeTest, SeveralThreadsMayPostAndPollAtOnce) {
  Pair pair;
  constexpr int kThreads = 4;
  constexpr std::uint64_t kEach = 500;
  std::atomic<std::uint64_t> completed{0};
  std::vector<std::thread> threads;
  threads.reserve(kThreads);
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&] {
      std::uint64_t posted = 0;
      const auto bound = Clock::now() + testing::scaled(30s);
      while ((posted < kEach || completed < kThreads * kEach) && Clock::now() < bound) {
        const End::Request add{
            .opcode = IBV_WR_ATOMIC_FETCH_AND_ADD, .from = 64, .to = 0, .length = 8, .compare_add = 1};
        if (posted < kEach && pair.a->post(*pair.b, add) == 0) ++posted;
        std::array<ibv_wc, 4> completions{};
        const int got = pair.a->api.poll_cq(pair.a->cq, 4, completions.data());
        for (int k = 0; k < got; ++k) EXPECT_EQ(completions[static_cast<std::size_t>(k)].status, IBV_WC_SUCCESS);
        completed += static_cast<std::uint64_t>(got);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(pair.b->word(0), kThreads * kEach);
}

TEST(LifeTest, AQueuePairCanGoInTheMiddleOfTraffic) {
  auto network = std::make_shared<Network>();
  SoftwareNic nic_a(network);
  SoftwareNic nic_b(network);
  for (int round = 0; round < 20; ++round) {
    End a(nic_a);
    End b(nic_b);
    connect(a, b);
    for (std::uint64_t i = 0; i < 40; ++i) {
      ASSERT_EQ(a.post(b, {.id = i, .length = 4096}), 0);
      ASSERT_EQ(b.post(a, {.id = i, .from = 8192, .to = 8192, .length = 4096}), 0);
    }
  }
  EXPECT_EQ(nic_a.objects(), 0U);
  EXPECT_EQ(nic_b.objects(), 0U);
}

TEST(LifeTest, ARankCanDieInTheMiddleOfTraffic) {
  for (int round = 0; round < 10; ++round) {
    Pair pair({.timeout = 4});
    for (std::uint64_t i = 0; i < 60; ++i) ASSERT_EQ(pair.a->post(*pair.b, {.id = i, .length = 16384}), 0);
    pair.b.reset();
    pair.nic_b.reset();
    std::uint64_t successes = 0;
    for (std::uint64_t i = 0; i < 60; ++i) {
      const ibv_wc done = pair.a->completion();
      EXPECT_EQ(done.wr_id, i);
      if (done.status == IBV_WC_SUCCESS) {
        EXPECT_EQ(successes, i);  // none after the first failure
        ++successes;
      }
    }
  }
}

TEST(LifeTest, CallsAreCounted) {
  auto network = std::make_shared<Network>();
  SoftwareNic nic(network);
  { const End end(nic); }
  EXPECT_EQ(nic.calls(Call::reg_mr), 1U);
  EXPECT_EQ(nic.calls(Call::dereg_mr), 1U);
  EXPECT_EQ(nic.calls(Call::create_qp), 1U);
  EXPECT_EQ(nic.calls(Call::modify_qp), 0U);
  EXPECT_EQ(nic.calls(Call::post_send), 0U);
}

}  // namespace
}  // namespace dtr::software_nic
