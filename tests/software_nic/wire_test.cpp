// Delay, jitter and what they make visible; posting without execution.
#include <atomic>
#include <thread>

#include "software_nic/ends.hpp"

namespace dtr::software_nic {
namespace {

using namespace std::chrono_literals;

constexpr LinkOptions kPatient{.timeout = 22, .retry_count = 7};  // more than a minute

TEST(WireTest, DelayIsALatencyEachWay) {
  Pair pair(kPatient);
  pair.network->set_wire({}, {}, {.delay = 20ms});
  const auto start = Clock::now();
  for (std::uint64_t i = 0; i < 50; ++i) ASSERT_EQ(pair.a->post(*pair.b, {.id = i, .length = 8}), 0);
  for (std::uint64_t i = 0; i < 50; ++i) EXPECT_EQ(pair.a->completion().wr_id, i);
  EXPECT_GE(Clock::now() - start, 40ms);
}

TEST(WireTest, RequestsDoNotWaitForTheAnswersOfEarlierOnes) {
  Pair pair(kPatient);
  pair.network->set_wire("b/soft0", "a/soft0", {.delay = 10s});
  for (std::uint64_t i = 0; i < 10; ++i) {
    pair.a->word(8 * i) = i + 1;
    ASSERT_EQ(pair.a->post(*pair.b, {.id = i, .from = 8 * i, .length = 8}), 0);
  }
  const std::atomic_ref<std::uint64_t> word(pair.b->word(0));
  const auto bound = Clock::now() + testing::scaled(9s);
  while (word.load() != 10 && Clock::now() < bound) std::this_thread::sleep_for(1ms);
  EXPECT_EQ(word.load(), 10U);
  EXPECT_TRUE(pair.a->quiet(5ms));
}

TEST(WireTest, JitterReordersQueuePairsButNeverWithinOne) {
  auto network = std::make_shared<Network>(NetworkOptions{.seed = 3});
  SoftwareNic nic_a(network);
  SoftwareNic nic_b(network);
  End a1(nic_a);
  End a2(nic_a);
  End b1(nic_b);
  End b2(nic_b);
  connect(a1, b1, kPatient);
  connect(a2, b2, kPatient);
  network->set_wire({}, {}, {.jitter = 20ms});
  bool overtaken = false;
  for (std::uint64_t round = 0; round < 200 && !overtaken; ++round) {
    ASSERT_EQ(a1.post(b1, {.id = 2 * round, .length = 8}), 0);
    ASSERT_EQ(a1.post(b1, {.id = 2 * round + 1, .length = 8}), 0);
    ASSERT_EQ(a2.post(b2, {.id = round, .length = 8}), 0);
    EXPECT_EQ(a2.completion().wr_id, round);
    ibv_wc none{};
    const bool first_is_late = nic_a.poll_cq(a1.cq, 1, &none) == 0;
    overtaken = overtaken || first_is_late;
    if (first_is_late) none = a1.completion();
    EXPECT_EQ(none.wr_id, 2 * round);
    EXPECT_EQ(a1.completion().wr_id, 2 * round + 1);
  }
  EXPECT_TRUE(overtaken);
}

TEST(WireTest, WhatIsOnTheWireArrivesAfterItsQueuePairHasFailed) {
  // The reason for fencing: the initiator sees a flushed request, the target's memory changes later.
  Pair pair(kPatient);
  pair.network->set_wire("a/soft0", "b/soft0", {.delay = 1s});
  pair.a->word(0) = 77;
  ASSERT_EQ(pair.a->post(*pair.b, {.length = 8}), 0);
  ASSERT_EQ(pair.a->to_state(IBV_QPS_ERR), 0);
  EXPECT_EQ(pair.a->completion().status, IBV_WC_WR_FLUSH_ERR);
  pair.a->word(0) = 1;
  const std::atomic_ref<std::uint64_t> word(pair.b->word(0));
  const auto bound = Clock::now() + testing::scaled(10s);
  while (word.load() == 0 && Clock::now() < bound) std::this_thread::sleep_for(1ms);
  EXPECT_EQ(word.load(), 77U);
}

TEST(WireTest, AFencedTargetIsSafeFromLatePackets) {
  Pair pair(kPatient);
  pair.network->set_wire("a/soft0", "b/soft0", {.delay = 1s});
  pair.a->word(0) = 77;
  ASSERT_EQ(pair.a->post(*pair.b, {.length = 8}), 0);
  ASSERT_EQ(pair.a->to_state(IBV_QPS_ERR), 0);
  ASSERT_EQ(pair.b->to_state(IBV_QPS_ERR), 0);
  std::this_thread::sleep_for(1200ms);
  EXPECT_EQ(pair.b->word(0), 0U);
}

TEST(WireTest, LatePacketsOfADestroyedQueuePairArriveToo) {
  Pair pair(kPatient);
  pair.network->set_wire("a/soft0", "b/soft0", {.delay = 1s});
  pair.b->receive(5, 4096);
  ASSERT_EQ(pair.a->post(*pair.b, {.opcode = IBV_WR_SEND, .length = 8}), 0);
  ASSERT_EQ(pair.a->api.destroy_qp(pair.a->qp), 0);
  pair.a->qp = nullptr;
  EXPECT_EQ(pair.b->completion().wr_id, 5U);
}

TEST(WireTest, AnAnswerUnderWayIsLostWithTheQueuePair) {
  Pair pair(kPatient);
  pair.network->set_wire("b/soft0", "a/soft0", {.delay = 10s});
  pair.a->word(0) = 3;
  ASSERT_EQ(pair.a->post(*pair.b, {.id = 1, .length = 8}), 0);
  const std::atomic_ref<std::uint64_t> word(pair.b->word(0));
  const auto bound = Clock::now() + testing::scaled(10s);
  while (word.load() == 0 && Clock::now() < bound) std::this_thread::sleep_for(1ms);
  ASSERT_EQ(word.load(), 3U);
  ASSERT_EQ(pair.a->to_state(IBV_QPS_ERR), 0);
  EXPECT_EQ(pair.a->completion().status, IBV_WC_WR_FLUSH_ERR);  // though it landed
}

TEST(WireTest, OnlyAFenceWaitsForReads) {
  const auto forwarded = [](unsigned flags, std::chrono::milliseconds delay) {
    Pair pair(kPatient);
    pair.network->set_wire("b/soft0", "a/soft0", {.delay = delay});  // the read's answer
    pair.b->word(0) = 5;
    EXPECT_EQ(pair.a->post(*pair.b, {.opcode = IBV_WR_RDMA_READ, .from = 0, .to = 0, .length = 8}), 0);
    EXPECT_EQ(pair.a->post(*pair.b, {.from = 0, .to = 64, .length = 8, .flags = IBV_SEND_SIGNALED | flags}), 0);
    static_cast<void>(pair.a->completions(2));
    return pair.b->word(64);
  };
  EXPECT_EQ(forwarded(IBV_SEND_FENCE, 50ms), 5U);
  EXPECT_EQ(forwarded(0, 2s), 0U);
}

TEST(WireTest, NoMoreReadsAreUnderWayThanAllowed) {
  Pair pair({.timeout = 22, .reads = 2});
  pair.network->set_wire("b/soft0", "a/soft0", {.delay = 15ms});
  const auto start = Clock::now();
  for (int i = 0; i < 6; ++i) {
    ASSERT_EQ(pair.a->post(*pair.b, {.opcode = IBV_WR_RDMA_READ, .length = 8}), 0);
  }
  static_cast<void>(pair.a->completions(6));
  EXPECT_GE(Clock::now() - start, 45ms);
}

TEST(WireTest, ADelayBeyondTheRepetitionsFailsTheRequestThatLandsLater) {
  Pair pair({.timeout = 8, .retry_count = 3});  // 4 ms in all
  pair.network->set_wire("a/soft0", "b/soft0", {.delay = 1s});
  pair.a->word(0) = 77;
  pair.nic_a->freeze();  // both are sent before the first fails
  ASSERT_EQ(pair.a->post(*pair.b, {.id = 1, .length = 8}), 0);
  ASSERT_EQ(pair.a->post(*pair.b, {.id = 2, .to = 8, .length = 8}), 0);
  pair.nic_a->thaw();
  EXPECT_EQ(pair.a->completion().status, IBV_WC_RETRY_EXC_ERR);
  EXPECT_EQ(pair.a->completion().status, IBV_WC_WR_FLUSH_ERR);
  pair.a->word(0) = 1;
  const std::atomic_ref<std::uint64_t> second(pair.b->word(8));
  const auto bound = Clock::now() + testing::scaled(10s);
  while (second.load() == 0 && Clock::now() < bound) std::this_thread::sleep_for(1ms);
  EXPECT_EQ(second.load(), 77U);
  EXPECT_EQ(pair.b->word(0), 77U);
}

TEST(WireTest, AnAnswerBeyondTheRepetitionsFailsARequestThatLanded) {
  Pair pair({.timeout = 8, .retry_count = 3});
  pair.network->set_wire("b/soft0", "a/soft0", {.delay = 1h});
  pair.a->word(0) = 77;
  ASSERT_EQ(pair.a->post(*pair.b, {.length = 8}), 0);
  EXPECT_EQ(pair.a->completion().status, IBV_WC_RETRY_EXC_ERR);
  EXPECT_EQ(pair.b->word(0), 77U);
}

TEST(WireTest, WithoutExecutionPostsCompleteAtOnceAndMoveNothing) {
  Pair pair;
  pair.nic_a->set_execution(Execution::complete_at_post);
  pair.a->word(0) = 1;
  for (std::uint64_t i = 0; i < 1000; ++i) {
    ASSERT_EQ(pair.a->post(*pair.b,
                           {.id = i, .length = 8, .flags = static_cast<unsigned>(i % 8 == 7 ? IBV_SEND_SIGNALED : 0)}),
              0);
    ibv_wc done{};
    EXPECT_EQ(pair.a->api.poll_cq(pair.a->cq, 1, &done), i % 8 == 7 ? 1 : 0);
    if (i % 8 == 7) {
      EXPECT_EQ(done.wr_id, i);
    }
  }
  EXPECT_EQ(pair.nic_a->posted_requests(), 1000U);
  EXPECT_EQ(pair.b->word(0), 0U);
  pair.nic_a->set_execution(Execution::normal);
  ASSERT_EQ(pair.a->post(*pair.b, {.length = 8}), 0);
  EXPECT_EQ(pair.a->completion().status, IBV_WC_SUCCESS);
  EXPECT_EQ(pair.b->word(0), 1U);
}

TEST(WireTest, CompletionsOnDemandComeWhenAskedFor) {
  Pair pair;
  pair.nic_a->set_execution(Execution::on_demand);
  for (std::uint64_t i = 0; i < 5; ++i) ASSERT_EQ(pair.a->post(*pair.b, {.id = i, .length = 8}), 0);
  EXPECT_TRUE(pair.a->quiet(5ms));
  pair.nic_a->complete_posted();
  for (std::uint64_t i = 0; i < 5; ++i) EXPECT_EQ(pair.a->completion().wr_id, i);
  ASSERT_EQ(pair.a->post(*pair.b, {.id = 5, .length = 8}), 0);
  ASSERT_EQ(pair.a->to_state(IBV_QPS_ERR), 0);
  EXPECT_EQ(pair.a->completion().status, IBV_WC_WR_FLUSH_ERR);
}

}  // namespace
}  // namespace dtr::software_nic
