// Ranks that fall silent. They are threads of one process: one with progress.mode = inline that calls nothing stands
// as still as a stopped process.
#include <algorithm>
#include <atomic>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "dtr/bootstrap/local.hpp"
#include "dtr/runtime/runtime.hpp"
#include "support/test_support.hpp"

namespace dtr {
namespace {

using namespace std::chrono_literals;
using ::testing::HasSubstr;
using testing::scaled;

struct Job {
  std::string transport;
  int size = 2;
  std::chrono::milliseconds timeout{};
  std::vector<int> inline_ranks{};
};

/// Longer than a thread may have to wait for a core: who is declared failed is to be silent and not only late.
std::chrono::milliseconds short_time_out() { return std::max<std::chrono::milliseconds>(3s, scaled(1s)); }

/// Runs `body(its Runtime)` on a thread for each rank, in a watch tree of width 2.
void run(const Job& job, const std::function<void(Runtime&)>& body) {
  auto bootstraps = local_bootstraps(job.size);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < job.size; ++rank) {
    threads.emplace_back([&, rank] {
      const bool is_inline = std::count(job.inline_ranks.begin(), job.inline_ranks.end(), rank) > 0;
      RuntimeOptions options;
      options.bootstrap = std::move(bootstraps[static_cast<std::size_t>(rank)]);
      options.config.overrides = {{"transport.allow", job.transport},
                                  {"runtime.watch_width", "2"},
                                  {"runtime.heartbeat_interval_ms", "50"},
                                  {"runtime.heartbeat_timeout_ms", std::to_string(job.timeout.count())},
                                  {"progress.mode", is_inline ? "inline" : "thread"}};
      auto rt = Runtime::init(std::move(options));
      ASSERT_TRUE(rt) << rt.error().to_string();
      body(**rt);
    });
  }
  for (auto& thread : threads) thread.join();
}

/// Asks again and again, for a generous while.
bool becomes(const std::function<bool()>& holds) {
  const Deadline deadline(scaled(60s));
  while (!holds()) {
    if (deadline.passed()) return false;
    std::this_thread::sleep_for(2ms);
  }
  return true;
}

Result<void> flush(Runtime& rt, fabric::PeerId peer, std::chrono::milliseconds timeout) {
  fabric::Completion done;
  const auto request = fabric::WorkRequest::flush(&done);
  rt.fabric().submit(peer, std::span(&request, 1), timeout);
  return rt.fabric().wait(done, peer, "flush", Deadline(timeout + scaled(30s)));
}

void one_falls_silent(const std::string& transport, int silent_rank) {
  const auto silent = static_cast<fabric::PeerId>(silent_rank);
  const Job job{.transport = transport, .size = 7, .timeout = short_time_out(), .inline_ranks = {silent_rank}};
  std::atomic<int> gathered{0};
  std::atomic<int> found{0};
  std::atomic<int> content{0};
  std::atomic<bool> woken{false};
  run(job, [&](Runtime& rt) {
    if (rt.rank() == silent_rank) {
      ASSERT_TRUE(rt.allgather("all here", {}, scaled(60s)));
      ASSERT_TRUE(becomes([&] {  // and sees to it that the others get what it has for them
        EXPECT_TRUE(rt.heartbeat());
        return gathered == 6;
      }));
      ASSERT_TRUE(becomes([&] { return found == 6; }));
      // It wakes up, and learns what the others think of it.
      ASSERT_TRUE(becomes([&] {
        rt.progress();
        return !rt.check_peers();
      }));
      const Error error = rt.check_peers().error();
      EXPECT_EQ(error.code, Errc::fenced) << error.to_string();
      EXPECT_THAT(error.message, HasSubstr("the others have declared this rank failed"));
      EXPECT_EQ(rt.heartbeat().error().code, Errc::fenced);
      for (fabric::PeerId peer = 0; peer < rt.fabric().size(); ++peer) {
        if (peer == silent) continue;
        EXPECT_EQ(flush(rt, peer, scaled(10s)).error().code, Errc::fenced) << peer;
      }
      woken = true;
      ASSERT_TRUE(becomes([&] { return content == 6; }));
      const auto started = std::chrono::steady_clock::now();
      EXPECT_EQ(rt.finalize(scaled(20s)).error().code, Errc::fenced);
      EXPECT_LT(std::chrono::steady_clock::now() - started, scaled(10s)) << "it waited for those that do not want it";
      return;
    }
    ASSERT_TRUE(rt.allgather("all here", {}, scaled(60s)));
    ++gathered;
    ASSERT_TRUE(becomes([&] { return !rt.check_peers(); })) << "nobody found rank " << silent;
    const Error error = rt.check_peers().error();
    EXPECT_EQ(error.code, Errc::peer_failed) << error.to_string();
    EXPECT_EQ(error.peer, silent_rank) << error.to_string();
    EXPECT_THAT(error.message, HasSubstr("heard nothing from it for "));
    const auto asked = flush(rt, silent, scaled(10s));
    ASSERT_FALSE(asked);
    EXPECT_EQ(asked.error().code, Errc::peer_failed) << asked.error().to_string();
    EXPECT_EQ(rt.barrier({}, scaled(30s)).error().code, Errc::peer_failed);
    ++found;
    ASSERT_TRUE(becomes([&] { return woken.load(); }));
    for (fabric::PeerId peer = 0; peer < rt.fabric().size(); ++peer) {
      if (peer == silent) continue;
      const auto other = flush(rt, peer, scaled(30s));
      EXPECT_TRUE(other) << other.error().to_string();
    }
    ++content;
    ASSERT_TRUE(becomes([&] { return content == 6; }));
    EXPECT_EQ(rt.check_peers().error().peer, silent_rank);
    EXPECT_EQ(rt.finalize(scaled(20s)).error().code, Errc::peer_failed);
  });
}

TEST(HeartbeatTest, ASilentInnerNodeIsDeclaredFailedByAllAndLearnsItWhenItWakes) { one_falls_silent("shm", 1); }

TEST(HeartbeatTest, ASilentTopIsDeclaredFailedByAllAndLearnsItWhenItWakesOverTcp) { one_falls_silent("tcp", 0); }

TEST(HeartbeatTest, WhoComputesWithoutCallingIsNotDeclaredFailedWhateverItsProgressMode) {
  const Job job{.transport = "shm", .size = 4, .timeout = short_time_out(), .inline_ranks = {1, 2}};
  run(job, [&](Runtime& rt) {
    ASSERT_TRUE(rt.allgather("all here", {}, scaled(60s)));
    std::this_thread::sleep_for(2 * job.timeout);  // no call; threads speak for 0 and 3, nobody expects 1 and 2 to
    EXPECT_TRUE(rt.check_peers()) << rt.check_peers().error().to_string();
    ASSERT_TRUE(rt.allgather("all still here", {}, scaled(60s)));
    EXPECT_TRUE(rt.check_peers()) << rt.check_peers().error().to_string();
    EXPECT_TRUE(rt.finalize(scaled(30s)));
  });
}

TEST(HeartbeatTest, AnInlineRankHasPassedOnWhatOthersWaitForBeforeItComputes) {
  std::atomic<int> through{0};
  const Job job{.transport = "tcp", .size = 4, .timeout = scaled(60s), .inline_ranks = {1}};  // rank 3 is below rank 1
  run(job, [&](Runtime& rt) {
    ASSERT_TRUE(rt.allgather("all here", {}, scaled(60s)));
    ++through;
    const Deadline patience(scaled(20s));
    while (through < 4 && !patience.passed()) std::this_thread::sleep_for(1ms);  // no call
    EXPECT_EQ(through, 4) << "rank " << rt.rank() << " waits for those that still wait";
    EXPECT_TRUE(rt.finalize(scaled(60s)));
  });
}

TEST(HeartbeatTest, AnInlineRankThatKeepsItsPromiseIsLeftAlone) {
  const Job job{.transport = "tcp", .size = 3, .timeout = short_time_out(), .inline_ranks = {1}};
  std::atomic<bool> done{false};
  run(job, [&](Runtime& rt) {
    ASSERT_TRUE(rt.allgather("all here", {}, scaled(60s)));
    if (rt.rank() == 1) {
      const Deadline long_enough(2 * job.timeout);
      while (!long_enough.passed()) {
        EXPECT_TRUE(rt.heartbeat());
        std::this_thread::sleep_for(10ms);
      }
      done = true;
    } else {
      ASSERT_TRUE(becomes([&] { return done.load(); }));
    }
    EXPECT_TRUE(rt.check_peers()) << rt.check_peers().error().to_string();
    EXPECT_TRUE(rt.finalize(scaled(30s)));
  });
}

TEST(HeartbeatTest, BeatsAreCounted) {
  const Job job{.transport = "shm", .size = 2, .timeout = scaled(10s)};
  run(job, [&](Runtime& rt) {
    Counter& sent = rt.metrics().counter("dtr_heartbeats_sent_total", "");
    Counter& heard = rt.metrics().counter("dtr_heartbeats_received_total", "");
    EXPECT_TRUE(becomes([&] { return sent.value() >= 3 && heard.value() >= 3; }));
    EXPECT_EQ(rt.metrics().counter("dtr_peers_declared_failed_total", "").value(), 0U);
    EXPECT_TRUE(rt.finalize(scaled(60s)));
    EXPECT_EQ(rt.heartbeat().error().code, Errc::closed);
  });
}

}  // namespace
}  // namespace dtr
