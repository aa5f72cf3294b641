// A rank dies by SIGKILL while the others wait in a barrier. Run with `-d` naming the last rank.
#include <chrono>
#include <fstream>
#include <string>

#include <gtest/gtest.h>
#include <mpi.h>
#include <unistd.h>

#include "dtr/bootstrap/bootstrap.hpp"
#include "dtr/bootstrap/host.hpp"
#include "support/mpi_test.hpp"
#include "support/test_support.hpp"

namespace dtr {
namespace {

using namespace std::chrono_literals;
using testing::scaled;

bool alive(const std::string& process) {
  std::ifstream stat("/proc/" + process + "/stat");
  std::string line;
  if (!std::getline(stat, line)) return false;
  const char state = line[line.rfind(')') + 2];
  return state != 'Z' && state != 'X';
}

TEST(DeadRankTest, SurvivorsLeaveTheBarrierAndFinalizeWithoutHangingOrEndingMpi) {
  auto made = world_bootstrap();
  ASSERT_TRUE(made) << made.error().to_string();
  Bootstrap& world = **made;
  const int victim = world.size() - 1;
  const std::string mine = host_id() + " " + std::to_string(::getpid());
  const auto all = world.exchange(std::as_bytes(std::span(mine)), scaled(30s));
  ASSERT_TRUE(all);
  if (world.rank() == victim) testing::die_now();

  // Process numbers mean something on the victim's host only; a rank there tells the others.
  const auto& blob = (*all)[static_cast<std::size_t>(victim)];
  const std::string theirs(reinterpret_cast<const char*>(blob.data()), blob.size());
  const bool same_host = theirs.starts_with(host_id() + " ");
  const std::string process = theirs.substr(theirs.rfind(' ') + 1);
  const auto started = std::chrono::steady_clock::now();
  const auto ended = world.barrier(scaled(60s), [&]() -> Result<void> {
    if (same_host && !alive(process)) testing::put_sign("dead");
    if (!testing::wait_for_sign("dead", 0s)) return {};
    return fail(Errc::peer_failed, "the process ended", "barrier", victim);
  });
  EXPECT_LT(std::chrono::steady_clock::now() - started, scaled(5s));
  ASSERT_FALSE(ended);
  EXPECT_EQ(ended.error().code, Errc::peer_failed);
  EXPECT_EQ(ended.error().peer, victim);
  EXPECT_EQ(world.barrier(20ms).error().code, Errc::timed_out);
  EXPECT_TRUE(world.finalize(false));
  int mpi_ended = 1;
  MPI_Finalized(&mpi_ended);
  EXPECT_EQ(mpi_ended, 0) << "MPI_Finalize would wait for the dead rank";
}

TEST(DeadRankTest, ARankThatGaveUpKeepsMpiOpenAfterItsLastBootstrap) {
  EXPECT_FALSE(world_bootstrap(200ms)) << "nobody can be met any more";
}

}  // namespace
}  // namespace dtr
