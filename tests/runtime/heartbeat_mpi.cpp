// Processes that stand still: for a moment, all at once, and for too long.
#include <algorithm>
#include <array>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <mpi.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include "dtr/dtr.hpp"
#include "dtr/runtime/runtime.hpp"
#include "support/mpi_test.hpp"
#include "support/test_support.hpp"

namespace dtr::testing {
namespace {

using namespace std::chrono_literals;
using std::chrono::milliseconds;
using ::testing::HasSubstr;

/// MPI outlives the Runtimes of all cases.
class Mpi final : public ::testing::Environment {
 public:
  void SetUp() override {
    int provided = 0;
    MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &provided);
  }
  void TearDown() override { MPI_Finalize(); }
};
const auto* const mpi = ::testing::AddGlobalTestEnvironment(new Mpi);

/// Longer than a process may have to wait for a core: who is declared failed is to be silent and not only late.
milliseconds short_time_out() { return std::max<milliseconds>(3s, scaled(1s)); }

RuntimeOptions watched(milliseconds timeout, const std::string& transport, int servers = 0) {
  return {.servers = servers,
          .config = {.overrides = {{"transport.allow", transport},
                                   {"runtime.heartbeat_interval_ms", "100"},
                                   {"runtime.heartbeat_timeout_ms", std::to_string(timeout.count())},
                                   {"timeout.operation_ms", std::to_string(scaled(60s).count())}}}};
}

std::vector<pid_t> processes(Runtime& rt) {
  const pid_t mine = ::getpid();
  const auto all = value_or_throw(rt.allgather("processes", std::as_bytes(std::span(&mine, 1)), scaled(60s)));
  std::vector<pid_t> found(all.size());
  for (std::size_t rank = 0; rank < all.size(); ++rank) std::memcpy(&found[rank], all[rank].data(), sizeof(pid_t));
  return found;
}

/// From a process of its own, which does not stop with the others.
void stop_all(const std::vector<pid_t>& targets, milliseconds length) {
  std::string list;
  for (const pid_t target : targets) list += " " + std::to_string(target);
  const std::string seconds = std::to_string(static_cast<double>(length.count()) / 1000);
  std::string command = "kill -STOP" + list + "; sleep " + seconds + "; kill -CONT" + list;
  std::string shell = "sh";
  std::string flag = "-c";
  std::array<char*, 4> arguments{shell.data(), flag.data(), command.data(), nullptr};
  pid_t helper = 0;
  ASSERT_EQ(::posix_spawn(&helper, "/bin/sh", nullptr, nullptr, arguments.data(), environ), 0);
  int status = 0;
  while (::waitpid(helper, &status, 0) < 0 && errno == EINTR) {
  }
  EXPECT_EQ(status, 0);
}

class HeartbeatMpiTest : public ::testing::TestWithParam<std::string> {};

TEST_P(HeartbeatMpiTest, ARankThatWasStoppedForLessThanTheTimeOutGoesOn) {
  Runtime rt(watched(scaled(30s), GetParam()));
  const auto all = processes(rt);
  value_or_throw(rt.barrier({}, scaled(60s)));
  if (rt.rank() == 0) stop_all({all[1]}, 1500ms);
  value_or_throw(rt.barrier({}, scaled(60s)));
  EXPECT_TRUE(rt.check_peers()) << rt.check_peers().error().to_string();
  EXPECT_TRUE(rt.heartbeat());
  EXPECT_TRUE(rt.finalize(scaled(30s)));
}

TEST_P(HeartbeatMpiTest, WhereAllRanksStoodStillForLongerThanTheTimeOutNobodyIsBlamed) {
  const milliseconds timeout = short_time_out();
  Runtime rt(watched(timeout, GetParam()));
  const auto all = processes(rt);
  value_or_throw(rt.barrier({}, scaled(60s)));
  if (rt.rank() == 0) stop_all(all, 2 * timeout);
  value_or_throw(rt.barrier({}, scaled(60s)));
  std::this_thread::sleep_for(timeout);  // time enough to blame somebody
  EXPECT_TRUE(rt.check_peers()) << rt.check_peers().error().to_string();
  value_or_throw(rt.barrier({}, scaled(60s)));
  EXPECT_TRUE(rt.finalize(scaled(30s)));
}

/// Rank 1 of 4 is stopped; 0, 1 and 2 are workers, 3 sums.
TEST_P(HeartbeatMpiTest, ARankThatStaysStoppedIsDeclaredFailedAndShutOutWhenItWakes) {
  constexpr int kStopped = 1;
  const milliseconds timeout = short_time_out();
  const std::string run = GetParam();
  {
    Runtime rt(watched(timeout, GetParam(), 1));
    const auto all = processes(rt);
    std::vector<float> values(1000, 1.0F);
    std::optional<Worker> worker;
    std::optional<Reducer> reducer;
    if (rt.is_worker()) {
      worker.emplace(rt);
      const auto round = value_or_throw(worker->push_pull({{.key = 1, .push = values, .pull = values}}));
      value_or_throw(worker->wait(round, scaled(60s)));
      EXPECT_EQ(values[0], 3.0F);
    } else {
      reducer.emplace(rt);
      value_or_throw(reducer->start());
    }
    value_or_throw(rt.barrier({}, scaled(60s)));
    // Not inside the barrier, which would end with an Error when it wakes.
    if (rt.rank() == kStopped) put_sign("through" + run);
    if (rt.rank() == 0) {
      ASSERT_TRUE(wait_for_sign("through" + run, scaled(60s)));
      ASSERT_EQ(::kill(all[kStopped], SIGSTOP), 0);
    }
    if (rt.rank() == kStopped) {
      // Stopped somewhere in here, until the others have found it.
      ASSERT_TRUE(wait_for_sign("found" + run, scaled(120s)));
      const Deadline patience(scaled(60s));
      while (rt.check_peers() && !patience.passed()) std::this_thread::sleep_for(1ms);
      ASSERT_FALSE(rt.check_peers());
      EXPECT_THAT(rt.check_peers().error().to_string(), HasSubstr("fenced: the others have declared this rank failed"));
      const auto late = worker->push_pull({{.key = 1, .push = values, .pull = values}});
      const auto waited = late ? worker->wait(*late, scaled(60s)) : Result<void>(fail(late.error()));
      ASSERT_FALSE(waited);
      EXPECT_EQ(waited.error().code, Errc::fenced) << waited.error().to_string();
    } else {
      if (rt.rank() == 0) {
        // A round that needs the stopped rank, with much time: it ends when that is found.
        const auto round = value_or_throw(worker->push_pull({{.key = 1, .push = values, .pull = values}}, scaled(90s)));
        const auto waited = worker->wait(round, scaled(90s));
        ASSERT_FALSE(waited);
        EXPECT_EQ(waited.error().code, Errc::peer_failed) << waited.error().to_string();
        EXPECT_EQ(waited.error().peer, kStopped) << waited.error().to_string();
      }
      // Not a barrier: one that stays open would hold up MPI_Finalize.
      const auto met = rt.allgather("all", {}, scaled(90s));
      ASSERT_FALSE(met);
      EXPECT_EQ(met.error().code, Errc::peer_failed) << met.error().to_string();
      EXPECT_EQ(met.error().peer, kStopped) << met.error().to_string();
      EXPECT_THAT(met.error().message, HasSubstr("heard nothing from it for "));
      put_sign("found" + run + std::to_string(rt.rank()));
      if (rt.rank() == 0) {
        for (const char* rank : {"2", "3"}) EXPECT_TRUE(wait_for_sign("found" + run + rank, scaled(60s)));
        put_sign("found" + run);
        EXPECT_EQ(::kill(all[kStopped], SIGCONT), 0);
      }
      // Its return changes nothing for the others.
      EXPECT_TRUE(wait_for_sign("woken" + run, scaled(120s)));
      for (const fabric::PeerId peer : {0U, 2U, 3U}) {
        EXPECT_EQ(rt.fabric().peer_state(peer), Errc::ok) << rt.fabric().peer_error(peer, {}).to_string();
      }
      put_sign("judged" + run + std::to_string(rt.rank()));
    }
    worker.reset();
    reducer.reset();
    if (rt.rank() == kStopped) put_sign("woken" + run);
    for (const char* rank : {"0", "2", "3"}) EXPECT_TRUE(wait_for_sign("judged" + run + rank, scaled(120s)));
    const auto started = std::chrono::steady_clock::now();
    EXPECT_FALSE(rt.finalize(scaled(20s)));
    EXPECT_LT(std::chrono::steady_clock::now() - started, scaled(20s));
  }
}

/// DTR_TEST_TRANSPORT: one of them, for where there are RDMA devices.
std::vector<std::string> tested_transports() {
  const char* wanted = std::getenv("DTR_TEST_TRANSPORT");
  return wanted != nullptr ? std::vector<std::string>{wanted} : std::vector<std::string>{"shm", "tcp"};
}

INSTANTIATE_TEST_SUITE_P(, HeartbeatMpiTest, ::testing::ValuesIn(tested_transports()),
                         [](const auto& tested) { return tested.param; });

}  // namespace
}  // namespace dtr::testing
