// A worker or the server dies by SIGKILL in the middle of rounds: everybody else ends soon, with its name. Run with
// `-d` naming the victim; the last rank serves.
#include <chrono>
#include <string>

#include "pushpull/job.hpp"
#include "support/mpi_test.hpp"

namespace dtr {
namespace {

using namespace testing;

TEST(DeadRankTest, SurvivorsGetAnErrorThatNamesTheDeadWithinFiveSeconds) {
  auto made = Runtime::init({.servers = 1});
  ASSERT_TRUE(made) << made.error().to_string();
  Runtime& rt = **made;
  const char* const named = std::getenv("DTR_TEST_VICTIM");
  const int victim = named == nullptr ? 1 : std::stoi(named);
  if (rt.is_server()) {
    Reducer reducer(rt);
    if (rt.rank() == victim) {
      ASSERT_TRUE(reducer.start());
      ASSERT_TRUE(wait_for_sign("ten rounds", scaled(30s)));
      die_now();
    }
    const auto ended = reducer.serve(scaled(60s));
    ASSERT_FALSE(ended);
    EXPECT_EQ(ended.error().code, Errc::peer_failed) << ended.error().to_string();
    EXPECT_EQ(ended.error().peer, victim) << ended.error().to_string();
    return;
  }
  const auto gradient = numbers(200000, rt.worker_index());
  std::vector<float> sum(gradient.size());
  Worker worker(rt);
  Result<void> ended;
  std::chrono::steady_clock::time_point started;
  for (int i = 0; ended; ++i) {
    if (rt.rank() == victim && i == 10) die_now();
    started = std::chrono::steady_clock::now();
    auto round = worker.push_pull({{.key = 1, .push = gradient, .pull = sum}});
    ended = round ? worker.wait(*round, scaled(30s)) : Result<void>(fail(round.error()));
    if (ended) {
      EXPECT_TRUE(same_bits(sum, sum_of_numbers(gradient.size(), rt.workers())));
    }
    if (victim >= rt.workers() && i == 10) put_sign("ten rounds");
    ASSERT_LT(i, 1000000);
  }
  EXPECT_LT(std::chrono::steady_clock::now() - started, scaled(5s));
  EXPECT_EQ(ended.error().code, Errc::peer_failed) << ended.error().to_string();
  EXPECT_EQ(ended.error().peer, victim) << ended.error().to_string();
}

}  // namespace
}  // namespace dtr
