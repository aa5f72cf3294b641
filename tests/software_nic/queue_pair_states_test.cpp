// The state machine of queue pairs, and what posting does in each state.
#include <atomic>
#include <thread>

#include "software_nic/ends.hpp"

namespace dtr::software_nic {
namespace {

struct Loose {
  std::shared_ptr<Network> network = std::make_shared<Network>();
  SoftwareNic nic_a{network};
  SoftwareNic nic_b{network};
  End a{nic_a};
  End b{nic_b};
};

TEST(QueuePairStatesTest, EachMandatoryAttributeIsDemanded) {
  Loose ends;
  ibv_qp_attr attributes{};
  attributes.port_num = 1;
  const auto demand_all = [&](ibv_qp_state state, const std::vector<int>& mandatory) {
    attributes.qp_state = state;
    int all = IBV_QP_STATE;
    for (const int bit : mandatory) all |= bit;
    for (const int bit : mandatory) EXPECT_EQ(ends.nic_a.modify_qp(ends.a.qp, &attributes, all & ~bit), EINVAL) << bit;
    EXPECT_EQ(ends.nic_a.modify_qp(ends.a.qp, &attributes, all | IBV_QP_QKEY), EINVAL);
    EXPECT_EQ(ends.nic_a.modify_qp(ends.a.qp, &attributes, all), 0);
    EXPECT_EQ(ends.a.qp->state, state);
  };
  demand_all(IBV_QPS_INIT, {IBV_QP_PKEY_INDEX, IBV_QP_PORT, IBV_QP_ACCESS_FLAGS});
  attributes.path_mtu = IBV_MTU_1024;
  attributes.dest_qp_num = ends.b.qp->qp_num;
  attributes.max_dest_rd_atomic = 1;
  attributes.min_rnr_timer = 12;
  attributes.ah_attr.is_global = 1;
  attributes.ah_attr.port_num = 1;
  attributes.ah_attr.grh.dgid = ends.b.gid(kIpv4Gid);
  attributes.ah_attr.grh.sgid_index = kIpv4Gid;
  demand_all(IBV_QPS_RTR, {IBV_QP_AV, IBV_QP_PATH_MTU, IBV_QP_DEST_QPN, IBV_QP_RQ_PSN, IBV_QP_MAX_DEST_RD_ATOMIC,
                           IBV_QP_MIN_RNR_TIMER});
  attributes.max_rd_atomic = 1;
  demand_all(IBV_QPS_RTS, {IBV_QP_TIMEOUT, IBV_QP_RETRY_CNT, IBV_QP_RNR_RETRY, IBV_QP_SQ_PSN, IBV_QP_MAX_QP_RD_ATOMIC});
  ibv_qp_attr seen{};
  ibv_qp_init_attr initial{};
  ASSERT_EQ(ends.nic_a.query_qp(ends.a.qp, &seen, IBV_QP_STATE | IBV_QP_DEST_QPN, &initial), 0);
  EXPECT_EQ(seen.qp_state, IBV_QPS_RTS);
  EXPECT_EQ(seen.dest_qp_num, ends.b.qp->qp_num);
  EXPECT_EQ(initial.send_cq, ends.a.cq);
  EXPECT_EQ(initial.cap.max_send_wr, ends.a.options.send_queue);
}

TEST(QueuePairStatesTest, StatesCannotBeSkipped) {
  Loose ends;
  EXPECT_EQ(ends.a.to_ready(ends.b), EINVAL);
  EXPECT_EQ(ends.a.to_send(), EINVAL);
  EXPECT_EQ(ends.a.to_state(IBV_QPS_ERR), EINVAL);
  ASSERT_EQ(ends.a.to_init(), 0);
  EXPECT_EQ(ends.a.to_send(), EINVAL);
  ASSERT_EQ(ends.a.to_ready(ends.b), 0);
  EXPECT_EQ(ends.a.to_init(), EINVAL);
  ASSERT_EQ(ends.a.to_send(), 0);
  ASSERT_EQ(ends.a.to_state(IBV_QPS_ERR), 0);
  EXPECT_EQ(ends.a.to_send(), EINVAL);
  EXPECT_EQ(ends.a.to_init(), EINVAL);
  ASSERT_EQ(ends.a.to_state(IBV_QPS_RESET), 0);
  EXPECT_EQ(ends.a.to_init(), 0);
}

TEST(QueuePairStatesTest, ValuesBeyondTheDeviceAreRefused) {
  Loose ends;
  ASSERT_EQ(ends.a.to_init(), 0);
  EXPECT_EQ(ends.a.to_ready(ends.b, {.reads = 17}), EINVAL);
  ibv_qp_attr attributes{};
  attributes.port_num = 2;
  EXPECT_EQ(ends.nic_a.modify_qp(ends.a.qp, &attributes, IBV_QP_PORT), EINVAL);
  attributes.port_num = 1;
  attributes.pkey_index = 1;
  EXPECT_EQ(ends.nic_a.modify_qp(ends.a.qp, &attributes, IBV_QP_PKEY_INDEX), EINVAL);
  attributes = {};
  attributes.qp_state = IBV_QPS_RTR;
  attributes.path_mtu = IBV_MTU_1024;
  attributes.ah_attr.is_global = 1;
  attributes.ah_attr.port_num = 1;
  attributes.ah_attr.grh.sgid_index = 9;  // an empty entry
  constexpr int kMask = IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
                        IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER;
  EXPECT_EQ(ends.nic_a.modify_qp(ends.a.qp, &attributes, kMask), EINVAL);
  attributes.ah_attr.grh.sgid_index = kIpv4Gid;
  attributes.path_mtu = IBV_MTU_4096;  // the port has 1024
  EXPECT_EQ(ends.nic_a.modify_qp(ends.a.qp, &attributes, kMask), EINVAL);
  attributes.path_mtu = IBV_MTU_1024;
  attributes.ah_attr.is_global = 0;  // RoCE has no other
  EXPECT_EQ(ends.nic_a.modify_qp(ends.a.qp, &attributes, kMask), EINVAL);
  attributes.ah_attr.is_global = 1;
  EXPECT_EQ(ends.nic_a.modify_qp(ends.a.qp, &attributes, kMask), 0);
}

TEST(QueuePairStatesTest, PostingNeedsReadyToSend) {
  Loose ends;
  EXPECT_EQ(ends.a.post(ends.b, {.length = 8}), EINVAL);
  ASSERT_EQ(ends.a.to_init(), 0);
  EXPECT_EQ(ends.a.post(ends.b, {.length = 8}), EINVAL);
  ASSERT_EQ(ends.a.to_ready(ends.b), 0);
  EXPECT_EQ(ends.a.post(ends.b, {.length = 8}), EINVAL);
}

TEST(QueuePairStatesTest, PostingInErrorIsFlushed) {
  Pair pair;
  ASSERT_EQ(pair.a->to_state(IBV_QPS_ERR), 0);
  for (std::uint64_t i = 0; i < 3; ++i) ASSERT_EQ(pair.a->post(*pair.b, {.id = i, .length = 8, .flags = 0}), 0);
  for (std::uint64_t i = 0; i < 3; ++i) {
    const ibv_wc done = pair.a->completion();
    EXPECT_EQ(done.status, IBV_WC_WR_FLUSH_ERR);
    EXPECT_EQ(done.wr_id, i);
  }
}

TEST(QueuePairStatesTest, ToErrorFlushesAllInOrderAndTellsTheLastReceive) {
  Pair pair;
  pair.nic_a->freeze();
  for (std::uint64_t i = 0; i < 20; ++i) ASSERT_EQ(pair.a->post(*pair.b, {.id = i, .length = 64, .flags = 0}), 0);
  ASSERT_EQ(pair.a->to_state(IBV_QPS_ERR), 0);
  pair.nic_a->thaw();
  for (std::uint64_t i = 0; i < 20; ++i) {
    const ibv_wc done = pair.a->completion();
    EXPECT_EQ(done.status, IBV_WC_WR_FLUSH_ERR);  // unsignalled ones too
    EXPECT_EQ(done.wr_id, i);
    EXPECT_EQ(done.qp_num, pair.a->qp->qp_num);
  }
  EXPECT_EQ(pair.a->event(), IBV_EVENT_QP_LAST_WQE_REACHED);
  EXPECT_FALSE(pair.a->has_event());
}

TEST(QueuePairStatesTest, NothingLandsThroughAQueuePairInError) {
  // A stream of writes; when the target's modify_qp has returned, its memory is its own.
  Pair pair({.timeout = 4});
  for (int round = 0; round < 20; ++round) {
    std::uint64_t posted = 0;
    std::thread writer([&] {
      ibv_wc done{};
      std::uint64_t completed = 0;
      while (done.status == IBV_WC_SUCCESS) {
        if (posted - completed < 32) {
          const std::size_t place = 8 * (posted % 32);
          pair.a->word(place) = posted + 1;
          ASSERT_EQ(pair.a->post(*pair.b, {.id = posted, .from = place, .length = 8}), 0);
          ++posted;
        }
        completed += static_cast<std::uint64_t>(pair.a->api.poll_cq(pair.a->cq, 1, &done));
      }
      EXPECT_EQ(done.status, IBV_WC_RETRY_EXC_ERR);
    });
    const std::atomic_ref<std::uint64_t> word(pair.b->word(0));
    while (word.load() < 100) std::this_thread::yield();
    ASSERT_EQ(pair.b->to_state(IBV_QPS_ERR), 0);
    pair.b->word(0) = 7;
    writer.join();
    EXPECT_EQ(pair.b->word(0), 7U);
    for (End* end : {pair.a.get(), pair.b.get()}) ASSERT_EQ(end->to_state(IBV_QPS_RESET), 0);
    connect(*pair.a, *pair.b, {.timeout = 4});
    pair.b->word(0) = 0;
  }
}

TEST(QueuePairStatesTest, AQueuePairWorksAgainAfterReset) {
  Pair pair;
  ASSERT_EQ(pair.a->to_state(IBV_QPS_ERR), 0);
  ASSERT_EQ(pair.a->post(*pair.b, {.length = 8}), 0);
  for (End* end : {pair.a.get(), pair.b.get()}) ASSERT_EQ(end->to_state(IBV_QPS_RESET), 0);
  EXPECT_TRUE(pair.a->quiet());  // reset forgets completions
  connect(*pair.a, *pair.b);
  ASSERT_EQ(pair.a->post(*pair.b, {.id = 3, .length = 8}), 0);
  EXPECT_EQ(pair.a->completion().status, IBV_WC_SUCCESS);
}

TEST(QueuePairStatesTest, DestroyingForgetsCompletionsThatWereNotPolled) {
  Pair pair;
  ASSERT_EQ(pair.a->post(*pair.b, {.length = 8}), 0);
  pair.b->receive(1, 4096);
  ASSERT_EQ(pair.a->post(*pair.b, {.opcode = IBV_WR_SEND, .from = 64, .length = 8}), 0);
  EXPECT_EQ(pair.b->completion().status, IBV_WC_SUCCESS);  // so the first completion is there
  ASSERT_EQ(pair.a->api.destroy_qp(pair.a->qp), 0);
  pair.a->qp = nullptr;
  EXPECT_TRUE(pair.a->quiet());
}

TEST(QueuePairStatesTest, WhatIsInUseCannotBeDestroyed) {
  Pair pair;
  EXPECT_EQ(pair.a->api.destroy_cq(pair.a->cq), EBUSY);
  EXPECT_EQ(pair.a->api.destroy_srq(pair.a->srq), EBUSY);
  EXPECT_EQ(pair.a->api.destroy_comp_channel(pair.a->channel), EBUSY);
  EXPECT_EQ(pair.a->api.dealloc_pd(pair.a->pd), EBUSY);
}

TEST(QueuePairStatesTest, EverythingDestroyedLeavesNothing) {
  auto network = std::make_shared<Network>();
  SoftwareNic nic(network);
  const std::size_t descriptors = testing::open_descriptors();
  { End end(nic); }
  EXPECT_EQ(nic.objects(), 0U);
  EXPECT_EQ(testing::open_descriptors(), descriptors);
}

TEST(QueuePairStatesTest, WhatAProgramLeavesGoesWithTheNic) {
  auto network = std::make_shared<Network>();
  const std::size_t descriptors = testing::open_descriptors();
  {
    SoftwareNic nic(network);
    ibv_device** list = nic.get_device_list(nullptr);
    ibv_context* context = nic.open_device(list[0]);
    nic.free_device_list(list);
    ibv_pd* pd = nic.alloc_pd(context);
    ibv_cq* cq = nic.create_cq(context, 8, nullptr, nullptr, 0);
    ibv_qp_init_attr attributes{};
    attributes.send_cq = attributes.recv_cq = cq;
    attributes.cap.max_send_wr = 1;
    attributes.cap.max_send_sge = 1;
    attributes.qp_type = IBV_QPT_RC;
    EXPECT_NE(nic.create_qp(pd, &attributes), nullptr);
    EXPECT_EQ(nic.objects(), 4U);
  }
  EXPECT_EQ(testing::open_descriptors(), descriptors);
}

}  // namespace
}  // namespace dtr::software_nic
