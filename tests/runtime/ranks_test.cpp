// Several ranks as threads of one process, over shared memory and over tcp.
#include <algorithm>
#include <atomic>
#include <functional>
#include <set>
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

/// Runs `body(rank, its Bootstrap)` on a thread for each rank.
void on_ranks(int size, const std::function<void(int, std::unique_ptr<Bootstrap>)>& body) {
  auto bootstraps = local_bootstraps(size);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank] { body(rank, std::move(bootstraps[static_cast<std::size_t>(rank)])); });
  }
  for (auto& thread : threads) thread.join();
}

RuntimeOptions options_for(std::unique_ptr<Bootstrap> bootstrap, const std::string& transport, int servers = 0) {
  RuntimeOptions options;
  options.servers = servers;
  options.bootstrap = std::move(bootstrap);
  options.config.overrides = {{"transport.allow", transport}};
  return options;
}

class RanksTest : public ::testing::TestWithParam<std::string> {
 protected:
  static void with_runtimes(int size, int servers, const std::function<void(Runtime&)>& body) {
    on_ranks(size, [&](int, std::unique_ptr<Bootstrap> bootstrap) {
      auto rt = Runtime::init(options_for(std::move(bootstrap), GetParam(), servers));
      ASSERT_TRUE(rt) << rt.error().to_string();
      body(**rt);
    });
  }
};

