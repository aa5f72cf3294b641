// What an end costs when a peer does not answer. Ranks are threads; one with progress.mode = inline that calls nothing
// stands as still as a stopped process.
#include <atomic>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "dtr/bootstrap/local.hpp"
#include "dtr/pushpull/reducer.hpp"
#include "dtr/pushpull/worker.hpp"
#include "support/test_support.hpp"

namespace dtr {
namespace {

using namespace std::chrono_literals;
using testing::scaled;

/// Ranks 0 and 1 are workers, 2 and 3 sum; 3 stands still after the first round.
void end_beside_a_rank_that_stands_still(const std::string& transport) {
  constexpr int kRanks = 4;
  constexpr int kStill = 3;
  auto bootstraps = local_bootstraps(kRanks);
  std::atomic<int> served{0};
  std::atomic<bool> still{false};
  std::atomic<int> gone{0};
  const auto becomes = [](const std::atomic<int>& number, int wanted) {
    const Deadline patience(scaled(120s));
    while (number < wanted && !patience.passed()) std::this_thread::sleep_for(1ms);
    return number >= wanted;
  };
  const auto live = [&](int rank) {
    RuntimeOptions options;
    options.servers = 2;
    options.bootstrap = std::move(bootstraps[static_cast<std::size_t>(rank)]);
    options.config.overrides = {{"transport.allow", transport},
                                {"timeout.finalize_ms", "500"},
                                {"progress.mode", rank == kStill ? "inline" : "thread"}};
    // Outlives everything: a server that has not let go of the second round may write here until all has ended.
    std::vector<std::vector<float>> values(16, std::vector<float>(1000, 1.0F));
    auto made = Runtime::init(std::move(options));
    ASSERT_TRUE(made) << made.error().to_string();
    Runtime& rt = **made;
    std::optional<Worker> worker;
    std::optional<Reducer> reducer;
    if (rt.is_server()) {
      reducer.emplace(rt);
      ASSERT_TRUE(reducer->start());
      const Deadline patience(scaled(120s));
      while (served < 2 && !patience.passed()) {
        if (rank == kStill) rt.progress();
        std::this_thread::sleep_for(1ms);
      }
      if (rank == kStill) still = true;
      ASSERT_TRUE(becomes(gone, rank == kStill ? 3 : 2));
    } else {
      std::vector<PushPull> tensors;
      for (std::size_t key = 0; key < values.size(); ++key) {
        tensors.push_back({.key = key, .push = values[key], .pull = values[key]});
      }
      worker.emplace(rt);
      const auto first = worker->push_pull(std::span<const PushPull>(tensors), scaled(60s));
      ASSERT_TRUE(first) << first.error().to_string();
      const auto done = worker->wait(*first, scaled(60s));
      ASSERT_TRUE(done) << done.error().to_string();
      ++served;
      const Deadline patience(scaled(120s));
      while (!still && !patience.passed()) std::this_thread::sleep_for(1ms);
      const auto second = worker->push_pull(std::span<const PushPull>(tensors), 300ms);
      ASSERT_TRUE(second) << second.error().to_string();
      EXPECT_FALSE(worker->wait(*second, scaled(30s))) << "rank 3 was to stand still";
    }
    const auto failed = Deadline::Clock::now();
    worker.reset();
    reducer.reset();
    made->reset();
    if (rank != kStill) {
      EXPECT_LT(Deadline::Clock::now() - failed, scaled(3s)) << "rank " << rank;
    }
    ++gone;
  };
  std::vector<std::thread> threads;
  for (int rank = 0; rank < kRanks; ++rank) threads.emplace_back(live, rank);
  for (auto& thread : threads) thread.join();
}

TEST(EndBudgetTest, BesideAStandstillTheOthersAreGoneWithinTheBudgetOverShm) {
  end_beside_a_rank_that_stands_still("shm");
}

TEST(EndBudgetTest, BesideAStandstillTheOthersAreGoneWithinTheBudgetOverTcp) {
  end_beside_a_rank_that_stands_still("tcp");
}

}  // namespace
}  // namespace dtr
