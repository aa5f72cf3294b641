// register_recv_buffer: pushes land where the server wants them, and nowhere else.
#include <array>

#include "pushpull/job.hpp"

namespace dtr {
namespace {

using namespace testing;
using ::testing::HasSubstr;

Error error_of(const auto& result) { return result ? Error{.code = Errc::ok} : result.error(); }

class ReceiveBufferTest : public ::testing::TestWithParam<Job> {};

INSTANTIATE_TEST_SUITE_P(Ways, ReceiveBufferTest,
                         ::testing::Values(Job{.transport = "shm", .workers = 2}, Job{.transport = "tcp", .workers = 2},
                                           Job{.transport = "shm", .workers = 2, .config = {{"shm.cma", "off"}}}),
                         name_of);

constexpr std::array<int, 2> kRanks{0, 1};
constexpr std::array<std::uint64_t, 2> kKeys{7, 7};

/// One batch: where did the pushes of key 7 land?
void serve_one(Server& server, const std::vector<float>* buffer, std::size_t count, std::uint64_t seed) {
  auto batch = server.get_batch(scaled(20s));
  DTR_ASSERT_OK(batch);
  for (std::size_t w = 0; w < batch->size(); ++w) {
    const Request& request = (*batch)[w];
    ASSERT_EQ(request.pushes.size(), 1U);
    const auto pushed = request.pushes[0].as<float>();
    EXPECT_TRUE(same_bits({pushed.begin(), pushed.end()}, numbers(count, static_cast<int>(w), seed)));
    if (buffer != nullptr) {
      EXPECT_EQ(pushed.data(), buffer->data() + w * (buffer->size() / kRanks.size())) << "not in its chunk";
    }
    DTR_EXPECT_OK(server.respond(request.handle));
  }
}

TEST_P(ReceiveBufferTest, ChunkIHoldsWhatRankIPushesUnderKeyI) {
  for (const std::size_t count : {1, 200, 5000, 70001}) {
    run(GetParam(), [&](Runtime& rt) {
      constexpr std::uint64_t kRounds = 6;
      if (rt.is_server()) {
        std::vector<float> buffer(2 * count);
        Server server(rt);
        DTR_ASSERT_OK(server.register_recv_buffer(buffer, kRanks, kKeys));
        value_or_throw(rt.allgather("registered", {}, scaled(20s)));
        for (std::uint64_t i = 0; i < kRounds; ++i) serve_one(server, &buffer, count, i);
        EXPECT_EQ(error_of(server.get_batch(scaled(20s))).code, Errc::closed);
        EXPECT_TRUE(same_bits({buffer.begin(), buffer.begin() + static_cast<std::ptrdiff_t>(count)},
                              numbers(count, 0, kRounds - 1)));
        return;
      }
      Worker worker(rt);
      value_or_throw(rt.allgather("registered", {}, scaled(20s)));
      for (std::uint64_t i = 0; i < kRounds; ++i) {
        const auto mine = numbers(count, rt.worker_index(), i);
        auto round = worker.push_pull({{.key = 7, .push = mine}});
        DTR_ASSERT_OK(round);
        DTR_ASSERT_OK(worker.wait(*round, scaled(20s)));
      }
    });
  }
}

TEST_P(ReceiveBufferTest, ItMayComeAfterTheFirstPushAndGoAgain) {
  constexpr std::size_t kCount = 5000;
  run(GetParam(), [&](Runtime& rt) {
    if (rt.is_server()) {
      std::vector<float> buffer(2 * kCount);
      Server server(rt);
      serve_one(server, nullptr, kCount, 0);
      for (std::uint64_t cycle = 0; cycle < 5; ++cycle) {
        DTR_ASSERT_OK(server.register_recv_buffer(buffer, kRanks, kKeys));
        value_or_throw(rt.allgather("registered", {}, scaled(20s)));
        serve_one(server, nullptr, kCount, 1);  // it may have been on its way to the old place
        serve_one(server, &buffer, kCount, 2);
        DTR_ASSERT_OK(server.unregister_recv_buffer(buffer, scaled(10s)));
        std::fill(buffer.begin(), buffer.end(), -1.0F);
        value_or_throw(rt.allgather("gone", {}, scaled(20s)));
        serve_one(server, nullptr, kCount, 3);
        EXPECT_EQ(buffer, std::vector<float>(2 * kCount, -1.0F)) << "it is the caller's again";
      }
      EXPECT_EQ(error_of(server.get_batch(scaled(20s))).code, Errc::closed);
      return;
    }
    Worker worker(rt);
    const auto push = [&](std::uint64_t seed) {
      const auto mine = numbers(kCount, rt.worker_index(), seed);
      auto round = worker.push_pull({{.key = 7, .push = mine}});
      DTR_ASSERT_OK(round);
      DTR_ASSERT_OK(worker.wait(*round, scaled(20s)));
    };
    push(0);
    for (std::uint64_t cycle = 0; cycle < 5; ++cycle) {
      value_or_throw(rt.allgather("registered", {}, scaled(20s)));
      push(1);
      push(2);
      value_or_throw(rt.allgather("gone", {}, scaled(20s)));
      push(3);
    }
  });
}

TEST_P(ReceiveBufferTest, ASecondPushWaitsUntilTheFirstIsAnswered) {
  constexpr std::size_t kCount = 5000;
  Job job = GetParam();
  job.workers = 1;
  run(job, [&](Runtime& rt) {
    constexpr std::uint64_t kRounds = 8;
    if (rt.is_server()) {
      std::vector<float> buffer(kCount);
      Server server(rt);
      DTR_ASSERT_OK(server.register_recv_buffer(buffer, std::span(kRanks).first(1), std::span(kKeys).first(1)));
      value_or_throw(rt.allgather("registered", {}, scaled(20s)));
      for (std::uint64_t i = 0; i < kRounds; ++i) {
        auto batch = server.get_batch(scaled(20s));
        DTR_ASSERT_OK(batch);
        EXPECT_EQ(error_of(server.unregister_recv_buffer(buffer, 1ms)).code, Errc::busy) << "a request is there";
        EXPECT_TRUE(same_bits(buffer, numbers(kCount, 0, i)));
        DTR_EXPECT_OK(server.respond(batch->front().handle));
        if (i + 1 == kRounds) break;
        DTR_EXPECT_OK(server.unregister_recv_buffer(buffer, scaled(10s)));
        DTR_ASSERT_OK(server.register_recv_buffer(buffer, std::span(kRanks).first(1), std::span(kKeys).first(1)));
        value_or_throw(rt.allgather("next", {}, scaled(20s)));
      }
      return;
    }
    Worker worker(rt);
    value_or_throw(rt.allgather("registered", {}, scaled(20s)));
    for (std::uint64_t i = 0; i < kRounds; ++i) {
      const auto mine = numbers(kCount, 0, i);
      auto round = worker.push_pull({{.key = 7, .push = mine}});
      DTR_ASSERT_OK(round);
      DTR_ASSERT_OK(worker.wait(*round, scaled(20s)));
      if (i + 1 < kRounds) value_or_throw(rt.allgather("next", {}, scaled(20s)));
    }
  });
}

TEST(ReceiveBufferErrorTest, BadBuffersAreRefusedWithAReason) {
  run({.workers = 2}, [](Runtime& rt) {
    if (rt.is_worker()) {
      value_or_throw(rt.allgather("registered", {}, scaled(20s)));
      const std::vector<float> large(4000, 1.0F);
      Worker worker(rt);
      auto round = worker.push_pull({{.key = 7, .push = large}});
      DTR_ASSERT_OK(round);
      const Error error = error_of(worker.wait(*round, scaled(20s)));
      EXPECT_EQ(error.code, Errc::invalid_argument) << error.to_string();
      EXPECT_THAT(error.message, HasSubstr("registered buffer has 8000"));
      return;
    }
    std::vector<float> buffer(4000);
    Server server(rt);
    const std::array<int, 2> strangers{0, 2};
    const std::array<std::uint64_t, 2> other_keys{8, 8};
    EXPECT_THAT(error_of(server.register_recv_buffer(buffer, strangers, kKeys)).message, HasSubstr("rank 2"));
    EXPECT_EQ(error_of(server.register_recv_buffer(buffer, kRanks, std::span(kKeys).first(1))).code,
              Errc::invalid_argument);
    std::vector<std::byte> odd(9);
    EXPECT_THAT(error_of(server.register_recv_buffer(odd, kRanks, kKeys)).message, HasSubstr("9 bytes cannot be cut"));
    EXPECT_EQ(error_of(server.unregister_recv_buffer(buffer)).code, Errc::not_found);
    DTR_EXPECT_OK(server.register_recv_buffer(buffer, kRanks, kKeys));
    std::vector<float> another(4000);
    EXPECT_EQ(error_of(server.register_recv_buffer(another, kRanks, kKeys)).code, Errc::already_exists);
    EXPECT_EQ(error_of(server.register_recv_buffer(std::span(buffer).first(100), kRanks, other_keys)).code,
              Errc::overlap);
    value_or_throw(rt.allgather("registered", {}, scaled(20s)));
    while (true) {  // until the workers have been told of their mistake
      auto batch = server.get_batch(scaled(20s));
      if (!batch && batch.error().code == Errc::closed) break;
    }
  });
}

}  // namespace
}  // namespace dtr