TEST_P(RanksTest, AllgatherCarriesLargeBlobsOfDifferentSizes) {
  with_runtimes(3, 0, [](Runtime& rt) {
    for (int round = 0; round < 3; ++round) {
      const auto size = static_cast<std::size_t>(rt.rank()) * 300'000;
      const auto all = rt.allgather("blob", Bytes(size, static_cast<std::byte>(rt.rank())), scaled(30s));
      ASSERT_TRUE(all) << all.error().to_string();
      for (std::size_t r = 0; r < 3; ++r) EXPECT_EQ((*all)[r], Bytes(r * 300'000, static_cast<std::byte>(r)));
    }
    EXPECT_TRUE(rt.finalize(scaled(30s)));
  });
}

TEST_P(RanksTest, WorkersAndServersAgreeAmongThemselves) {
  with_runtimes(5, 2, [](Runtime& rt) {
    auto group = rt.is_worker() ? rt.worker_group() : rt.server_group();
    ASSERT_TRUE(group) << group.error().to_string();
    EXPECT_EQ((*group)->size(), rt.is_worker() ? 3 : 2);
    EXPECT_EQ((*group)->rank(), rt.is_worker() ? rt.worker_index() : rt.server_index());
    const auto all = (*group)->allgather("who", Bytes(1, static_cast<std::byte>(rt.rank())), scaled(30s));
    ASSERT_TRUE(all) << all.error().to_string();
    for (std::size_t i = 0; i < all->size(); ++i) {
      EXPECT_EQ((*all)[i], Bytes(1, static_cast<std::byte>(rt.is_worker() ? i : i + 3)));
    }
    EXPECT_FALSE(rt.is_worker() ? rt.server_group() : rt.worker_group());
    EXPECT_TRUE(rt.barrier({.servers = rt.is_server(), .workers = rt.is_worker()}, scaled(30s)));
    EXPECT_TRUE(rt.finalize(scaled(30s)));
  });
}

TEST_P(RanksTest, ABarrierAndAnAllgatherThatTimeOutNameWhoIsMissing) {
  std::atomic<int> gave_up{0};
  const auto short_while = std::max<std::chrono::milliseconds>(1500ms, scaled(500ms));  // for ranks 0 and 2 to come
  with_runtimes(3, 0, [&](Runtime& rt) {
    ASSERT_TRUE(rt.barrier({}, scaled(30s)));
    if (rt.rank() == 1) {
      const Deadline patience(scaled(60s));
      while (gave_up < 2 && !patience.passed()) std::this_thread::sleep_for(1ms);
    } else {
      const auto late = rt.barrier({}, short_while);
      ASSERT_FALSE(late);
      EXPECT_THAT(late.error().to_string(), HasSubstr("barrier: timed_out: did not come: rank 1"));
      const auto alone = rt.allgather("t", {}, short_while);
      ASSERT_FALSE(alone);
      EXPECT_THAT(alone.error().to_string(), HasSubstr("timed_out: did not come: rank 1"));
      ++gave_up;
    }
    if (rt.rank() == 1) {
      EXPECT_TRUE(rt.barrier({}, scaled(30s))) << "it meets the barrier that the others gave up";
    }
    EXPECT_TRUE(rt.finalize(scaled(30s)));
  });
}

TEST_P(RanksTest, MeetingsOfManyRanksConnectNobodyWithMoreThanItsNeighboursInTheTree) {
  constexpr int kRanks = 12;
  constexpr int kServers = 5;
  std::atomic<int> looked{0};
  on_ranks(kRanks, [&](int rank, std::unique_ptr<Bootstrap> bootstrap) {
    auto options = options_for(std::move(bootstrap), GetParam(), kServers);
    options.config.overrides.emplace_back("runtime.watch_width", "2");
    auto rt = Runtime::init(std::move(options));
    ASSERT_TRUE(rt) << rt.error().to_string();
    ASSERT_TRUE((*rt)->barrier({}, scaled(30s)));
    for (int round = 0; round < 2; ++round) {
      const auto size = static_cast<std::size_t>(rank) * 3000;
      const auto all = (*rt)->allgather("blob", Bytes(size, static_cast<std::byte>(rank)), scaled(30s));
      ASSERT_TRUE(all) << all.error().to_string();
      for (std::size_t r = 0; r < kRanks; ++r) EXPECT_EQ((*all)[r], Bytes(r * 3000, static_cast<std::byte>(r)));
    }
    const auto neighbours = [](int place, int count) {
      std::set<int> found;
      if (place > 0) found.insert((place - 1) / 2);
      for (const int child : {2 * place + 1, 2 * place + 2}) {
        if (child < count) found.insert(child);
      }
      return found;
    };
    std::set<int> known = neighbours(rank, kRanks);
    for (int other = 0; other < kRanks; ++other) {
      const bool connected = (*rt)->fabric().path(static_cast<fabric::PeerId>(other)).detail != "not connected yet";
      EXPECT_TRUE(!connected || other == rank || known.contains(other)) << rank << " is connected with " << other;
    }
    ++looked;  // before anybody has others pass on what is the servers'
    const Deadline patience(scaled(30s));
    while (looked < kRanks && !patience.passed()) std::this_thread::sleep_for(1ms);
    // The servers have a tree of their own: no worker passes on what is theirs.
    auto group = (*rt)->is_worker() ? (*rt)->worker_group() : (*rt)->server_group();
    ASSERT_TRUE(group) << group.error().to_string();
    const auto theirs = (*group)->allgather("who", Bytes(1, static_cast<std::byte>(rank)), scaled(30s));
    ASSERT_TRUE(theirs) << theirs.error().to_string();
    const int first = (*rt)->is_worker() ? 0 : kRanks - kServers;
    for (std::size_t i = 0; i < theirs->size(); ++i) {
      EXPECT_EQ((*theirs)[i], Bytes(1, static_cast<std::byte>(first + static_cast<int>(i))));
    }
    if ((*rt)->is_server()) {
      for (const int place : neighbours(rank - first, kServers)) known.insert(first + place);
    }
    for (int other = 0; other < kRanks; ++other) {
      const bool connected = (*rt)->fabric().path(static_cast<fabric::PeerId>(other)).detail != "not connected yet";
      EXPECT_TRUE(!connected || other == rank || known.contains(other)) << rank << " is connected with " << other;
    }
    EXPECT_TRUE((*rt)->finalize(scaled(30s)));
  });
}

TEST_P(RanksTest, WhoIsMissingIsNamedAlsoToThoseThatAskThroughOthers) {
  constexpr int kRanks = 8;  // 0 over 1 and 2, 1 over 3 and 4, 2 over 5 and 6, 3 over 7
  std::atomic<int> gave_up{0};
  const auto short_while = std::max<std::chrono::milliseconds>(1500ms, scaled(500ms));  // for the others to come
  on_ranks(kRanks, [&](int rank, std::unique_ptr<Bootstrap> bootstrap) {
    auto options = options_for(std::move(bootstrap), GetParam());
    options.config.overrides.emplace_back("runtime.watch_width", "2");
    auto rt = Runtime::init(std::move(options));
    ASSERT_TRUE(rt) << rt.error().to_string();
    ASSERT_TRUE((*rt)->barrier({}, scaled(30s)));
    if (rank == 3) {  // passes on what rank 7 says, but does not come itself
      const Deadline patience(scaled(60s));
      while (gave_up < kRanks - 1 && !patience.passed()) std::this_thread::sleep_for(1ms);
      EXPECT_TRUE((*rt)->barrier({}, scaled(30s)));
    } else {
      const auto late = (*rt)->barrier({}, short_while);
      ASSERT_FALSE(late);
      // Who asks through others may get no answer in the half second that the library allows for it.
      const auto named = HasSubstr("barrier: timed_out: did not come: rank 3");
      const auto unanswered = HasSubstr("unknown, rank 0 does not answer");
      if (rank == 0) {
        EXPECT_THAT(late.error().to_string(), named);
      } else {
        EXPECT_THAT(late.error().to_string(), ::testing::AnyOf(named, unanswered));
      }
      ++gave_up;
    }
    EXPECT_TRUE((*rt)->finalize(scaled(30s)));
  });
}

TEST(HeldUpTest, ARelayThatHasComeAndThenStandsStillIsNamedBesideThoseWhoseWordsItHolds) {
  constexpr int kRanks = 4;  // 0 over 1 and 2, 1 over 3
  std::atomic<bool> relay_came{false};
  std::atomic<int> ended{0};
  on_ranks(kRanks, [&](int rank, std::unique_ptr<Bootstrap> bootstrap) {
    auto options = options_for(std::move(bootstrap), "shm");
    options.config.overrides.emplace_back("runtime.watch_width", "2");
    if (rank == 1) options.config.overrides.emplace_back("progress.mode", "inline");
    auto rt = Runtime::init(std::move(options));
    ASSERT_TRUE(rt) << rt.error().to_string();
    ASSERT_TRUE((*rt)->barrier({}, scaled(30s)));
    const Deadline patience(scaled(60s));
    if (rank == 1) {
      static_cast<void>((*rt)->allgather("held up", {}, 100ms));  // comes, says so, and goes away
      relay_came = true;
      while (ended < kRanks - 1 && !patience.passed()) std::this_thread::sleep_for(1ms);
    } else {
      while (!relay_came && !patience.passed()) std::this_thread::sleep_for(1ms);
      const auto late = (*rt)->allgather("held up", {}, scaled(1500ms));
      ASSERT_FALSE(late);
      if (rank == 0) {
        EXPECT_THAT(late.error().message, HasSubstr("did not come: rank 3, whose words come by rank 1"));
      } else if (rank == 3) {
        EXPECT_THAT(late.error().message, HasSubstr("rank 0 does not answer by way of rank 1"));
      }
      ++ended;
    }
    // Rank 1 goes on once the others have heard.
    EXPECT_TRUE((*rt)->finalize(scaled(30s)));
  });
}

TEST_P(RanksTest, WhoLeavesEarlyEndsTheMeetingsOfTheOthersWithPeerLeft) {
  with_runtimes(3, 0, [](Runtime& rt) {
    ASSERT_TRUE(rt.allgather("all here", {}, scaled(30s)));
    if (rt.rank() == 2) {
      EXPECT_EQ(rt.finalize(200ms).error().code, Errc::timed_out);
      return;
    }
    const auto started = std::chrono::steady_clock::now();
    const auto met = rt.allgather("without rank 2", {}, scaled(30s));
    ASSERT_FALSE(met);
    EXPECT_EQ(met.error().code, Errc::peer_left) << met.error().to_string();
    const auto ended = rt.finalize(scaled(20s));
    EXPECT_FALSE(ended);
    EXPECT_LT(std::chrono::steady_clock::now() - started, scaled(10s)) << "finalize waited for who had left";
  });
}

TEST_P(RanksTest, WhoLeftInGoodOrderIsKnownToHaveLeftByThoseThatNeverSpokeToIt) {
  with_runtimes(3, 0, [&](Runtime& rt) {
    ASSERT_TRUE(rt.allgather("all here", {}, scaled(30s)));
    if (rt.rank() == 2) {
      EXPECT_EQ(rt.finalize(200ms).error().code, Errc::timed_out);
      return;
    }
    if (rt.rank() == 0) {  // it ends too, and still passes the word on
      EXPECT_FALSE(rt.finalize(scaled(30s)));
      return;
    }
    const Deadline patience(scaled(30s));
    while (rt.fabric().peer_state(2) == Errc::ok && !patience.passed()) std::this_thread::sleep_for(1ms);
    fabric::Completion done;
    const auto request = fabric::WorkRequest::flush(&done);
    rt.fabric().submit(2, std::span(&request, 1), scaled(30s));
    const auto asked = rt.fabric().wait(done, 2, "flush", scaled(60s));
    ASSERT_FALSE(asked);
    EXPECT_EQ(asked.error().code, Errc::peer_left) << asked.error().to_string();
    EXPECT_FALSE(rt.finalize(scaled(30s)));
  });
}

INSTANTIATE_TEST_SUITE_P(, RanksTest, ::testing::Values("shm", "tcp"), [](const auto& tested) { return tested.param; });

TEST(RanksInitTest, RolesThatDifferAreAnErrorOnEveryRank) {
  on_ranks(3, [](int rank, std::unique_ptr<Bootstrap> bootstrap) {
    const auto made = Runtime::init(options_for(std::move(bootstrap), "shm", rank == 1 ? 2 : 1));
    ASSERT_FALSE(made);
    EXPECT_EQ(made.error().code, Errc::invalid_argument);
    EXPECT_THAT(made.error().to_string(), HasSubstr("the roles differ"));
  });
}

TEST(RanksInitTest, AConfigErrorOfOneRankIsAnErrorOnEveryRankThatNamesIt) {
  on_ranks(3, [](int rank, std::unique_ptr<Bootstrap> bootstrap) {
    auto options = options_for(std::move(bootstrap), "shm");
    if (rank == 1) options.config.overrides.push_back({"progress.spin", "1"});
    const auto made = Runtime::init(std::move(options));
    ASSERT_FALSE(made);
    EXPECT_THAT(made.error().to_string(), HasSubstr("progress.spin_us"));
    EXPECT_EQ(made.error().peer, rank == 1 ? -1 : 1);
  });
}

}  // namespace
}  // namespace dtr
