// libdtr starts and ends MPI itself.
#include <array>
#include <chrono>
#include <cstdlib>
#include <string>
#include <thread>

#include <gtest/gtest.h>
#include <mpi.h>
#include <sys/wait.h>
#include <unistd.h>

#include "dtr/bootstrap/bootstrap.hpp"
#include "dtr/bootstrap/host.hpp"
#include "dtr/bootstrap/launcher.hpp"
#include "support/mpi_test.hpp"
#include "support/test_support.hpp"

namespace dtr {
namespace {

using namespace std::chrono_literals;
using testing::scaled;

std::span<const std::byte> bytes_of(const std::string& text) { return std::as_bytes(std::span(text)); }

std::string text_of(const std::vector<std::byte>& blob) {
  return {reinterpret_cast<const char*>(blob.data()), blob.size()};
}

bool mpi_ended() {
  int ended = 0;
  MPI_Finalized(&ended);
  return ended != 0;
}

// One Bootstrap for all cases: MPI can start only once in a process.
class WorldBootstrapTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    auto made = world_bootstrap();
    ASSERT_TRUE(made) << made.error().to_string();
    world = std::move(*made);
  }
  static void TearDownTestSuite() { world.reset(); }

  void SetUp() override { ASSERT_NE(world, nullptr); }

  static std::unique_ptr<Bootstrap> world;
};
std::unique_ptr<Bootstrap> WorldBootstrapTest::world;

TEST_F(WorldBootstrapTest, RankAndSizeAgreeWithTheLauncher) {
  const LaunchHint hint = launch_hint();
  const char* nodes = std::getenv("SLURM_NNODES");
  EXPECT_EQ(hint.launcher, nodes != nullptr ? "srun" : "mpirun");
  EXPECT_EQ(world->rank(), hint.rank);
  EXPECT_EQ(world->size(), hint.size);
}

TEST_F(WorldBootstrapTest, ExchangeCarriesBlobsOfAnySizeIncludingNone) {
  for (const std::size_t unit : {0U, 1U, 1000U, 100000U}) {
    const auto rank = static_cast<std::size_t>(world->rank());
    const std::string mine(rank * unit, static_cast<char>('a' + rank));
    const auto all = world->exchange(bytes_of(mine), scaled(30s));
    ASSERT_TRUE(all) << all.error().to_string();
    for (std::size_t r = 0; r < all->size(); ++r) {
      EXPECT_EQ(text_of((*all)[r]), std::string(r * unit, static_cast<char>('a' + r)));
    }
  }
}

TEST_F(WorldBootstrapTest, MoreThanTwoGibibytesTogetherIsAnErrorOnEveryRankAndHarmsNothing) {
  const std::byte some{};
  const std::size_t size = world->rank() == 0 ? std::size_t{1} << 31U : 1;  // refused before anything is read
  const auto refused = world->exchange({&some, size}, scaled(30s));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Errc::resource_exhausted);
  EXPECT_TRUE(world->exchange(bytes_of("after"), scaled(30s)));
}

TEST_F(WorldBootstrapTest, LocalRanksFollowFromTheHostIdsAndTheirOverrides) {
  const auto real = world->exchange(bytes_of(host_id()), scaled(30s));
  const auto pretended = world->exchange(bytes_of(host_id(world->rank() % 2 == 0 ? "even" : "odd")), scaled(30s));
  ASSERT_TRUE(real && pretended);
  std::vector<std::string> real_ids, pretended_ids;
  for (const auto& blob : *real) real_ids.push_back(text_of(blob));
  for (const auto& blob : *pretended) pretended_ids.push_back(text_of(blob));
  EXPECT_EQ(place_on_host(real_ids, world->rank()).local_rank, launch_hint().local_rank);
  const char* nodes = std::getenv("SLURM_NNODES");
  const int hosts = nodes != nullptr ? std::atoi(nodes) : 1;
  EXPECT_EQ(place_on_host(real_ids, world->rank()).hosts, hosts);
  EXPECT_EQ(place_on_host(real_ids, world->rank()).local_size, world->size() / hosts);
  EXPECT_EQ(place_on_host(pretended_ids, world->rank()).local_rank, world->rank() / 2);
}

