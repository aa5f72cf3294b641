// A worker or the server is stopped by SIGSTOP in the middle of rounds: the others' rounds end at their deadlines and
// name it; after SIGCONT nothing is corrupt, and what was taken back is not written.
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <string>
#include <thread>

#include <unistd.h>

#include "pushpull/job.hpp"
#include "support/mpi_test.hpp"

namespace dtr {
namespace {

using namespace testing;
using ::testing::HasSubstr;

constexpr std::size_t kCount = 2'000'000;

/// Stopped from outside until somebody puts up the sign; a child does it, for who is stopped cannot wake himself.
void stop_until(const std::string& sign) {
  const pid_t me = ::getpid();
  put_sign("stopping", std::to_string(me));
  const pid_t waker = ::fork();
  if (waker == 0) {
    ::kill(me, SIGSTOP);
    const bool seen = wait_for_sign(sign, scaled(60s));
    ::kill(me, SIGCONT);
    ::_exit(seen ? 0 : 1);
  }
  std::this_thread::sleep_for(200ms);  // the stop comes in here
}

Result<RoundHandle> start(Worker& worker, const std::vector<float>& gradient, std::vector<float>& sum,
                          std::chrono::milliseconds bound) {
  return worker.push_pull({{.key = 1, .push = gradient, .pull = sum}}, bound);
}

TEST(StoppedRankTest, RoundsEndAtTheirDeadlineNamingItAndNothingIsCorruptAfterwards) {
  auto made = Runtime::init({.servers = 1});
  ASSERT_TRUE(made) << made.error().to_string();
  Runtime& rt = **made;
  const char* text = std::getenv("DTR_TEST_VICTIM");
  const int victim = std::stoi(text == nullptr ? "1" : text);
  const bool server_stops = victim >= rt.workers();
  if (rt.is_server()) {
    Reducer reducer(rt);
    if (rt.rank() == victim) {
      ASSERT_TRUE(reducer.start());
      ASSERT_TRUE(wait_for_sign("ten rounds", scaled(30s)));
      stop_until("all have timed out");
      const auto ended = reducer.join(scaled(60s));
      EXPECT_TRUE(ended) << ended.error().to_string();
      return;
    }
    const auto ended = reducer.serve(scaled(60s));
    EXPECT_TRUE(ended) << ended.error().to_string();
    return;
  }
  const auto gradient = numbers(kCount, rt.worker_index());
  std::vector<float> sum(kCount);
  const auto right = sum_of_numbers(kCount, rt.workers());
  Worker worker(rt);
  for (int i = 0; i < 10; ++i) {
    auto round = start(worker, gradient, sum, scaled(30s));
    DTR_ASSERT_OK(round);
    DTR_ASSERT_OK(worker.wait(*round, scaled(30s)));
    ASSERT_TRUE(same_bits(sum, right));
  }
  bool taken_back = false;
  put_sign("ten rounds");
  if (rt.rank() == victim) {
    stop_until("all have timed out");
  } else {
    ASSERT_TRUE(wait_for_sign("stopping", scaled(30s)));
    std::this_thread::sleep_for(scaled(300ms));
    // Until one ends ill: the first ones may still meet somebody who is not quite stopped.
    const Deadline patience(scaled(20s));
    Result<void> ended;
    Result<RoundHandle> round;
    std::chrono::steady_clock::time_point started;
    while (ended && !patience.passed()) {
      started = std::chrono::steady_clock::now();
      round = start(worker, gradient, sum, 1500ms);
      ended = round ? worker.wait(*round, scaled(60s)) : Result<void>(fail(round.error()));
    }
    ASSERT_FALSE(ended);
    EXPECT_LT(std::chrono::steady_clock::now() - started, scaled(10s)) << "at its deadline";
    EXPECT_EQ(ended.error().code, Errc::timed_out) << ended.error().to_string();
    EXPECT_THAT(ended.error().message, HasSubstr("rank"));
    if (server_stops || ended.error().peer != rt.workers()) {
      EXPECT_EQ(ended.error().peer, victim) << ended.error().to_string();
    }
    // What comes back by force is not written again.
    DTR_ASSERT_OK(round);
    const auto quiet = worker.quiesce(*round, scaled(5s), true);
    taken_back = quiet.has_value();
    if (taken_back) {
      std::fill(sum.begin(), sum.end(), 7.0F);
    } else {  // it was stopped inside of a copy into our memory, which no power can take away then
      EXPECT_EQ(quiet.error().code, Errc::busy) << quiet.error().to_string();
    }
    put_sign("worker " + std::to_string(rt.rank()) + " has timed out");
  }
  if (rt.rank() == 0) {
    for (int rank = 0; rank < rt.workers(); ++rank) {
      if (rank != victim) {
        ASSERT_TRUE(wait_for_sign("worker " + std::to_string(rank) + " has timed out", scaled(30s)));
      }
    }
    put_sign("all have timed out");
  }
  ASSERT_TRUE(wait_for_sign("all have timed out", scaled(30s)));
  if (taken_back) {
    std::this_thread::sleep_for(scaled(500ms));
    EXPECT_EQ(sum, std::vector<float>(kCount, 7.0F)) << "written after it was taken back";
  }
}

}  // namespace
}  // namespace dtr
