// What each kind of request does when nothing goes wrong.
#include <arpa/inet.h>

#include "software_nic/ends.hpp"

namespace dtr::software_nic {
namespace {

using namespace std::chrono_literals;

TEST(TransfersTest, AWriteLandsAtThePeerAndCompletesHere) {
  Pair pair;
  fill(*pair.a, 0, 100000, 1);
  ASSERT_EQ(pair.a->post(*pair.b, {.id = 7, .from = 0, .to = 512, .length = 100000}), 0);
  const ibv_wc done = pair.a->completion();
  EXPECT_EQ(done.status, IBV_WC_SUCCESS);
  EXPECT_EQ(done.wr_id, 7U);
  EXPECT_EQ(done.opcode, IBV_WC_RDMA_WRITE);
  EXPECT_EQ(done.qp_num, pair.a->qp->qp_num);
  EXPECT_TRUE(filled(*pair.b, 512, 100000, 1));
  EXPECT_TRUE(pair.b->quiet());  // the target's CPU learns nothing
}

TEST(TransfersTest, OddAddressesAndLengthsArriveWhole) {
  Pair pair;
  for (std::uint32_t length : {1U, 7U, 8U, 9U, 63U, 4095U, 4097U}) {
    for (std::size_t shift = 0; shift < 9; ++shift) {
      fill(*pair.a, shift, length, length);
      pair.b->memory.assign(kMemory, std::byte{0});
      ASSERT_EQ(pair.a->post(*pair.b, {.from = shift, .to = 16 + 2 * shift, .length = length}), 0);
      ASSERT_EQ(pair.a->completion().status, IBV_WC_SUCCESS);
      EXPECT_TRUE(filled(*pair.b, 16 + 2 * shift, length, length));
      EXPECT_EQ(pair.b->memory[16 + 2 * shift - 1], std::byte{0});
      EXPECT_EQ(pair.b->memory[16 + 2 * shift + length], std::byte{0});
    }
  }
}

TEST(TransfersTest, AReadBringsThePeersBytes) {
  Pair pair;
  fill(*pair.b, 4096, 70000, 2);
  ASSERT_EQ(pair.a->post(*pair.b, {.opcode = IBV_WR_RDMA_READ, .id = 1, .from = 8, .to = 4096, .length = 70000}), 0);
  const ibv_wc done = pair.a->completion();
  EXPECT_EQ(done.status, IBV_WC_SUCCESS);
  EXPECT_EQ(done.opcode, IBV_WC_RDMA_READ);
  EXPECT_EQ(done.byte_len, 70000U);
  EXPECT_TRUE(filled(*pair.a, 8, 70000, 2));
}

TEST(TransfersTest, ASendFillsTheOldestReceive) {
  Pair pair;
  pair.b->receive(11, 1000);
  pair.b->receive(12, 2000);
  fill(*pair.a, 0, 200, 3);
  ASSERT_EQ(pair.a->post(*pair.b, {.opcode = IBV_WR_SEND, .id = 5, .length = 100}), 0);
  ASSERT_EQ(pair.a->post(*pair.b, {.opcode = IBV_WR_SEND_WITH_IMM, .id = 6, .length = 200, .immediate = 0xABCD}), 0);
  const ibv_wc first = pair.b->completion();
  EXPECT_EQ(first.wr_id, 11U);
  EXPECT_EQ(first.opcode, IBV_WC_RECV);
  EXPECT_EQ(first.byte_len, 100U);
  EXPECT_EQ(first.wc_flags & IBV_WC_WITH_IMM, 0U);
  EXPECT_EQ(first.qp_num, pair.b->qp->qp_num);
  const ibv_wc second = pair.b->completion();
  EXPECT_EQ(second.wr_id, 12U);
  EXPECT_EQ(second.byte_len, 200U);
  EXPECT_NE(second.wc_flags & IBV_WC_WITH_IMM, 0U);
  EXPECT_EQ(ntohl(second.imm_data), 0xABCDU);
  EXPECT_TRUE(filled(*pair.b, 1000, 100, 3));
  EXPECT_TRUE(filled(*pair.b, 2000, 200, 3));
  EXPECT_EQ(pair.a->completion().opcode, IBV_WC_SEND);
  EXPECT_EQ(pair.a->completion().wr_id, 6U);
}

TEST(TransfersTest, AWriteWithImmediateLandsBeforeItsReceiveCompletes) {
  Pair pair;
  pair.b->receive(1, 0);
  fill(*pair.a, 0, 50000, 4);
  ASSERT_EQ(pair.a->post(*pair.b, {.opcode = IBV_WR_RDMA_WRITE_WITH_IMM, .to = 8192, .length = 50000, .immediate = 77}),
            0);
  const ibv_wc done = pair.b->completion();
  EXPECT_EQ(done.opcode, IBV_WC_RECV_RDMA_WITH_IMM);
  EXPECT_EQ(done.byte_len, 50000U);
  EXPECT_EQ(ntohl(done.imm_data), 77U);
  EXPECT_TRUE(filled(*pair.b, 8192, 50000, 4));
}

TEST(TransfersTest, AtomicsReturnTheOldValue) {
  Pair pair;
  pair.b->word(64) = 40;
  ASSERT_EQ(pair.a->post(*pair.b,
                         {.opcode = IBV_WR_ATOMIC_FETCH_AND_ADD, .from = 0, .to = 64, .length = 8, .compare_add = 2}),
            0);
  EXPECT_EQ(pair.a->completion().opcode, IBV_WC_FETCH_ADD);
  EXPECT_EQ(pair.a->word(0), 40U);
  EXPECT_EQ(pair.b->word(64), 42U);
  const auto swap = [&](std::uint64_t compare, std::uint64_t value) {
    EXPECT_EQ(pair.a->post(*pair.b, {.opcode = IBV_WR_ATOMIC_CMP_AND_SWP,
                                     .from = 8,
                                     .to = 64,
                                     .length = 8,
                                     .compare_add = compare,
                                     .swap = value}),
              0);
    EXPECT_EQ(pair.a->completion().opcode, IBV_WC_COMP_SWAP);
    return pair.a->word(8);
  };
  EXPECT_EQ(swap(41, 1), 42U);
  EXPECT_EQ(pair.b->word(64), 42U);
  EXPECT_EQ(swap(42, 99), 42U);
  EXPECT_EQ(pair.b->word(64), 99U);
}

TEST(TransfersTest, PiecesAreJoinedOnTheWayOutAndFilledOnTheWayIn) {
  Pair pair;
  fill(*pair.a, 0, 30, 5);
  std::vector<ibv_sge> pieces;
  for (std::size_t i = 0; i < 3; ++i) {
    pieces.push_back(
        {.addr = reinterpret_cast<std::uintptr_t>(&pair.a->memory[10 * i]), .length = 10, .lkey = pair.a->mr->lkey});
  }
  ibv_send_wr work{};
  work.sg_list = pieces.data();
  work.num_sge = 3;
  work.send_flags = IBV_SEND_SIGNALED;
  work.wr.rdma.remote_addr = reinterpret_cast<std::uintptr_t>(pair.b->memory.data());
  work.wr.rdma.rkey = pair.b->mr->rkey;
  ibv_send_wr* bad = nullptr;
  ASSERT_EQ(pair.a->api.post_send(pair.a->qp, &work, &bad), 0);
  ASSERT_EQ(pair.a->completion().status, IBV_WC_SUCCESS);
  EXPECT_TRUE(filled(*pair.b, 0, 30, 5));
  work.opcode = IBV_WR_RDMA_READ;
  pair.a->memory.assign(kMemory, std::byte{0});
  ASSERT_EQ(pair.a->api.post_send(pair.a->qp, &work, &bad), 0);
  ASSERT_EQ(pair.a->completion().status, IBV_WC_SUCCESS);
  EXPECT_TRUE(filled(*pair.a, 0, 30, 5));
}

TEST(TransfersTest, InlineBytesAreCopiedAtThePost) {
  Pair pair;
  pair.nic_a->freeze();
  fill(*pair.a, 0, 64, 6);
  ASSERT_EQ(pair.a->post(*pair.b, {.length = 64, .flags = IBV_SEND_INLINE | IBV_SEND_SIGNALED, .lkey = 0}), 0);
  pair.a->memory.assign(kMemory, std::byte{0});
  pair.nic_a->thaw();
  ASSERT_EQ(pair.a->completion().status, IBV_WC_SUCCESS);
  EXPECT_TRUE(filled(*pair.b, 0, 64, 6));
}

TEST(TransfersTest, RequestsOfOneQueuePairAreExecutedAndCompletedInOrder) {
  Pair pair;
  constexpr std::uint64_t kRequests = 500;
  std::uint64_t completed = 0;
  for (std::uint64_t i = 0; i < kRequests; ++i) {
    // All to the same word: only in order is the last one left. Every fourth is signalled.
    pair.a->word(8 * i) = i;
    const unsigned flags = i % 4 == 3 ? IBV_SEND_SIGNALED : 0;
    while (pair.a->post(*pair.b, {.id = i, .from = 8 * i, .to = 0, .length = 8, .flags = flags}) == ENOMEM) {
      EXPECT_EQ(pair.a->completion().wr_id, completed * 4 + 3);
      ++completed;
    }
  }
  for (; completed < kRequests / 4; ++completed) EXPECT_EQ(pair.a->completion().wr_id, completed * 4 + 3);
  EXPECT_EQ(pair.b->word(0), kRequests - 1);
}

TEST(TransfersTest, ChainsAreOneCall) {
  Pair pair;
  constexpr std::size_t kChain = 16;
  std::array<ibv_send_wr, kChain> chain{};
  std::array<ibv_sge, kChain> pieces{};
  for (std::size_t i = 0; i < kChain; ++i) {
    pair.a->word(8 * i) = i + 1;
    pieces[i] = {
        .addr = reinterpret_cast<std::uintptr_t>(&pair.a->memory[8 * i]), .length = 8, .lkey = pair.a->mr->lkey};
    chain[i].sg_list = &pieces[i];
    chain[i].num_sge = 1;
    chain[i].next = i + 1 < kChain ? &chain[i + 1] : nullptr;
    chain[i].wr.rdma.remote_addr = reinterpret_cast<std::uintptr_t>(&pair.b->memory[8 * i]);
    chain[i].wr.rdma.rkey = pair.b->mr->rkey;
  }
  chain.back().send_flags = IBV_SEND_SIGNALED;
  ibv_send_wr* bad = nullptr;
  const std::uint64_t before = pair.nic_a->calls(Call::post_send);
  ASSERT_EQ(pair.a->api.post_send(pair.a->qp, chain.data(), &bad), 0);
  ASSERT_EQ(pair.a->completion().status, IBV_WC_SUCCESS);
  for (std::size_t i = 0; i < kChain; ++i) EXPECT_EQ(pair.b->word(8 * i), i + 1);
  EXPECT_EQ(pair.nic_a->calls(Call::post_send) - before, 1U);
  EXPECT_EQ(pair.nic_a->posted_requests(), kChain);
}

TEST(TransfersTest, TwoQueuePairsOfOneDeviceCanBeConnected) {
  auto network = std::make_shared<Network>();
  SoftwareNic nic(network);
  End one(nic);
  End two(nic);
  connect(one, two);
  fill(one, 0, 64, 7);
  ASSERT_EQ(one.post(two, {.length = 64}), 0);
  EXPECT_EQ(one.completion().status, IBV_WC_SUCCESS);
  EXPECT_TRUE(filled(two, 0, 64, 7));
}

TEST(TransfersTest, BothDirectionsAtOnceUnderLoad) {
  Pair pair({}, {}, {.send_queue = 32});
  constexpr std::uint64_t kRequests = 2000;
  std::array<std::uint64_t, 2> done{};
  std::array<std::uint64_t, 2> posted{};
  std::array<End*, 2> ends{pair.a.get(), pair.b.get()};
  const auto bound = Clock::now() + testing::scaled(30s);
  while ((done[0] < kRequests || done[1] < kRequests) && Clock::now() < bound) {
    for (std::size_t i = 0; i < 2; ++i) {
      if (posted[i] < kRequests && ends[i]->post(*ends[1 - i], {.from = 0, .to = 65536, .length = 1024}) == 0)
        ++posted[i];
      std::array<ibv_wc, 8> completions{};
      const int got = ends[i]->api.poll_cq(ends[i]->cq, 8, completions.data());
      for (int k = 0; k < got; ++k) ASSERT_EQ(completions[static_cast<std::size_t>(k)].status, IBV_WC_SUCCESS);
      done[i] += static_cast<std::uint64_t>(got);
    }
  }
  EXPECT_EQ(done[0], kRequests);
  EXPECT_EQ(done[1], kRequests);
}

}  // namespace
}  // namespace dtr::software_nic
