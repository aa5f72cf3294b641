// What wrong requests end with, here and at the peer.
#include "software_nic/ends.hpp"

namespace dtr::software_nic {
namespace {

/// The request fails with `status`, what was posted after it is flushed.
void expect_failure(Pair& pair, End::Request request, ibv_wc_status status) {
  request.id = 1;
  pair.nic_a->freeze();  // so that all are posted before the first is executed
  ASSERT_EQ(pair.a->post(*pair.b, request), 0);
  ASSERT_EQ(pair.a->post(*pair.b, {.id = 2, .to = 512, .length = 8, .flags = 0}), 0);
  ASSERT_EQ(pair.a->post(*pair.b, {.id = 3, .to = 512, .length = 8}), 0);
  pair.nic_a->thaw();
  const ibv_wc failed = pair.a->completion();
  EXPECT_EQ(failed.status, status) << fabric::verbs::to_words(failed.status);
  EXPECT_EQ(failed.wr_id, 1U);
  EXPECT_EQ(failed.qp_num, pair.a->qp->qp_num);
  for (const std::uint64_t id : {2U, 3U}) {
    const ibv_wc flushed = pair.a->completion();
    EXPECT_EQ(flushed.status, IBV_WC_WR_FLUSH_ERR);
    EXPECT_EQ(flushed.wr_id, id);
  }
  EXPECT_EQ(pair.b->word(512), 0U);
}

bool in_error(End& end) {
  ibv_qp_attr attributes{};
  ibv_qp_init_attr initial{};
  EXPECT_EQ(end.api.query_qp(end.qp, &attributes, IBV_QP_STATE, &initial), 0);
  return attributes.qp_state == IBV_QPS_ERR;
}

TEST(ErrorsTest, AWrongLocalKeyIsALocalProtectionError) {
  Pair pair;
  expect_failure(pair, {.length = 8, .lkey = pair.a->mr->lkey + 1}, IBV_WC_LOC_PROT_ERR);
  EXPECT_TRUE(in_error(*pair.a));
  EXPECT_FALSE(in_error(*pair.b));  // the peer has seen nothing
}

TEST(ErrorsTest, ARemoteKeyIsNoLocalKey) {
  Pair pair;
  expect_failure(pair, {.length = 8, .lkey = pair.a->mr->rkey}, IBV_WC_LOC_PROT_ERR);
}

TEST(ErrorsTest, LocalBoundsAreChecked) {
  Pair pair;
  expect_failure(pair, {.from = kMemory - 7, .length = 8}, IBV_WC_LOC_PROT_ERR);
}

TEST(ErrorsTest, AReadIntoReadOnlyMemoryIsALocalProtectionError) {
  Pair pair;
  ibv_mr* read_only = pair.a->api.reg_mr(pair.a->pd, pair.a->memory.data(), 4096, 0);
  ASSERT_NE(read_only, nullptr);
  expect_failure(pair, {.opcode = IBV_WR_RDMA_READ, .length = 8, .lkey = read_only->lkey}, IBV_WC_LOC_PROT_ERR);
  EXPECT_EQ(pair.a->api.dereg_mr(read_only), 0);
}

TEST(ErrorsTest, AWrongRemoteKeyEndsBothQueuePairs) {
  Pair pair;
  expect_failure(pair, {.length = 8, .rkey = pair.b->mr->lkey}, IBV_WC_REM_ACCESS_ERR);
  EXPECT_TRUE(in_error(*pair.b));
  EXPECT_EQ(pair.b->event(), IBV_EVENT_QP_ACCESS_ERR);
  EXPECT_EQ(pair.b->event(), IBV_EVENT_QP_LAST_WQE_REACHED);
}

TEST(ErrorsTest, RemoteBoundsAreChecked) {
  Pair pair;
  expect_failure(pair, {.to = kMemory - 7, .length = 8}, IBV_WC_REM_ACCESS_ERR);
}

TEST(ErrorsTest, ADeregisteredRegionCannotBeReached) {
  Pair pair;
  const std::uint32_t rkey = pair.b->mr->rkey;
  ASSERT_EQ(pair.b->api.dereg_mr(pair.b->mr), 0);
  pair.b->mr = nullptr;
  expect_failure(pair, {.length = 8, .rkey = rkey}, IBV_WC_REM_ACCESS_ERR);
}

TEST(ErrorsTest, ARegionOfAnotherProtectionDomainCannotBeReached) {
  Pair pair;
  ibv_pd* other = pair.b->api.alloc_pd(pair.b->context);
  ibv_mr* region = pair.b->api.reg_mr(other, pair.b->memory.data(), 4096, kAllAccess);
  ASSERT_NE(region, nullptr);
  expect_failure(pair, {.length = 8, .rkey = region->rkey}, IBV_WC_REM_ACCESS_ERR);
  EXPECT_EQ(pair.b->api.dereg_mr(region), 0);
  EXPECT_EQ(pair.b->api.dealloc_pd(other), 0);
}

TEST(ErrorsTest, EachRemoteRightIsNeeded) {
  constexpr unsigned kRead = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_READ;
  constexpr unsigned kWrite = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE;
  const auto refused = [](ibv_wr_opcode opcode, unsigned memory_access) {
    Pair pair;
    ibv_mr* region = pair.b->api.reg_mr(pair.b->pd, pair.b->memory.data(), 4096, memory_access);
    ASSERT_NE(region, nullptr);
    expect_failure(pair, {.opcode = opcode, .length = 8, .rkey = region->rkey}, IBV_WC_REM_ACCESS_ERR);
    EXPECT_EQ(pair.b->api.dereg_mr(region), 0);
  };
  refused(IBV_WR_RDMA_WRITE, kRead);
  refused(IBV_WR_RDMA_WRITE_WITH_IMM, kRead);
  refused(IBV_WR_RDMA_READ, kWrite);
  refused(IBV_WR_ATOMIC_FETCH_AND_ADD, kRead | kWrite);
  refused(IBV_WR_ATOMIC_CMP_AND_SWP, kRead | kWrite);
}

TEST(ErrorsTest, WhatTheQueuePairDoesNotAllowIsAnInvalidRequest) {
  for (const ibv_wr_opcode opcode : {IBV_WR_RDMA_WRITE, IBV_WR_RDMA_READ, IBV_WR_ATOMIC_FETCH_AND_ADD}) {
    Pair pair({.access = IBV_ACCESS_LOCAL_WRITE});
    expect_failure(pair, {.opcode = opcode, .length = 8}, IBV_WC_REM_INV_REQ_ERR);
    EXPECT_EQ(pair.b->event(), IBV_EVENT_QP_REQ_ERR);
    EXPECT_TRUE(in_error(*pair.b));
  }
}

TEST(ErrorsTest, AtomicsNeedAlignedEightBytes) {
  {
    Pair pair;
    expect_failure(pair, {.opcode = IBV_WR_ATOMIC_FETCH_AND_ADD, .to = 4, .length = 8}, IBV_WC_REM_INV_REQ_ERR);
  }
  Pair pair;
  expect_failure(pair, {.opcode = IBV_WR_ATOMIC_FETCH_AND_ADD, .length = 4}, IBV_WC_LOC_LEN_ERR);
}

TEST(ErrorsTest, ADeviceWithoutAtomicsRefusesThem) {
  Pair pair({}, {.atomic_cap = IBV_ATOMIC_NONE});
  expect_failure(pair, {.opcode = IBV_WR_ATOMIC_FETCH_AND_ADD, .length = 8}, IBV_WC_REM_INV_REQ_ERR);
}

TEST(ErrorsTest, AMessageBeyondThePortsMaximumIsALocalLengthError) {
  Pair pair({}, {.ports = {{.max_message = 4096}}});
  ASSERT_EQ(pair.a->post(*pair.b, {.length = 4096}), 0);
  EXPECT_EQ(pair.a->completion().status, IBV_WC_SUCCESS);
  expect_failure(pair, {.length = 4097}, IBV_WC_LOC_LEN_ERR);
}

TEST(ErrorsTest, AShortReceiveEndsBothSides) {
  Pair pair;
  pair.b->receive(9, 4096, 16);
  expect_failure(pair, {.opcode = IBV_WR_SEND, .length = 17}, IBV_WC_REM_INV_REQ_ERR);
  const ibv_wc receive = pair.b->completion();
  EXPECT_EQ(receive.status, IBV_WC_LOC_LEN_ERR);
  EXPECT_EQ(receive.wr_id, 9U);
  EXPECT_TRUE(in_error(*pair.b));
}

TEST(ErrorsTest, AReceiveInDeregisteredMemoryEndsBothSides) {
  Pair pair;
  pair.b->receive(9, 4096);
  ASSERT_EQ(pair.b->api.dereg_mr(pair.b->mr), 0);
  pair.b->mr = nullptr;
  expect_failure(pair, {.opcode = IBV_WR_SEND, .length = 8}, IBV_WC_REM_OP_ERR);
  EXPECT_EQ(pair.b->completion().status, IBV_WC_LOC_PROT_ERR);
}

TEST(ErrorsTest, ZeroBytesNeedNoKey) {
  Pair pair;
  ASSERT_EQ(pair.a->post(*pair.b, {.length = 0, .lkey = 0, .rkey = 0}), 0);
  EXPECT_EQ(pair.a->completion().status, IBV_WC_SUCCESS);
}

TEST(ErrorsTest, TheRequestsOfTheSideThatWasAskedWronglyAreFlushed) {
  Pair pair({.timeout = 22});
  pair.network->set_wire("b/soft0", "a/soft0", {.delay = std::chrono::hours(1)});
  for (std::uint64_t i = 0; i < 5; ++i) ASSERT_EQ(pair.b->post(*pair.a, {.id = i, .length = 8, .flags = 0}), 0);
  pair.network->heal();
  ASSERT_EQ(pair.a->post(*pair.b, {.length = 8, .rkey = 1}), 0);
  EXPECT_EQ(pair.a->completion().status, IBV_WC_REM_ACCESS_ERR);
  for (std::uint64_t i = 0; i < 5; ++i) {
    const ibv_wc flushed = pair.b->completion();
    EXPECT_EQ(flushed.status, IBV_WC_WR_FLUSH_ERR);
    EXPECT_EQ(flushed.wr_id, i);
  }
}

TEST(ErrorsTest, WrongPostsAreRefusedAndThoseBeforeThemRun) {
  Pair pair;
  ibv_sge piece{
      .addr = reinterpret_cast<std::uintptr_t>(pair.a->memory.data()), .length = 65, .lkey = pair.a->mr->lkey};
  ibv_send_wr good{};
  good.wr_id = 1;
  good.sg_list = &piece;
  good.num_sge = 1;
  good.send_flags = IBV_SEND_SIGNALED;
  good.wr.rdma.remote_addr = reinterpret_cast<std::uintptr_t>(pair.b->memory.data());
  good.wr.rdma.rkey = pair.b->mr->rkey;
  ibv_send_wr wrong = good;
  good.next = &wrong;
  const auto refused = [&](int error) {
    ibv_send_wr* bad = nullptr;
    EXPECT_EQ(pair.a->api.post_send(pair.a->qp, &good, &bad), error);
    EXPECT_EQ(bad, &wrong);
    EXPECT_EQ(pair.a->completion().wr_id, 1U);
    wrong = good;
    wrong.next = nullptr;
  };
  wrong.send_flags |= IBV_SEND_INLINE;  // 65 bytes are too many
  refused(EINVAL);
  wrong.num_sge = 5;
  refused(EINVAL);
  wrong.opcode = IBV_WR_TSO;
  refused(EINVAL);
  wrong.opcode = IBV_WR_RDMA_READ;
  wrong.send_flags |= IBV_SEND_INLINE;
  refused(EINVAL);
}

TEST(ErrorsTest, ReadsNeedBothSidesToAllowThem) {
  Pair pair({.reads = 0});
  expect_failure(pair, {.opcode = IBV_WR_RDMA_READ, .length = 8}, IBV_WC_LOC_QP_OP_ERR);
}

}  // namespace
}  // namespace dtr::software_nic
