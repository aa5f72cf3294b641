// Sums that workers fetch, and tensors that are read and written in place: nobody's memory is touched when it is not
// to be, and every slot comes back.
#include <algorithm>
#include <array>
#include <atomic>
#include <deque>
#include <thread>

#include "pushpull/job.hpp"

namespace dtr {
namespace {

using namespace testing;

constexpr std::size_t kCount = 60000;  // three parts of 80 KB for three servers
constexpr WorkerOptions kCut{.split_bytes = 512 << 10};

Errc code_of(const Result<void>& result) { return result ? Errc::ok : result.error().code; }

/// Tensors that live as long as the Worker: it keeps them registered.
struct Tensors {
  explicit Tensors(std::size_t count = kCount) : gradient(count), sum(count) {}

  /// In the same memory: an assignment would move.
  static void fill(std::vector<float>& tensor, int worker, std::uint64_t seed) {
    const auto values = numbers(tensor.size(), worker, seed);
    std::copy(values.begin(), values.end(), tensor.begin());
  }
  RoundHandle start(Runtime& rt, Worker& worker, std::uint64_t seed) {
    fill(gradient, rt.worker_index(), seed);
    std::fill(sum.begin(), sum.end(), 7.0F);
    return value_or_throw(worker.push_pull({{.key = 1, .push = gradient, .pull = sum}}));
  }
  void expect_sum(Runtime& rt, Worker& worker, RoundHandle round, std::uint64_t seed) {
    DTR_ASSERT_OK(worker.wait(round, scaled(30s)));
    EXPECT_TRUE(same_bits(sum, sum_of_numbers(gradient.size(), rt.workers(), seed)));
  }

