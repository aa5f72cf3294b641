// Faults of the wire, of ports, devices, requests and calls.
#include <thread>

#include "software_nic/ends.hpp"

namespace dtr::software_nic {
namespace {

using namespace std::chrono_literals;

TEST(FaultsTest, ACutWireEndsInRetriesExceededAfterTheTimersHaveRun) {
  // 4 attempts, 4.2 ms each.
  Pair pair({.timeout = 10, .retry_count = 3});
  pair.network->cut();
  const auto start = Clock::now();
  ASSERT_EQ(pair.a->post(*pair.b, {.id = 1, .length = 8}), 0);
  ASSERT_EQ(pair.a->post(*pair.b, {.id = 2, .length = 8}), 0);
  const ibv_wc done = pair.a->completion();
  EXPECT_EQ(done.status, IBV_WC_RETRY_EXC_ERR);
  EXPECT_EQ(done.wr_id, 1U);
  EXPECT_GE(Clock::now() - start, 4 * 4194us);
  EXPECT_EQ(pair.a->completion().status, IBV_WC_WR_FLUSH_ERR);
  EXPECT_EQ(pair.b->word(0), 0U);
}

TEST(FaultsTest, AnOutageShorterThanTheRetriesIsNotSeen) {
  Pair pair({.timeout = 12, .retry_count = 7});  // 8 attempts, 17 ms each
  pair.network->cut("a/soft0", "b/soft0", 20ms);
  fill(*pair.a, 0, 64, 1);
  ASSERT_EQ(pair.a->post(*pair.b, {.length = 64}), 0);
  EXPECT_EQ(pair.a->completion().status, IBV_WC_SUCCESS);
  EXPECT_TRUE(filled(*pair.b, 0, 64, 1));
}

TEST(FaultsTest, ALostAnswerDoesNotRepeatTheEffect) {
  Pair pair({.timeout = 10, .retry_count = 7});
  pair.network->set_wire("b/soft0", "a/soft0", {.drop_next = 3});
  ASSERT_EQ(
      pair.a->post(*pair.b, {.opcode = IBV_WR_ATOMIC_FETCH_AND_ADD, .from = 8, .to = 0, .length = 8, .compare_add = 5}),
      0);
  EXPECT_EQ(pair.a->completion().status, IBV_WC_SUCCESS);
  EXPECT_EQ(pair.b->word(0), 5U);
  EXPECT_EQ(pair.a->word(8), 0U);
  pair.b->receive(1, 1024);
  pair.b->receive(2, 2048);
  pair.network->set_wire("b/soft0", "a/soft0", {.drop_next = 2});
  ASSERT_EQ(pair.a->post(*pair.b, {.opcode = IBV_WR_SEND, .length = 8}), 0);
  EXPECT_EQ(pair.a->completion().status, IBV_WC_SUCCESS);
  EXPECT_EQ(pair.b->completion().wr_id, 1U);
  EXPECT_TRUE(pair.b->quiet());
}

TEST(FaultsTest, WithTheAnswersCutARequestLandsButFails) {
  Pair pair({.timeout = 8, .retry_count = 1});
  pair.network->set_wire("b/soft0", "a/soft0", {.cut = true});
  pair.a->word(0) = 9;
  ASSERT_EQ(pair.a->post(*pair.b, {.length = 8}), 0);
  EXPECT_EQ(pair.a->completion().status, IBV_WC_RETRY_EXC_ERR);
  EXPECT_EQ(pair.b->word(0), 9U);
}

TEST(FaultsTest, LossIsRepairedByRepetition) {
  Pair pair({.timeout = 1, .retry_count = 7});
  pair.network->set_wire({}, {}, {.loss = 0.05});
  std::uint64_t sum = 0;
  for (std::uint64_t i = 1; i <= 200; ++i) {
    ASSERT_EQ(pair.a->post(*pair.b,
                           {.opcode = IBV_WR_ATOMIC_FETCH_AND_ADD, .from = 8, .to = 0, .length = 8, .compare_add = i}),
              0);
    ASSERT_EQ(pair.a->completion().status, IBV_WC_SUCCESS);
    EXPECT_EQ(pair.a->word(8), sum);
    sum += i;
  }
  EXPECT_EQ(pair.b->word(0), sum);
}

TEST(FaultsTest, RetryCountSevenIsForEverOnlyWhereTheDeviceSaysSo) {
  {
    Pair pair({.timeout = 6, .retry_count = 7});
    pair.network->cut();
    ASSERT_EQ(pair.a->post(*pair.b, {.length = 8}), 0);
    EXPECT_EQ(pair.a->completion().status, IBV_WC_RETRY_EXC_ERR);
  }
  Pair pair({.timeout = 6, .retry_count = 7}, {.retry_seven_forever = true});
  pair.network->cut();
  ASSERT_EQ(pair.a->post(*pair.b, {.length = 8}), 0);
  EXPECT_TRUE(pair.a->quiet(100ms));
  pair.network->heal();
  EXPECT_EQ(pair.a->completion().status, IBV_WC_SUCCESS);
}

TEST(FaultsTest, NoReceiveIsNotReadyAndEndsAfterItsRetries) {
  Pair pair({.not_ready_retries = 3, .not_ready_timer = 20});  // 10 ms each
  const auto start = Clock::now();
  ASSERT_EQ(pair.a->post(*pair.b, {.opcode = IBV_WR_SEND, .length = 8}), 0);
  EXPECT_EQ(pair.a->completion().status, IBV_WC_RNR_RETRY_EXC_ERR);
  EXPECT_GE(Clock::now() - start, 30ms);
}

TEST(FaultsTest, AReceiveThatComesLateIsWaitedFor) {
  Pair pair({.not_ready_retries = 7, .not_ready_timer = 14});  // for ever, 1.3 ms each
  ASSERT_EQ(pair.a->post(*pair.b, {.opcode = IBV_WR_SEND, .id = 1, .length = 8}), 0);
  ASSERT_EQ(pair.a->post(*pair.b, {.opcode = IBV_WR_RDMA_WRITE_WITH_IMM, .id = 2, .length = 8}), 0);
  EXPECT_TRUE(pair.a->quiet());
  pair.b->receive(1, 4096);
  pair.b->receive(2, 4096);
  EXPECT_EQ(pair.a->completion().wr_id, 1U);
  EXPECT_EQ(pair.a->completion().wr_id, 2U);
  EXPECT_EQ(pair.b->completion().opcode, IBV_WC_RECV);
  EXPECT_EQ(pair.b->completion().opcode, IBV_WC_RECV_RDMA_WITH_IMM);
}

TEST(FaultsTest, APeerThatIsNotThereGivesNoAnswer) {
  const auto silent = [](Pair& pair) {
    ASSERT_EQ(pair.a->post(*pair.b, {.length = 8}), 0);
    EXPECT_EQ(pair.a->completion().status, IBV_WC_RETRY_EXC_ERR);
  };
  {
    Pair pair;  // destroyed
    ASSERT_EQ(pair.b->api.destroy_qp(pair.b->qp), 0);
    pair.b->qp = nullptr;
    silent(pair);
  }
  {
    Pair pair;  // in error
    ASSERT_EQ(pair.b->to_state(IBV_QPS_ERR), 0);
    silent(pair);
  }
  {
    Pair pair;  // not yet ready to receive
    ASSERT_EQ(pair.b->to_state(IBV_QPS_RESET), 0);
    ASSERT_EQ(pair.b->to_init(), 0);
    silent(pair);
  }
  {
    Pair pair;  // frozen
    pair.nic_b->freeze();
    silent(pair);
    pair.nic_b->thaw();
  }
  {
    Pair pair;  // broken
    pair.nic_b->break_device();
    silent(pair);
  }
  {
    Pair pair;  // the whole rank has gone
    pair.b.reset();
    pair.nic_b.reset();
    ibv_send_wr work{};
    work.send_flags = IBV_SEND_SIGNALED;
    ibv_send_wr* bad = nullptr;
    ASSERT_EQ(pair.a->api.post_send(pair.a->qp, &work, &bad), 0);
    EXPECT_EQ(pair.a->completion().status, IBV_WC_RETRY_EXC_ERR);
  }
  {
    Pair pair({.psn_error = 1});
    silent(pair);
  }
}

TEST(FaultsTest, APeerThatBecomesReadyInTimeIsFound) {
  auto network = std::make_shared<Network>();
  SoftwareNic nic_a(network);
  SoftwareNic nic_b(network);
  End a(nic_a);
  End b(nic_b);
  const LinkOptions link{.timeout = 17, .retry_count = 7};  // 0.54 s each
  ASSERT_EQ(a.to_init(), 0);
  ASSERT_EQ(b.to_init(), 0);
  ASSERT_EQ(a.to_ready(b, link), 0);
  ASSERT_EQ(a.to_send(link), 0);
  ASSERT_EQ(a.post(b, {.length = 8}), 0);
  std::this_thread::sleep_for(5ms);
  ASSERT_EQ(b.to_ready(a, link), 0);
  EXPECT_EQ(a.completion().status, IBV_WC_SUCCESS);
}

TEST(FaultsTest, APortThatGoesDownSaysSoAndIsSilentUntilItIsUp) {
  Pair pair({.timeout = 16, .retry_count = 7});  // 2.1 s in all
  pair.nic_a->set_port(false);
  EXPECT_EQ(pair.a->event(), IBV_EVENT_PORT_ERR);
  ibv_port_attr port{};
  ASSERT_EQ(pair.nic_a->query_port(pair.a->context, 1, &port), 0);
  EXPECT_EQ(port.state, IBV_PORT_DOWN);
  ASSERT_EQ(pair.a->post(*pair.b, {.id = 1, .length = 8}), 0);
  std::this_thread::sleep_for(5ms);
  pair.nic_a->set_port(true);
  EXPECT_EQ(pair.a->event(), IBV_EVENT_PORT_ACTIVE);
  EXPECT_EQ(pair.a->completion().status, IBV_WC_SUCCESS);
  EXPECT_FALSE(pair.b->has_event());  // the other end's port never changed
  pair.nic_b->set_port(false);
  ASSERT_EQ(pair.a->post(*pair.b, {.id = 2, .length = 8}), 0);
  EXPECT_EQ(pair.a->completion().status, IBV_WC_RETRY_EXC_ERR);
}

TEST(FaultsTest, AGidThatChangesSaysSoAndLosesItsConnections) {
  Pair pair;
  pair.nic_b->set_gid(kIpv4Gid, {.address = "10.77.0.99"});
  EXPECT_EQ(pair.b->event(), IBV_EVENT_GID_CHANGE);
  ASSERT_EQ(pair.a->post(*pair.b, {.length = 8}), 0);
  EXPECT_EQ(pair.a->completion().status, IBV_WC_RETRY_EXC_ERR);
  for (End* end : {pair.a.get(), pair.b.get()}) ASSERT_EQ(end->to_state(IBV_QPS_RESET), 0);
  connect(*pair.a, *pair.b);
  ASSERT_EQ(pair.a->post(*pair.b, {.length = 8}), 0);
  EXPECT_EQ(pair.a->completion().status, IBV_WC_SUCCESS);
}

TEST(FaultsTest, ABrokenDeviceSaysSoAndRefusesAllButDestroying) {
  Pair pair;
  pair.nic_a->break_device();
  EXPECT_EQ(pair.a->event(), IBV_EVENT_DEVICE_FATAL);
  EXPECT_EQ(pair.a->to_state(IBV_QPS_ERR), EIO);
  EXPECT_EQ(pair.nic_a->reg_mr(pair.a->pd, pair.a->memory.data(), 8, 0), nullptr);
  EXPECT_EQ(errno, EIO);
  EXPECT_EQ(pair.nic_a->create_cq(pair.a->context, 8, nullptr, nullptr, 0), nullptr);
  EXPECT_EQ(errno, EIO);
  ASSERT_EQ(pair.a->post(*pair.b, {.length = 8}), 0);
  EXPECT_TRUE(pair.a->quiet());
}

TEST(FaultsTest, AFrozenDeviceDoesNothingUntilItIsThawed) {
  Pair pair;
  pair.nic_a->freeze();
  ASSERT_EQ(pair.a->post(*pair.b, {.id = 1, .length = 8}), 0);
  EXPECT_TRUE(pair.a->quiet());
  pair.nic_a->thaw();
  EXPECT_EQ(pair.a->completion().status, IBV_WC_SUCCESS);
}

TEST(FaultsTest, TheNthRequestFailsAsOrdered) {
  Pair pair;
  pair.nic_a->fail_request({.nth = 3, .status = IBV_WC_GENERAL_ERR});
  for (std::uint64_t i = 1; i <= 4; ++i) {
    pair.a->word(8 * i) = i;
    ASSERT_EQ(pair.a->post(*pair.b, {.id = i, .from = 8 * i, .to = 8 * i, .length = 8}), 0);
  }
  EXPECT_EQ(pair.a->completion().status, IBV_WC_SUCCESS);
  EXPECT_EQ(pair.a->completion().status, IBV_WC_SUCCESS);
  EXPECT_EQ(pair.a->completion().wr_id, 3U);
  EXPECT_EQ(pair.a->completion().status, IBV_WC_WR_FLUSH_ERR);
  EXPECT_EQ(pair.b->word(24), 0U);
}

TEST(FaultsTest, AFailedRequestMayHaveLanded) {
  Pair pair;
  pair.nic_a->fail_request({.qp_num = pair.a->qp->qp_num, .status = IBV_WC_RETRY_EXC_ERR, .landed = true});
  pair.a->word(0) = 5;
  ASSERT_EQ(pair.a->post(*pair.b, {.length = 8}), 0);
  EXPECT_EQ(pair.a->completion().status, IBV_WC_RETRY_EXC_ERR);
  EXPECT_EQ(pair.b->word(0), 5U);
}

TEST(FaultsTest, TheNthCallFailsAsOrdered) {
  Pair pair;
  pair.nic_a->fail_call({.call = Call::reg_mr, .nth = 2, .error = ENOMEM});
  ibv_mr* first = pair.nic_a->reg_mr(pair.a->pd, pair.a->memory.data(), 8, 0);
  EXPECT_NE(first, nullptr);
  EXPECT_EQ(pair.nic_a->reg_mr(pair.a->pd, pair.a->memory.data(), 8, 0), nullptr);
  EXPECT_EQ(errno, ENOMEM);
  ibv_mr* third = pair.nic_a->reg_mr(pair.a->pd, pair.a->memory.data(), 8, 0);
  EXPECT_NE(third, nullptr);
  EXPECT_EQ(pair.nic_a->dereg_mr(first), 0);
  EXPECT_EQ(pair.nic_a->dereg_mr(third), 0);

  ibv_qp_init_attr attributes = pair.a->wanted();
  pair.nic_a->fail_call({.call = Call::create_qp, .error = EMFILE, .times = 2});
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(pair.nic_a->create_qp(pair.a->pd, &attributes), nullptr);
    EXPECT_EQ(errno, EMFILE);
  }
  ibv_qp* made = pair.nic_a->create_qp(pair.a->pd, &attributes);
  ASSERT_NE(made, nullptr);
  EXPECT_EQ(pair.nic_a->destroy_qp(made), 0);

  pair.nic_a->fail_call({.call = Call::post_send, .error = EAGAIN});
  pair.nic_a->fail_call({.call = Call::create_cq, .error = ENOMEM});
  EXPECT_EQ(pair.a->post(*pair.b, {.length = 8}), EAGAIN);
  pair.nic_a->clear_faults();
  ibv_cq* cq = pair.nic_a->create_cq(pair.a->context, 8, nullptr, nullptr, 0);
  ASSERT_NE(cq, nullptr);
  EXPECT_EQ(pair.nic_a->destroy_cq(cq), 0);
}

}  // namespace
}  // namespace dtr::software_nic
