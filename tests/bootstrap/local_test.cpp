#include "dtr/bootstrap/local.hpp"

#include <atomic>
#include <cstring>
#include <string>
#include <thread>

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include "support/test_support.hpp"

namespace dtr {
namespace {

using namespace std::chrono_literals;

std::span<const std::byte> bytes_of(const std::string& text) { return std::as_bytes(std::span(text)); }

std::string text_of(const std::vector<std::byte>& blob) {
  return {reinterpret_cast<const char*>(blob.data()), blob.size()};
}

/// Runs `body(bootstrap)` on one thread a rank.
template <class Body>
void on_ranks(int size, Body body) {
  auto ranks = local_bootstraps(size);
  std::vector<std::thread> threads;
  for (auto& rank : ranks) threads.emplace_back([&body, &rank] { body(*rank); });
  for (auto& thread : threads) thread.join();
}

TEST(LocalBootstrapTest, ExchangeGivesEveryRankAllBlobsInRankOrder) {
  on_ranks(5, [](Bootstrap& b) {
    for (int round = 0; round < 20; ++round) {
      const std::string mine(static_cast<std::size_t>(b.rank() * round), static_cast<char>('a' + b.rank()));
      const auto all = b.exchange(bytes_of(mine));
      ASSERT_TRUE(all) << all.error().to_string();
      ASSERT_EQ(all->size(), 5U);
      for (int r = 0; r < 5; ++r) {
        EXPECT_EQ(text_of((*all)[static_cast<std::size_t>(r)]),
                  std::string(static_cast<std::size_t>(r * round), static_cast<char>('a' + r)));
      }
    }
  });
}

TEST(LocalBootstrapTest, NobodyLeavesABarrierBeforeEverybodyCame) {
  std::atomic<int> came{0};
  on_ranks(4, [&](Bootstrap& b) {
    for (int round = 1; round <= 50; ++round) {
      ++came;
      ASSERT_TRUE(b.barrier(testing::scaled(10s)));
      EXPECT_GE(came.load(), 4 * round);
    }
  });
}

TEST(LocalBootstrapTest, TheBarrierAfterOneThatTimedOutMeetsTheSameBarrierOfTheOthers) {
  auto ranks = local_bootstraps(2);
  const auto late = ranks[0]->barrier(20ms);
  ASSERT_FALSE(late);
  EXPECT_EQ(late.error().code, Errc::timed_out);
  std::atomic<int> step{0};
  std::thread other([&] {
    ASSERT_TRUE(ranks[1]->barrier(testing::scaled(10s)));  // meets the one that rank 0 gave up
    step = 1;
    std::this_thread::sleep_for(50ms);
    step = 2;
    ASSERT_TRUE(ranks[1]->barrier(testing::scaled(10s)));
  });
  EXPECT_TRUE(ranks[0]->barrier(testing::scaled(10s)));
  EXPECT_EQ(step.load(), 2);
  other.join();
}

TEST(LocalBootstrapTest, AnErrorOfPollEndsTheBarrier) {
  auto ranks = local_bootstraps(2);
  int looks = 0;
  const auto ended = ranks[0]->barrier(testing::scaled(10s), [&]() -> Result<void> {
    if (++looks < 3) return {};
    return fail(Errc::peer_failed, "the process ended", "barrier", 1);
  });
  ASSERT_FALSE(ended);
  EXPECT_EQ(ended.error().to_string(), "barrier to rank 1: peer_failed: the process ended");
  EXPECT_EQ(looks, 3);
}

TEST(LocalBootstrapTest, AnExchangeThatWasGivenUpClosesTheBootstrap) {
  auto ranks = local_bootstraps(2);
  const auto late = ranks[0]->exchange({}, 20ms);
  ASSERT_FALSE(late);
  EXPECT_EQ(late.error().code, Errc::timed_out);
  EXPECT_EQ(ranks[0]->barrier(20ms).error().code, Errc::closed);
  EXPECT_EQ(ranks[0]->exchange({}).error().code, Errc::closed);
}

TEST(LocalBootstrapTest, SplitGroupsRanksByColourInOrderAndLeavesNegativeColoursOut) {
  on_ranks(6, [](Bootstrap& b) {
    const int color = b.rank() == 5 ? -1 : b.rank() % 2;
    auto part = b.split(color);
    ASSERT_TRUE(part) << part.error().to_string();
    if (color < 0) {
      EXPECT_EQ(*part, nullptr);
      return;
    }
    EXPECT_EQ((*part)->size(), color == 0 ? 3 : 2);
    EXPECT_EQ((*part)->rank(), b.rank() / 2);
    const auto all = (*part)->exchange(bytes_of(std::to_string(b.rank())));
    ASSERT_TRUE(all);
    EXPECT_EQ(text_of((*all)[1]), std::to_string(2 + color));
    EXPECT_TRUE((*part)->barrier(testing::scaled(10s)));
  });
}

TEST(LocalBootstrapTest, CallsAfterFinalizeAreClosed) {
  auto alone = local_bootstraps(1);
  EXPECT_TRUE(alone[0]->barrier(1s));
  EXPECT_TRUE(alone[0]->finalize(true));
  EXPECT_TRUE(alone[0]->finalize(true));
  EXPECT_EQ(alone[0]->barrier(1s).error().code, Errc::closed);
}

TEST(LocalBootstrapTest, CallsInAChildOfForkAreForked) {
  auto alone = local_bootstraps(1);
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const auto r = alone[0]->barrier(1s);
    ::_exit(!r && r.error().code == Errc::forked ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

}  // namespace
}  // namespace dtr