  std::vector<float> gradient;
  std::vector<float> sum;
};

/// As run_reduced; `mine` ends after the Worker.
void run_with_tensors(const Job& job, const std::function<void(Runtime&, Worker&, Tensors&)>& rank,
                      const WorkerOptions& options = {}) {
  std::deque<Tensors> all(static_cast<std::size_t>(job.workers));
  run_reduced(
      job, [&](Runtime& rt, Worker& worker) { rank(rt, worker, all[static_cast<std::size_t>(rt.worker_index())]); },
      options);
}

TEST(FetchTest, ASumThatIsNotWantedAnyMoreIsNotFetchedAndItsSlotComesBack) {
  // One slot for each worker and key: one that did not come back would stop everything.
  const Job job{.workers = 2, .servers = 1, .config = {{"progress.mode", "inline"}, {"pushpull.slots", "1"}}};
  std::atomic<std::uint64_t> sent{0};
  std::atomic<std::uint64_t> summed{0};
  const auto wait_for = [](const std::atomic<std::uint64_t>& sign, std::uint64_t seed) {
    const Deadline patience(scaled(30s));
    while (sign < seed && !patience.passed()) std::this_thread::sleep_for(1ms);
  };
  run_with_tensors(job, [&](Runtime& rt, Worker& worker, Tensors& mine) {
    for (std::uint64_t seed = 1; seed < 6; ++seed) {
      if (rt.worker_index() == 1) {
        wait_for(sent, seed);
        mine.expect_sum(rt, worker, mine.start(rt, worker, seed), seed);
        summed = seed;
        continue;
      }
      const RoundHandle round = mine.start(rt, worker, seed);
      Error state;
      const Deadline patience(scaled(30s));
      while (state.message.find("it has the data") == std::string::npos && !patience.passed()) {
        const auto ended = worker.wait(round, 1ms);
        ASSERT_FALSE(ended) << "rank 1 has pushed nothing";
        state = ended.error();
      }
      sent = seed;
      wait_for(summed, seed);  // no progress here: the sum is offered, and waits
      DTR_ASSERT_OK(worker.cancel(round));
      EXPECT_EQ(code_of(worker.wait(round, scaled(30s))), Errc::cancelled);
      DTR_ASSERT_OK(worker.quiesce(round, scaled(30s)));
      EXPECT_EQ(mine.sum, std::vector<float>(kCount, 7.0F));
    }
    for (const std::uint64_t seed : {6, 7}) mine.expect_sum(rt, worker, mine.start(rt, worker, seed), seed);
  });
}

TEST(FetchTest, AWorkerThatRemembersOneRoundOnlyCanStartTheNextAtOnce) {
  run_with_tensors({.workers = 2, .servers = 1},
                   [](Runtime& rt, Worker& worker, Tensors& mine) {
                     for (std::uint64_t seed = 0; seed < 30; ++seed) {
                       mine.expect_sum(rt, worker, mine.start(rt, worker, seed), seed);
                     }
                   },
                   {.rounds = 1});
}

class InPlaceTest : public ::testing::TestWithParam<Job> {};

INSTANTIATE_TEST_SUITE_P(Ways, InPlaceTest,
                         ::testing::Values(Job{.transport = "shm", .workers = 3, .colocated = true},
                                           Job{.transport = "tcp", .workers = 3, .colocated = true}),
                         name_of);

TEST_P(InPlaceTest, AWorkerThatGivesARoundUpHasItsTensorsBackAndTheOthersHaveItsNumbers) {
  run_with_tensors(
      GetParam(),
      [](Runtime& rt, Worker& worker, Tensors& mine) {
        mine.expect_sum(rt, worker, mine.start(rt, worker, 0), 0);
        for (std::uint64_t i = 1; i < 5; ++i) {
          if (rt.worker_index() == 0) {
            const RoundHandle round = mine.start(rt, worker, i);
            // By force without a word before, or after a cancel.
            const bool force = i % 2 == 0;
            if (!force) DTR_ASSERT_OK(worker.cancel(round));
            DTR_ASSERT_OK(worker.quiesce(round, force ? scaled(1s) : scaled(30s), force));
            std::fill(mine.gradient.begin(), mine.gradient.end(), 1e30F);
            std::fill(mine.sum.begin(), mine.sum.end(), 5.0F);
            meet(rt, "given up");
            EXPECT_EQ(code_of(worker.wait(round, scaled(30s))), Errc::cancelled);
            meet(rt, "over");
            EXPECT_EQ(mine.sum, std::vector<float>(kCount, 5.0F)) << "written after quiesce";
            continue;
          }
          meet(rt, "given up");
          const RoundHandle round = mine.start(rt, worker, i);
          // Some of it may not have left before rank 0 gave up. What ends well has rank 0's numbers as they were.
          if (const auto ended = worker.wait(round, scaled(30s)); ended) {
            EXPECT_TRUE(same_bits(mine.sum, sum_of_numbers(kCount, 3, i)));
          } else {
            EXPECT_EQ(ended.error().code, Errc::cancelled) << ended.error().to_string();
            DTR_ASSERT_OK(worker.quiesce(round, scaled(30s)));
          }
          meet(rt, "over");
        }
        mine.expect_sum(rt, worker, mine.start(rt, worker, 5), 5);
      },
      kCut);
}

TEST_P(InPlaceTest, AnAnswerThatGoesWhereAnotherKeyIsPushedFromDoesNotChangeWhatIsPushed) {
  // In one call each, with lists: rank 0 pushes X as one key and has another key's sum written into X.
  run_with_tensors(GetParam(), [](Runtime& rt, Worker& worker, Tensors& mine) {
    const std::uint64_t servers = 3;
    const auto keys_of = [&](std::uint64_t seed) {  // both at the same server, each time another one
      return std::array<std::uint64_t, 2>{seed % servers, seed % servers + servers};
    };
    for (std::uint64_t seed = 0; seed < 6; ++seed) {
      Tensors::fill(mine.gradient, rt.worker_index(), seed);
      const auto keys = keys_of(seed);
      const bool first = rt.worker_index() == 0;
      Result<RoundHandle> round;
      if (rt.worker_index() == 2) {  // lists both, wants nothing special
        round = worker.push_pull({{.key = keys[0], .pull = mine.sum}, {.key = keys[1], .pull = mine.gradient}});
      } else {
        const std::array pushes{PushView(mine.gradient)};
        const std::array pulls{first ? PullView(mine.gradient) : PullView(mine.sum)};
        const std::array push_keys{first ? keys[0] : keys[1]};
        const std::array pull_keys{first ? keys[1] : keys[0]};
        round = worker.push_pull(pushes, push_keys, pulls, pull_keys);
      }
      DTR_ASSERT_OK(round);
      DTR_ASSERT_OK(worker.wait(*round, scaled(30s)));
      const auto zero = numbers(kCount, 0, seed);
      const auto one = numbers(kCount, 1, seed);
      if (first) {
        EXPECT_TRUE(same_bits(mine.gradient, one));
      } else if (rt.worker_index() == 1) {
        EXPECT_TRUE(same_bits(mine.sum, zero));
      }
      if (rt.worker_index() == 2) {
        EXPECT_TRUE(same_bits(mine.sum, zero));
        EXPECT_TRUE(same_bits(mine.gradient, one));
      }
    }
  });
}

TEST_P(InPlaceTest, AKeyIsCutTheSameWayWhateverItIsListedBeside) {
  constexpr std::size_t kLong = 1 << 20;
  run_with_tensors(
      GetParam(),
      [](Runtime& rt, Worker& worker, Tensors& mine) {
        Tensors longer(kLong);
        for (std::uint64_t seed = 0; seed < 2; ++seed) {
          Tensors::fill(mine.gradient, rt.worker_index(), seed);
          Tensors::fill(longer.gradient, rt.worker_index(), seed);
          const std::array pushes{PushView(mine.gradient), PushView(longer.gradient)};
          const std::array<std::uint64_t, 2> keys{1, 2};
          const bool crossed = rt.worker_index() == 1;
          const std::array pulls{crossed ? PullView(longer.sum) : PullView(mine.sum),
                                 crossed ? PullView(mine.sum) : PullView(longer.sum)};
          const std::array<std::uint64_t, 2> pull_keys{crossed ? 2U : 1U, crossed ? 1U : 2U};
          auto round = worker.push_pull(pushes, keys, pulls, pull_keys);
          DTR_ASSERT_OK(round);
          DTR_ASSERT_OK(worker.wait(*round, scaled(30s)));
          EXPECT_TRUE(same_bits(mine.sum, sum_of_numbers(kCount, 3, seed)));
          EXPECT_TRUE(same_bits(longer.sum, sum_of_numbers(kLong, 3, seed)));
        }
        DTR_EXPECT_OK(worker.forget(std::as_bytes(std::span(longer.gradient))));
        DTR_EXPECT_OK(worker.forget(std::as_bytes(std::span(longer.sum))));
      },
      kCut);
}

TEST_P(InPlaceTest, OthersMayPullWhatTheServersOwnWorkerAlonePushes) {
  run_with_tensors(
      GetParam(),
      [](Runtime& rt, Worker& worker, Tensors& mine) {
        for (std::uint64_t i = 0; i < 3; ++i) {
          Tensors::fill(mine.gradient, 0, i);
          auto round = rt.worker_index() == 0 ? worker.push_pull({{.key = 1, .push = mine.gradient, .pull = mine.sum}})
                                              : worker.push_pull({{.key = 1, .pull = mine.sum}});
          DTR_ASSERT_OK(round);
          DTR_ASSERT_OK(worker.wait(*round, scaled(30s)));
          EXPECT_TRUE(same_bits(mine.sum, mine.gradient));
        }
      },
      kCut);
}

TEST_P(InPlaceTest, TheSameMemoryMayBePushedAndPulled) {
  run_with_tensors(
      GetParam(),
      [](Runtime& rt, Worker& worker, Tensors& mine) {
        for (std::uint64_t i = 0; i < 3; ++i) {
          Tensors::fill(mine.sum, rt.worker_index(), i);
          auto round = worker.push_pull({{.key = 1, .push = mine.sum, .pull = mine.sum}});
          DTR_ASSERT_OK(round);
          mine.expect_sum(rt, worker, *round, i);
        }
      },
      kCut);
}

TEST_P(InPlaceTest, EveryServerGetsAPartOfATensorThatIsCut) {
  constexpr std::array<std::size_t, 4> kCounts{100, 10000, kCount, std::size_t{1} << 20};
  std::deque<std::vector<float>> memory(static_cast<std::size_t>(GetParam().workers) * 2);
  for (auto& tensor : memory) tensor.resize(kCounts.back());
  run_reduced(
      GetParam(),
      [&](Runtime& rt, Worker& worker) {
        const auto index = 2 * static_cast<std::size_t>(rt.worker_index());
        for (const std::size_t count : kCounts) {
          const std::span<float> gradient = std::span(memory[index]).first(count);
          const std::span<float> sum = std::span(memory[index + 1]).first(count);
          std::fill(gradient.begin(), gradient.end(), 1.0F);
          auto round = worker.push_pull({{.key = count, .push = gradient, .pull = sum}});
          DTR_ASSERT_OK(round);
          DTR_ASSERT_OK(worker.wait(*round, scaled(30s)));
          EXPECT_EQ(std::count(sum.begin(), sum.end(), 3.0F), static_cast<std::ptrdiff_t>(count));
          const auto rows = worker.trace(*round);
          DTR_ASSERT_OK(rows);
          std::array<int, 3> parts{};
          for (const RoundTrace& row : *rows) ++parts.at(static_cast<std::size_t>(row.server));
          const bool small = count * sizeof(float) < std::size_t{2} * 64 << 10;
          EXPECT_EQ(std::count(parts.begin(), parts.end(), 0), small ? 2 : 0) << count << " elements";
        }
      },
      kCut);
}

}  // namespace
}  // namespace dtr
