// Sums by a Reducer: right to the last bit on every way, whatever the sizes, the order and the overlap of rounds.
#include <thread>

#include "pushpull/job.hpp"

namespace dtr {
namespace {

using namespace testing;

class ReducerTest : public ::testing::TestWithParam<Job> {};

INSTANTIATE_TEST_SUITE_P(Ways, ReducerTest, ::testing::ValuesIn(all_ways()), name_of);

TEST_P(ReducerTest, TheSumHasTheBitsOfTheRankOrder) {
  // Within a message, with data beside it, and above what one copy moves.
  for (const std::size_t count : {1, 7, 255, 256, 257, 5000, 70000}) {
    run_reduced(GetParam(), [&](Runtime& rt, Worker& worker) {
      const auto gradient = numbers(count, rt.worker_index(), count);
      std::vector<float> sum(count);
      auto round = worker.push_pull({{.key = 7, .push = gradient, .pull = sum}});
      DTR_ASSERT_OK(round);
      DTR_ASSERT_OK(worker.wait(*round, scaled(20s)));
      EXPECT_TRUE(same_bits(sum, sum_of_numbers(count, rt.workers(), count)));
    });
  }
}

TEST_P(ReducerTest, ManyKeysOfManySizesInOneRound) {
  run_reduced(GetParam(), [&](Runtime& rt, Worker& worker) {
    constexpr std::size_t kKeys = 150;  // more than a message names
    for (std::uint64_t seed = 0; seed < 3; ++seed) {
      std::vector<std::vector<float>> gradients(kKeys);
      std::vector<std::vector<float>> sums(kKeys);
      std::vector<PushPull> tensors;
      for (std::size_t key = 0; key < kKeys; ++key) {
        const std::size_t count = 1 + (key * key * 7) % 3000;
        gradients[key] = numbers(count, rt.worker_index(), seed + key);
        sums[key].resize(count);
        tensors.push_back({.key = key * 1000003, .push = gradients[key], .pull = sums[key]});
      }
      auto round = worker.push_pull(tensors);
      DTR_ASSERT_OK(round);
      DTR_ASSERT_OK(worker.wait(*round, scaled(20s)));
      for (std::size_t key = 0; key < kKeys; ++key) {
        ASSERT_TRUE(same_bits(sums[key], sum_of_numbers(sums[key].size(), rt.workers(), seed + key))) << "key " << key;
      }
    }
  });
}

TEST_P(ReducerTest, RoundsOverlapWithoutOverwriting) {
  run_reduced(GetParam(), [&](Runtime& rt, Worker& worker) {
    constexpr std::size_t kRounds = 60;
    constexpr std::size_t kCount = 3000;
    std::vector<std::vector<float>> gradients(kRounds);
    std::vector<std::vector<float>> sums(kRounds, std::vector<float>(kCount));
    std::vector<RoundHandle> rounds;
    for (std::size_t i = 0; i < kRounds; ++i) {
      gradients[i] = numbers(kCount, rt.worker_index(), i);
      auto round = worker.push_pull({{.key = 3, .push = gradients[i], .pull = sums[i]}});
      DTR_ASSERT_OK(round);
      rounds.push_back(*round);
    }
    for (std::size_t i = kRounds; i-- > 0;) {  // the last first: the order of waits does not matter
      DTR_ASSERT_OK(worker.wait(rounds[i], scaled(20s)));
      EXPECT_TRUE(same_bits(sums[i], sum_of_numbers(kCount, rt.workers(), i)));
    }
  });
}

TEST_P(ReducerTest, ALateWorkerIsWaitedFor) {
  run_reduced(GetParam(), [&](Runtime& rt, Worker& worker) {
    for (std::uint64_t i = 0; i < 4; ++i) {
      const bool late = static_cast<int>(i) % rt.workers() == rt.worker_index();
      if (late) std::this_thread::sleep_for(20ms);
      const auto gradient = numbers(600, rt.worker_index(), i);
      std::vector<float> sum(600);
      auto round = worker.push_pull({{.key = i % 2, .push = gradient, .pull = sum}});
      DTR_ASSERT_OK(round);
      DTR_ASSERT_OK(worker.wait(*round, scaled(20s)));
      EXPECT_TRUE(same_bits(sum, sum_of_numbers(600, rt.workers(), i)));
    }
  });
}

TEST_P(ReducerTest, CutTensorsHaveTheBitsOfWholeOnes) {
  constexpr std::size_t kCount = 300001;
  run_reduced(GetParam(),
              [&](Runtime& rt, Worker& worker) {
                for (std::uint64_t seed = 0; seed < 3; ++seed) {
                  const auto gradient = numbers(kCount, rt.worker_index(), seed);
                  std::vector<float> sum(kCount);
                  auto round = worker.push_pull({{.key = 99, .push = gradient, .pull = sum}});
                  DTR_ASSERT_OK(round);
                  DTR_ASSERT_OK(worker.wait(*round, scaled(20s)));
                  EXPECT_TRUE(same_bits(sum, sum_of_numbers(kCount, rt.workers(), seed)));
                }
              },
              {.split_bytes = 64 << 10});
}

}  // namespace
}  // namespace dtr
