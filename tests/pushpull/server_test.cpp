// A program's own Server: batches by number, answers to the right worker, both routes.
#include <thread>

#include "pushpull/job.hpp"

namespace dtr {
namespace {

using namespace testing;
using ::testing::HasSubstr;

/// Serves batches by answering every pull of a key with the pushes of this worker times its rank + 2.
void scale_batches(Runtime& rt) {
  Server server(rt);
  std::uint64_t expected = 0;
  while (true) {
    auto batch = server.get_batch(scaled(20s));
    if (!batch) {
      EXPECT_EQ(batch.error().code, Errc::closed) << batch.error().to_string();
      return;
    }
    ASSERT_EQ(batch->size(), static_cast<std::size_t>(rt.workers()));
    std::vector<std::vector<float>> answers(batch->size());
    for (std::size_t w = 0; w < batch->size(); ++w) {
      const Request& request = (*batch)[w];
      EXPECT_EQ(request.worker, rt.worker_rank(static_cast<int>(w)));
      EXPECT_EQ(request.round, expected);
      const auto pushed = request.pushes.at(0).as<float>();
      EXPECT_EQ(request.pushes.at(0).dtype, DType::f32);
      for (const float value : pushed) answers[w].push_back(value * static_cast<float>(request.worker + 2));
      EXPECT_EQ(request.pulls.at(0).bytes, answers[w].size() * sizeof(float));
    }
    for (std::size_t w = batch->size(); w-- > 0;) DTR_EXPECT_OK(server.respond((*batch)[w].handle, {answers[w]}));
    EXPECT_EQ(server.respond((*batch)[0].handle, {answers[0]}).error().code, Errc::stale_handle);
    DTR_EXPECT_OK(server.flush(scaled(10s)));  // the answers go with this turn of the loop
    ++expected;
  }
}

/// Where server and worker do not share the one thread of a rank.
class SeparateServerTest : public ::testing::TestWithParam<Job> {};

std::vector<Job> separate_ways() {
  std::vector<Job> ways = all_ways();
  std::erase_if(ways, [](const Job& job) { return job.colocated; });
  return ways;
}

INSTANTIATE_TEST_SUITE_P(Ways, SeparateServerTest, ::testing::ValuesIn(separate_ways()), name_of);

TEST_P(SeparateServerTest, BatchesAreMatchedByNumberAndAnsweredEachToItsWorker) {
  Job job = GetParam();
  job.servers = 1;
  run(job, [](Runtime& rt) {
    if (rt.is_server()) return scale_batches(rt);
    Worker worker(rt);
    constexpr std::size_t kRounds = 30;
    std::vector<std::vector<float>> pushed;
    std::vector<std::vector<float>> pulled;
    std::vector<RoundHandle> rounds;
    for (std::size_t i = 0; i < kRounds; ++i) {
      const std::size_t count = i % 2 == 0 ? 100 : 5000;
      pushed.push_back(numbers(count, rt.worker_index(), i));
      pulled.emplace_back(count);
    }
    for (std::size_t i = 0; i < kRounds; ++i) {
      if (rt.worker_index() == 1 && i % 7 == 0) std::this_thread::sleep_for(3ms);
      auto round = worker.push_pull({{.key = i % 2, .push = pushed[i], .pull = pulled[i]}});
      DTR_ASSERT_OK(round);
      rounds.push_back(*round);
    }
    for (std::size_t i = 0; i < kRounds; ++i) {
      DTR_ASSERT_OK(worker.wait(rounds[i], scaled(20s)));
      for (float& value : pushed[i]) value *= static_cast<float>(rt.rank() + 2);
      EXPECT_TRUE(same_bits(pulled[i], pushed[i]));
    }
  });
}

TEST(OwnServerTest, BroadcastGivesEveryServerThePushAndPullsServerByServer) {
  run({.workers = 2, .servers = 2}, [](Runtime& rt) {
    if (rt.is_server()) {
      Server server(rt);
      while (true) {
        auto request = server.get_any(scaled(20s));
        if (!request) {
          EXPECT_EQ(request.error().code, Errc::closed);
          return;
        }
        ASSERT_EQ(request->pushes.size(), 1U);
        ASSERT_EQ(request->pulls.size(), 1U);
        std::vector<float> answer;
        for (const float value : request->pushes[0].as<float>()) {
          answer.push_back(value + static_cast<float>(rt.server_index() + 1));
        }
        DTR_EXPECT_OK(server.respond(request->handle, {answer}));
        DTR_EXPECT_OK(server.flush(scaled(5s)));
      }
    }
    Worker worker(rt, {.route = Route::broadcast});
    const std::vector<float> mine(2000, static_cast<float>(rt.rank()));
    std::vector<float> one(2000);
    std::vector<float> two(2000);
    const std::vector<PushView> pushes{mine};
    const std::vector<std::uint64_t> push_keys{5};
    const std::vector<PullView> pulls{one, two};
    const std::vector<std::uint64_t> pull_keys{6, 6};
    auto round = worker.push_pull(pushes, push_keys, pulls, pull_keys);
    DTR_ASSERT_OK(round);
    DTR_ASSERT_OK(worker.wait(*round, scaled(10s)));
    EXPECT_EQ(one, std::vector<float>(2000, static_cast<float>(rt.rank() + 1)));
    EXPECT_EQ(two, std::vector<float>(2000, static_cast<float>(rt.rank() + 2)));
    const auto uneven = worker.push_pull(pushes, push_keys, std::span(pulls).first(1), std::span(pull_keys).first(1));
    ASSERT_FALSE(uneven);
    EXPECT_EQ(uneven.error().code, Errc::invalid_argument);
    EXPECT_THAT(uneven.error().message, HasSubstr("1 pull tensors cannot be shared by 2 servers"));
  });
}

TEST(OwnServerTest, AnswersOfTheWrongSizeAreRefusedAndMayBeRepeated) {
  run({.workers = 1}, [](Runtime& rt) {
    if (rt.is_server()) {
      Server server(rt);
      auto batch = server.get_batch(scaled(20s));
      DTR_ASSERT_OK(batch);
      const std::vector<float> wrong(3);
      const auto refused = server.respond(batch->front().handle, {wrong});
      ASSERT_FALSE(refused);
      EXPECT_THAT(refused.error().message, HasSubstr("key 1 is pulled with 8000 bytes, the answer has 12"));
      EXPECT_THAT(server.respond(batch->front().handle).error().message, HasSubstr("0 tensors answer 1 pulls"));
      const std::vector<float> right(2000, 4.0F);
      const RequestHandle handle = batch->front().handle;
      const PushView view(right);
      DTR_EXPECT_OK(server.respond_vec(view, std::span(&view, 1), std::span(&handle, 1)));
      batch = server.get_batch(scaled(20s));
      DTR_ASSERT_OK(batch);
      DTR_EXPECT_OK(server.refuse(batch->front().handle, {.code = Errc::no_space, .message = "not today"}));
      EXPECT_EQ(server.get_batch(scaled(20s)).error().code, Errc::closed);
      return;
    }
    std::vector<float> out(2000);
    Worker worker(rt);
    auto round = worker.push_pull({{.key = 1, .pull = out}});
    DTR_ASSERT_OK(round);
    DTR_ASSERT_OK(worker.wait(*round, scaled(10s)));
    EXPECT_EQ(out.back(), 4.0F);
    round = worker.push_pull({{.key = 1, .pull = out}});
    DTR_ASSERT_OK(round);
    const auto ended = worker.wait(*round, scaled(10s));
    ASSERT_FALSE(ended);
    EXPECT_EQ(ended.error().code, Errc::no_space);
    EXPECT_EQ(ended.error().message, "not today");
  });
}

TEST(OwnServerTest, ATimeOutNamesTheWorkersThatDidNotCome) {
  run({.workers = 2}, [](Runtime& rt) {
    if (rt.is_server()) {
      Server server(rt);
      const auto late = server.get_batch(scaled(200ms));
      ASSERT_FALSE(late);
      EXPECT_EQ(late.error().code, Errc::timed_out);
      EXPECT_THAT(late.error().message, HasSubstr("rank 1"));
      value_or_throw(rt.allgather("go", {}, scaled(20s)));
      auto batch = server.get_batch(scaled(20s));
      DTR_ASSERT_OK(batch);
      for (const Request& request : *batch) DTR_EXPECT_OK(server.respond(request.handle));
      EXPECT_EQ(server.get_batch(scaled(20s)).error().code, Errc::closed);
      return;
    }
    const std::vector<float> mine(10, 1.0F);
    Worker worker(rt);
    std::optional<RoundHandle> round;
    if (rt.rank() == 0) round = value_or_throw(worker.push_pull({{.key = 1, .push = mine}}));
    value_or_throw(rt.allgather("go", {}, scaled(20s)));
    if (rt.rank() == 1) round = value_or_throw(worker.push_pull({{.key = 1, .push = mine}}));
    DTR_EXPECT_OK(worker.wait(*round, scaled(20s)));
  });
}

}  // namespace
}  // namespace dtr