TEST_F(WorldBootstrapTest, NobodyLeavesABarrierBeforeEverybodyCame) {
  const int slow = world->size() - 1;
  if (world->rank() == slow) {
    std::this_thread::sleep_for(100ms);
    testing::put_sign("slow-came");
  }
  ASSERT_TRUE(world->barrier(scaled(30s)));
  EXPECT_TRUE(testing::wait_for_sign("slow-came", 0s));
}

TEST_F(WorldBootstrapTest, TheBarrierAfterOneThatTimedOutMeetsTheSameBarrierOfTheOthers) {
  ASSERT_TRUE(world->barrier(scaled(30s)));
  if (world->rank() == 0) {
    const auto late = world->barrier(20ms);
    ASSERT_FALSE(late);
    EXPECT_EQ(late.error().to_string(), "barrier: timed_out: not every rank came");
    testing::put_sign("gave-up");
  } else {
    ASSERT_TRUE(testing::wait_for_sign("gave-up", scaled(30s)));
    // Rank 0 progresses what it gave up inside its next call, which is why this one ends.
    ASSERT_TRUE(world->barrier(scaled(30s)));
    std::this_thread::sleep_for(50ms);
    testing::put_sign("second." + std::to_string(world->rank()));
  }
  ASSERT_TRUE(world->barrier(scaled(30s)));
  for (int r = 1; r < world->size(); ++r) {
    EXPECT_TRUE(testing::wait_for_sign("second." + std::to_string(r), 0s)) << "left before rank " << r << " came";
  }
}

TEST_F(WorldBootstrapTest, AnErrorOfPollEndsTheBarrierAndTheNextOneStillMatches) {
  if (world->rank() == 0) {
    const auto ended = world->barrier(
        scaled(30s), []() -> Result<void> { return fail(Errc::peer_failed, "the process ended", "barrier", 1); });
    ASSERT_FALSE(ended);
    EXPECT_EQ(ended.error().to_string(), "barrier to rank 1: peer_failed: the process ended");
    testing::put_sign("poll-ended");
  } else {
    ASSERT_TRUE(testing::wait_for_sign("poll-ended", scaled(30s)));
    ASSERT_TRUE(world->barrier(scaled(30s)));
  }
  ASSERT_TRUE(world->barrier(scaled(30s)));
}

TEST_F(WorldBootstrapTest, SplitMakesACommunicatorForEachColour) {
  const int color = world->rank() == world->size() - 1 ? -1 : world->rank() % 2;
  auto part = world->split(color, scaled(30s));
  ASSERT_TRUE(part) << part.error().to_string();
  if (color < 0) {
    EXPECT_EQ(*part, nullptr);
    return;
  }
  EXPECT_EQ((*part)->rank(), world->rank() / 2);
  EXPECT_TRUE((*part)->barrier(scaled(30s)));
  EXPECT_TRUE((*part)->finalize(true));
  EXPECT_FALSE(mpi_ended()) << "the world still uses MPI";
}

TEST_F(WorldBootstrapTest, BarriersWorkFromAnyThread) {
  Result<void> result;
  std::thread([&] { result = world->barrier(scaled(30s)); }).join();
  EXPECT_TRUE(result) << result.error().to_string();
}

TEST_F(WorldBootstrapTest, CallsInAChildOfForkAreForkedAndItsDestructorDoesNothing) {
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const auto r = world->barrier(1s);
    world.reset();
    ::_exit(!r && r.error().code == Errc::forked ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_TRUE(world->barrier(scaled(30s)));
}

TEST_F(WorldBootstrapTest, OnlyTheLastOfSeveralBootstrapsEndsMpiAndItCannotStartAgain) {
  auto second = world_bootstrap(scaled(30s));
  ASSERT_TRUE(second) << second.error().to_string();
  ASSERT_TRUE(world->finalize(true));
  EXPECT_FALSE(mpi_ended());
  EXPECT_TRUE((*second)->barrier(scaled(30s)));
  EXPECT_EQ(world->barrier(1s).error().code, Errc::closed);
  ASSERT_TRUE((*second)->finalize(true));
  EXPECT_TRUE(mpi_ended());
  EXPECT_EQ(world_bootstrap().error().to_string(), "bootstrap: unsupported: MPI has ended in this process");
}

}  // namespace
}  // namespace dtr
