// Registered memory: revocation, the order in which bytes land, memory given by descriptor.
#include <atomic>
#include <thread>

#include <sys/mman.h>
#include <unistd.h>

#include "software_nic/ends.hpp"

namespace dtr::software_nic {
namespace {

using namespace std::chrono_literals;

TEST(MemoryTest, DeregisteringWaitsForBytesUnderWay) {
  // Writes pour in while the target revokes: afterwards its memory is its own.
  Pair pair({}, {}, {.send_queue = 16});
  for (int round = 0; round < 10; ++round) {
    const std::uint32_t rkey = pair.b->mr->rkey;
    std::atomic<bool> started{false};
    std::thread writer([&] {
      ibv_wc done{};
      while (done.status == IBV_WC_SUCCESS) {
        static_cast<void>(pair.a->post(*pair.b, {.from = 0, .to = 0, .length = 65536, .rkey = rkey}));
        if (pair.a->api.poll_cq(pair.a->cq, 1, &done) > 0) started = true;
      }
      EXPECT_EQ(done.status, IBV_WC_REM_ACCESS_ERR);
    });
    while (!started) std::this_thread::yield();
    ASSERT_EQ(pair.b->api.dereg_mr(pair.b->mr), 0);
    fill(*pair.b, 0, 65536, 3);
    writer.join();
    EXPECT_TRUE(filled(*pair.b, 0, 65536, 3));
    pair.b->mr = pair.b->api.reg_mr(pair.b->pd, pair.b->memory.data(), kMemory, kAllAccess);
    for (End* end : {pair.a.get(), pair.b.get()}) ASSERT_EQ(end->to_state(IBV_QPS_RESET), 0);
    connect(*pair.a, *pair.b);
  }
}

TEST(MemoryTest, APolledWordIsWrittenInOnePiece) {
  Pair pair;
  std::atomic<bool> stop{false};
  std::atomic<std::uint64_t> torn{0};
  std::thread poller([&] {
    const std::atomic_ref<std::uint64_t> word(pair.b->word(4096));
    while (!stop.load()) {
      const std::uint64_t seen = word.load(std::memory_order_acquire);
      if (seen >> 32 != (seen & 0xFFFFFFFF)) ++torn;
      std::this_thread::yield();
    }
  });
  for (std::uint64_t i = 1; i <= 2000; ++i) {
    pair.a->word(0) = i << 32 | i;
    ASSERT_EQ(pair.a->post(*pair.b, {.from = 0, .to = 4096, .length = 8}), 0);
    ASSERT_EQ(pair.a->completion().status, IBV_WC_SUCCESS);
  }
  stop = true;
  poller.join();
  EXPECT_EQ(torn, 0U);
}

TEST(MemoryTest, TheLastWordOfAWriteArrivesLastUnlessOrderingIsRelaxed) {
  // A poller that sees the last word sees all before it, in memory that is registered for polling.
  Pair pair;
  constexpr std::uint32_t kBytes = 16384;
  const std::atomic_ref<std::uint64_t> last(pair.b->word(kBytes - 8));
  for (std::uint64_t i = 1; i <= 50; ++i) {
    fill(*pair.a, 0, kBytes - 8, static_cast<unsigned>(i));
    pair.a->word(kBytes - 8) = i;
    ASSERT_EQ(pair.a->post(*pair.b, {.length = kBytes}), 0);
    const auto bound = Clock::now() + testing::scaled(10s);
    while (last.load(std::memory_order_acquire) != i && Clock::now() < bound) std::this_thread::yield();
    EXPECT_TRUE(filled(*pair.b, 0, kBytes - 8, static_cast<unsigned>(i)));
    ASSERT_EQ(pair.a->completion().status, IBV_WC_SUCCESS);
  }
}

TEST(MemoryTest, RelaxedOrderingChangesTheOrderOnly) {
  Pair pair;
  ibv_mr* relaxed =
      pair.nic_b->reg_mr(pair.b->pd, pair.b->memory.data(), kMemory, kAllAccess | IBV_ACCESS_RELAXED_ORDERING);
  ASSERT_NE(relaxed, nullptr);
  fill(*pair.a, 0, 50001, 9);
  ASSERT_EQ(pair.a->post(*pair.b, {.to = 3, .length = 50001, .rkey = relaxed->rkey}), 0);
  ASSERT_EQ(pair.a->completion().status, IBV_WC_SUCCESS);
  EXPECT_TRUE(filled(*pair.b, 3, 50001, 9));
  EXPECT_EQ(pair.b->memory[2], std::byte{0});
  EXPECT_EQ(pair.b->memory[50004], std::byte{0});
  EXPECT_EQ(pair.nic_b->dereg_mr(relaxed), 0);
}

TEST(MemoryTest, MemoryCanBeGivenByDescriptor) {
  Pair pair;
  const int fd = ::memfd_create("soft-dmabuf", MFD_CLOEXEC);
  ASSERT_GE(fd, 0);
  ASSERT_EQ(::ftruncate(fd, 16384), 0);
  constexpr std::uint64_t kAddress = 0x700000000000;  // the GPU's; nothing is there on the CPU
  ibv_mr* mr = pair.nic_b->reg_dmabuf_mr(pair.b->pd, 512, 8192, kAddress, fd, kAllAccess);
  ASSERT_NE(mr, nullptr);
  fill(*pair.a, 0, 1000, 8);
  const auto base = reinterpret_cast<std::uintptr_t>(pair.b->memory.data());
  ASSERT_EQ(pair.a->post(*pair.b, {.to = kAddress + 100 - base, .length = 1000, .rkey = mr->rkey}), 0);
  EXPECT_EQ(pair.a->completion().status, IBV_WC_SUCCESS);
  ASSERT_EQ(::pread(fd, &pair.b->memory[0], 1000, 612), 1000);
  EXPECT_TRUE(filled(*pair.b, 0, 1000, 8));
  EXPECT_EQ(pair.nic_b->dereg_mr(mr), 0);
  EXPECT_EQ(pair.nic_b->reg_dmabuf_mr(pair.b->pd, 0, 8192, kAddress, -1, kAllAccess), nullptr);
  EXPECT_EQ(errno, EBADF);
  ::close(fd);
}

}  // namespace
}  // namespace dtr::software_nic
