// Many rounds of many keys, in another order at each worker, with memory that comes and goes; and the extreme sizes.
#include <algorithm>
#include <csignal>
#include <deque>
#include <random>
#include <thread>

#include <sys/wait.h>
#include <unistd.h>

#include "pushpull/job.hpp"

namespace dtr {
namespace {

using namespace testing;

class StressTest : public ::testing::TestWithParam<Job> {};

INSTANTIATE_TEST_SUITE_P(Ways, StressTest,
                         ::testing::Values(Job{.transport = "shm", .workers = 3, .servers = 2},
                                           Job{.transport = "tcp", .workers = 3, .servers = 2},
                                           Job{.transport = "shm", .workers = 3, .colocated = true}),
                         name_of);

/// What is in flight at one worker: the tensors of a round.
struct Flight {
  RoundHandle round{};
  std::uint64_t seed = 0;
  std::vector<std::uint64_t> keys{};
  std::vector<std::vector<float>> gradients{};
  std::vector<std::vector<float>> sums{};
};

/// Small, odd, and with data beside the message; fixed for each key.
std::size_t count_of(std::uint64_t key) {
  constexpr std::size_t kCounts[] = {1, 3, 255, 257, 1025, 4099, 33};
  return kCounts[key % std::size(kCounts)];
}

TEST_P(StressTest, EveryRoundOfManyHasItsOwnSums) {
  constexpr std::uint64_t kRounds = 1500;
  run_reduced(GetParam(), [](Runtime& rt, Worker& worker) {
    std::mt19937 random(static_cast<unsigned>(rt.worker_index()) + 1);  // another order at each worker
    std::deque<Flight> flights;
    const auto finish_one = [&] {
      const std::size_t at = random() % flights.size();
      Flight& flight = flights[at];
      DTR_ASSERT_OK(worker.wait(flight.round, scaled(30s)));
      for (std::size_t i = 0; i < flight.keys.size(); ++i) {
        ASSERT_TRUE(same_bits(
            flight.sums[i], sum_of_numbers(count_of(flight.keys[i]), rt.workers(), flight.seed * 31 + flight.keys[i])))
            << "round " << flight.seed << " key " << flight.keys[i];
      }
      for (auto& sum : flight.sums) DTR_EXPECT_OK(worker.forget(std::as_bytes(std::span(sum))));
      for (auto& gradient : flight.gradients) DTR_EXPECT_OK(worker.forget(std::as_bytes(std::span(gradient))));
      flights.erase(flights.begin() + static_cast<std::ptrdiff_t>(at));
    };
    for (std::uint64_t seed = 0; seed < kRounds && !::testing::Test::HasFatalFailure(); ++seed) {
      Flight& flight = flights.emplace_back();
      flight.seed = seed;
      for (std::uint64_t key = seed % 5; key < 14; key += 5) flight.keys.push_back(key);
      std::vector<PushPull> tensors;
      for (const std::uint64_t key : flight.keys) {
        flight.gradients.push_back(numbers(count_of(key), rt.worker_index(), seed * 31 + key));
        flight.sums.emplace_back(count_of(key));
      }
      for (std::size_t i = 0; i < flight.keys.size(); ++i) {
        tensors.push_back({.key = flight.keys[i], .push = flight.gradients[i], .pull = flight.sums[i]});
      }
      std::shuffle(tensors.begin(), tensors.end(), random);
      auto round = worker.push_pull(tensors, scaled(30s));
      DTR_ASSERT_OK(round);
      flight.round = *round;
      while (flights.size() > random() % 6) finish_one();
    }
    while (!flights.empty() && !::testing::Test::HasFatalFailure()) finish_one();
  });
}

TEST_P(StressTest, SixtyFourMebibytesAndOneElementInOneRound) {
  constexpr std::size_t kLarge = (64 << 20) / sizeof(float) + 1;
  run_reduced(GetParam(), [](Runtime& rt, Worker& worker) {
    if (rt.workers() > 2 && rt.worker_index() > 1) {  // two suffice for the data, all have to take part
      const std::vector<float> zeros(kLarge, 0.0F);
      const std::vector<float> one(1, 1.0F);
      auto round = worker.push_pull({{.key = 0, .push = zeros}, {.key = 1, .push = one}}, scaled(60s));
      DTR_ASSERT_OK(round);
      DTR_ASSERT_OK(worker.wait(*round, scaled(60s)));
      return;
    }
    std::vector<float> large(kLarge);
    for (std::size_t i = 0; i < kLarge; ++i) large[i] = static_cast<float>(i % 1000003);
    std::vector<float> sum(kLarge);
    const std::vector<float> one(1, 1.0F);
    std::vector<float> ones(1);
    auto round =
        worker.push_pull({{.key = 0, .push = large, .pull = sum}, {.key = 1, .push = one, .pull = ones}}, scaled(60s));
    DTR_ASSERT_OK(round);
    DTR_ASSERT_OK(worker.wait(*round, scaled(60s)));
    std::size_t wrong = 0;
    for (std::size_t i = 0; i < kLarge; ++i) wrong += sum[i] != 2 * large[i] ? 1 : 0;
    EXPECT_EQ(wrong, 0U);
    EXPECT_EQ(ones[0], 3.0F);
  });
}

/// What a child of fork gets; it reports by its exit code, for it has no test framework of its own.
int in_a_child(const std::function<bool()>& good) {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(good() ? 0 : 1);
  const Deadline patience(scaled(60s));
  while (!patience.passed()) {
    int status = 0;
    if (::waitpid(child, &status, WNOHANG) == child) return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
    std::this_thread::sleep_for(5ms);
  }
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  return 255;
}

TEST(ForkTest, CallsInTheChildSayForkedAndTheParentGoesOn) {
  run({.workers = 1}, [](Runtime& rt) {
    const auto forked = [](const auto& result) { return !result && result.error().code == Errc::forked; };
    if (rt.is_server()) {
      auto server = std::make_unique<Server>(rt);
      auto request = server->get_any(scaled(20s));
      DTR_ASSERT_OK(request);
      EXPECT_EQ(in_a_child([&] {
                  const bool all = forked(server->get_any(1s)) && forked(server->get_batch(1s)) &&
                                   forked(server->respond(request->handle)) && forked(server->flush(1s)) &&
                                   forked(server->fail_all({})) && forked(server->refuse(request->handle, {}));
                  server.reset();
                  return all;
                }),
                0);
      DTR_EXPECT_OK(server->respond(request->handle));
      EXPECT_EQ(server->get_any(scaled(20s)).error().code, Errc::closed);
      return;
    }
    const std::vector<float> mine(3000, 1.0F);
    auto worker = std::make_unique<Worker>(rt);
    auto round = worker->push_pull({{.key = 1, .push = mine}});
    DTR_ASSERT_OK(round);
    EXPECT_EQ(in_a_child([&] {
                const std::uint64_t key = 1;
                const bool all = forked(worker->push_pull({{.key = 1, .push = mine}})) &&
                                 forked(worker->wait(*round, 1s)) && forked(worker->done(*round)) &&
                                 forked(worker->cancel(*round)) && forked(worker->quiesce(*round, 1s, true)) &&
                                 forked(worker->handles(*round)) && forked(worker->trace(*round)) &&
                                 forked(worker->unbind(std::span(&key, 1))) &&
                                 forked(worker->forget(std::as_bytes(std::span(mine))));
                worker.reset();
                return all;
              }),
              0);
    DTR_EXPECT_OK(worker->wait(*round, scaled(20s)));
  });
}

}  // namespace
}  // namespace dtr
