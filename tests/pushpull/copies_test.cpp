// Sums that workers fetch, and tensors that are read and written in place: nobody's memory is touched when it is not
// to be, and every slot comes back.
#include <algorithm>
#include <array>
#include <atomic>
#include <thread>

#include "pushpull/job.hpp"

namespace dtr {
namespace {

using namespace testing;

constexpr std::size_t kCount = 60000;  // three parts of 80 KB for three servers
constexpr WorkerOptions kCut{.split_bytes = 512 << 10};

Errc code_of(const Result<void>& result) { return result ? Errc::ok : result.error().code; }

void expect_sums(Runtime& rt, Worker& worker, std::uint64_t seed) {
  const auto gradient = numbers(kCount, rt.worker_index(), seed);
  std::vector<float> sum(kCount);
  auto round = worker.push_pull({{.key = 1, .push = gradient, .pull = sum}});
  DTR_ASSERT_OK(round);
  DTR_ASSERT_OK(worker.wait(*round, scaled(30s)));
  EXPECT_TRUE(same_bits(sum, sum_of_numbers(kCount, rt.workers(), seed)));
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
  run_reduced(job, [&](Runtime& rt, Worker& worker) {
    std::vector<float> gradient(kCount);
    std::vector<float> sum(kCount);
    const auto start = [&](std::uint64_t seed) {
      gradient = numbers(kCount, rt.worker_index(), seed);
      std::fill(sum.begin(), sum.end(), 7.0F);
      return value_or_throw(worker.push_pull({{.key = 1, .push = gradient, .pull = sum}}));
    };
    const auto expect_sum = [&](RoundHandle round, std::uint64_t seed) {
      DTR_ASSERT_OK(worker.wait(round, scaled(30s)));
      EXPECT_TRUE(same_bits(sum, sum_of_numbers(kCount, 2, seed)));
    };
    for (std::uint64_t seed = 1; seed < 6; ++seed) {
      if (rt.worker_index() == 1) {
        wait_for(sent, seed);
        expect_sum(start(seed), seed);
        summed = seed;
        continue;
      }
      const RoundHandle round = start(seed);
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
      EXPECT_EQ(sum, std::vector<float>(kCount, 7.0F));
    }
    expect_sum(start(6), 6);
    expect_sum(start(7), 7);
  });
}

class InPlaceTest : public ::testing::TestWithParam<Job> {};

INSTANTIATE_TEST_SUITE_P(Ways, InPlaceTest,
                         ::testing::Values(Job{.transport = "shm", .workers = 3, .colocated = true},
                                           Job{.transport = "tcp", .workers = 3, .colocated = true}),
                         name_of);

TEST_P(InPlaceTest, AWorkerThatGivesARoundUpHasItsTensorsBackAndTheOthersHaveItsNumbers) {
  run_reduced(
      GetParam(),
      [](Runtime& rt, Worker& worker) {
        expect_sums(rt, worker, 0);
        for (std::uint64_t i = 1; i < 5; ++i) {
          auto gradient = numbers(kCount, rt.worker_index(), i);
          std::vector<float> sum(kCount, 7.0F);
          if (rt.worker_index() == 0) {
            auto round = worker.push_pull({{.key = 1, .push = gradient, .pull = sum}});
            DTR_ASSERT_OK(round);
            DTR_ASSERT_OK(worker.cancel(*round));
            DTR_ASSERT_OK(worker.quiesce(*round, scaled(30s)));
            std::fill(gradient.begin(), gradient.end(), 1e30F);
            std::fill(sum.begin(), sum.end(), 5.0F);
            meet(rt, "given up");
            EXPECT_EQ(code_of(worker.wait(*round, scaled(30s))), Errc::cancelled);
            meet(rt, "over");
            EXPECT_EQ(sum, std::vector<float>(kCount, 5.0F)) << "written after quiesce";
            continue;
          }
          meet(rt, "given up");
          auto round = worker.push_pull({{.key = 1, .push = gradient, .pull = sum}});
          DTR_ASSERT_OK(round);
          // Some of it may not have left before rank 0 gave up. What ends well has rank 0's numbers as they were.
          const auto ended = worker.wait(*round, scaled(30s));
          if (ended) {
            EXPECT_TRUE(same_bits(sum, sum_of_numbers(kCount, 3, i)));
          } else {
            EXPECT_EQ(ended.error().code, Errc::cancelled) << ended.error().to_string();
            DTR_ASSERT_OK(worker.quiesce(*round, scaled(30s)));
          }
          meet(rt, "over");
        }
        expect_sums(rt, worker, 5);
      },
      kCut);
}

TEST_P(InPlaceTest, OthersMayPullWhatTheServersOwnWorkerAlonePushes) {
  run_reduced(
      GetParam(),
      [](Runtime& rt, Worker& worker) {
        for (std::uint64_t i = 0; i < 3; ++i) {
          const auto gradient = numbers(kCount, 0, i);
          std::vector<float> sum(kCount);
          const bool pushes = rt.worker_index() == 0;
          auto round = pushes ? worker.push_pull({{.key = 1, .push = gradient, .pull = sum}})
                              : worker.push_pull({{.key = 1, .pull = sum}});
          DTR_ASSERT_OK(round);
          DTR_ASSERT_OK(worker.wait(*round, scaled(30s)));
          EXPECT_TRUE(same_bits(sum, gradient));
        }
      },
      kCut);
}

TEST_P(InPlaceTest, TheSameMemoryMayBePushedAndPulled) {
  run_reduced(
      GetParam(),
      [](Runtime& rt, Worker& worker) {
        for (std::uint64_t i = 0; i < 3; ++i) {
          auto tensor = numbers(kCount, rt.worker_index(), i);
          auto round = worker.push_pull({{.key = 1, .push = tensor, .pull = tensor}});
          DTR_ASSERT_OK(round);
          DTR_ASSERT_OK(worker.wait(*round, scaled(30s)));
          EXPECT_TRUE(same_bits(tensor, sum_of_numbers(kCount, 3, i)));
        }
      },
      kCut);
}

TEST_P(InPlaceTest, EveryServerGetsAPartOfATensorThatIsCut) {
  run_reduced(
      GetParam(),
      [](Runtime& rt, Worker& worker) {
        for (const std::size_t count : {std::size_t{100}, std::size_t{10000}, kCount, std::size_t{1} << 20}) {
          const auto gradient = numbers(count, rt.worker_index());
          std::vector<float> sum(count);
          auto round = worker.push_pull({{.key = count, .push = gradient, .pull = sum}});
          DTR_ASSERT_OK(round);
          DTR_ASSERT_OK(worker.wait(*round, scaled(30s)));
          EXPECT_TRUE(same_bits(sum, sum_of_numbers(count, 3)));
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
