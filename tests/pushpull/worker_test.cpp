// What a Worker promises beyond the sums: checks, waits, ends.
#include <thread>

#include "pushpull/job.hpp"

namespace dtr {
namespace {

using namespace testing;
using ::testing::HasSubstr;

Error error_of(const auto& result) { return result ? Error{.code = Errc::ok} : result.error(); }

TEST(WorkerTest, BadRoundsAreRefusedWithKeyAndSizesAndChangeNothing) {
  run_reduced({.workers = 1}, [](Runtime&, Worker& worker) {
    std::vector<float> a(1000, 1.0F);
    std::vector<float> b(2000, 1.0F);
    std::vector<float> out(1000);
    auto round = worker.push_pull({{.key = 7, .push = a, .pull = out}});
    DTR_ASSERT_OK(round);
    DTR_ASSERT_OK(worker.wait(*round, scaled(20s)));

    Error error = error_of(worker.push_pull({{.key = 7, .push = b, .pull = out}}));
    EXPECT_EQ(error.code, Errc::invalid_argument);
    EXPECT_THAT(error.message, HasSubstr("key 7 is pushed with 4000 bytes, this tensor has 8000"));
    EXPECT_EQ(error_of(worker.push_pull(std::span<const PushPull>())).code, Errc::invalid_argument);
    EXPECT_THAT(error_of(worker.push_pull({{.key = 5}})).message, HasSubstr("key 5 has nothing"));
    error = error_of(worker.push_pull({{.key = 8, .push = a}, {.key = 8, .push = a}}));
    EXPECT_THAT(error.message, HasSubstr("key 8 is pushed twice"));
    error = error_of(worker.push_pull({{.key = 8, .push = a, .pull = out}, {.key = 9, .push = b, .pull = out}}));
    EXPECT_EQ(error.code, Errc::overlap);
    EXPECT_THAT(error.message, AllOf(HasSubstr("key 8"), HasSubstr("key 9")));
    EXPECT_EQ(error_of(worker.wait({.round = 77})).code, Errc::stale_handle);

    // The round numbers go on as if nothing had been asked.
    round = worker.push_pull({{.key = 7, .push = a, .pull = out}});
    DTR_ASSERT_OK(round);
    DTR_EXPECT_OK(worker.wait(*round));
    DTR_EXPECT_OK(worker.wait(*round));  // again and again the same
  });
}

TEST(WorkerTest, UnboundKeysMayChangeTheirSize) {
  run_reduced({.workers = 2}, [](Runtime& rt, Worker& worker) {
    for (const std::size_t count : {1000, 4000, 500}) {
      const auto gradient = numbers(count, rt.worker_index());
      std::vector<float> sum(count);
      auto round = worker.push_pull({{.key = 7, .push = gradient, .pull = sum}});
      DTR_ASSERT_OK(round);
      DTR_ASSERT_OK(worker.wait(*round, scaled(20s)));
      EXPECT_TRUE(same_bits(sum, sum_of_numbers(count, 2)));
      const std::uint64_t key = 7;
      DTR_ASSERT_OK(worker.unbind(std::span(&key, 1)));
      EXPECT_EQ(error_of(worker.unbind(std::span(&key, 1))).code, Errc::not_found);
    }
  });
}

TEST(WorkerTest, AnotherTensorUnderAKnownKeyIsTheOneThatIsSent) {
  run_reduced({.workers = 1}, [](Runtime&, Worker& worker) {
    for (std::uint64_t seed = 0; seed < 4; ++seed) {
      const auto gradient = numbers(3000, 0, seed);
      std::vector<float> sum(3000);
      auto round = worker.push_pull({{.key = 7, .push = gradient, .pull = sum}});
      DTR_ASSERT_OK(round);
      DTR_ASSERT_OK(worker.wait(*round, scaled(20s)));
      EXPECT_TRUE(same_bits(sum, gradient));
    }
  });
}

TEST(WorkerTest, PushOnlyPullOnlyAndInPlaceAreRounds) {
  run_reduced({.workers = 2}, [](Runtime& rt, Worker& worker) {
    for (const std::size_t count : {10, 5000}) {
      auto gradient = numbers(count, rt.worker_index());
      std::vector<float> sum(count);
      // Worker 0 only pushes, worker 1 only pulls: it gets what worker 0 pushed.
      auto round = rt.worker_index() == 0 ? worker.push_pull({{.key = count, .push = gradient}})
                                          : worker.push_pull({{.key = count, .pull = sum}});
      DTR_ASSERT_OK(round);
      DTR_ASSERT_OK(worker.wait(*round, scaled(20s)));
      if (rt.worker_index() == 1) {
        EXPECT_TRUE(same_bits(sum, numbers(count, 0)));
      }
      round = worker.push_pull({{.key = count + 1, .push = gradient, .pull = gradient}});
      DTR_ASSERT_OK(round);
      DTR_ASSERT_OK(worker.wait(*round, scaled(20s)));
      EXPECT_TRUE(same_bits(gradient, sum_of_numbers(count, 2)));
    }
  });
}

TEST(WorkerTest, KeysThatDoNotFitTogetherFailAtEveryoneWithNames) {
  run_reduced({.workers = 2}, [](Runtime& rt, Worker& worker) {
    const bool first = rt.worker_index() == 0;
    std::vector<float> mine(first ? 1000 : 1200, 1.0F);
    std::vector<float> out(mine.size());
    auto round = worker.push_pull({{.key = 7, .push = mine, .pull = out}});
    DTR_ASSERT_OK(round);
    Error error = error_of(worker.wait(*round, scaled(20s)));
    EXPECT_EQ(error.code, Errc::invalid_argument);
    EXPECT_THAT(error.message, AllOf(HasSubstr("key 7"), HasSubstr("4000"), HasSubstr("4800")));
    DTR_ASSERT_OK(worker.quiesce(*round, scaled(20s)));

    round = worker.push_pull({{.key = first ? 1U : 2U, .push = mine}});
    DTR_ASSERT_OK(round);
    error = error_of(worker.wait(*round, scaled(20s)));
    EXPECT_EQ(error.code, Errc::invalid_argument);
    EXPECT_THAT(error.message, HasSubstr("did not list it"));
    DTR_ASSERT_OK(worker.quiesce(*round, scaled(20s)));

    round = worker.push_pull({{.key = 3, .pull = out}});
    DTR_ASSERT_OK(round);
    error = error_of(worker.wait(*round, scaled(20s)));
    EXPECT_EQ(error.code, Errc::not_found);
    DTR_ASSERT_OK(worker.quiesce(*round, scaled(20s)));

    const std::vector<std::byte> raw(4096);
    round = worker.push_pull({{.key = 4, .push = raw}});
    DTR_ASSERT_OK(round);
    EXPECT_EQ(error_of(worker.wait(*round, scaled(20s))).code, Errc::unsupported);
    DTR_ASSERT_OK(worker.quiesce(*round, scaled(20s)));
  });
}

TEST(WorkerTest, ATimeOutNamesTheServerAndTheRoundGoesOn) {
  run({.workers = 1}, [](Runtime& rt) {
    if (rt.is_server()) {
      value_or_throw(rt.allgather("late", {}, scaled(20s)));
      DTR_EXPECT_OK(Reducer(rt).serve(scaled(20s)));
      return;
    }
    const auto gradient = numbers(3000, 0);
    std::vector<float> sum(3000);
    Worker worker(rt);
    auto round = worker.push_pull({{.key = 1, .push = gradient, .pull = sum}});
    DTR_ASSERT_OK(round);
    const Error error = error_of(worker.wait(*round, 20ms));
    EXPECT_EQ(error.code, Errc::timed_out);
    EXPECT_EQ(error.peer, 1);
    EXPECT_THAT(error.message, HasSubstr("no answer from rank 1"));
    EXPECT_EQ(error_of(worker.trace(*round)).code, Errc::again);
    value_or_throw(rt.allgather("late", {}, scaled(20s)));
    DTR_EXPECT_OK(worker.wait(*round, scaled(20s)));
    EXPECT_TRUE(same_bits(sum, gradient));
  });
}

TEST(WorkerTest, ACancelledRoundEndsForItsWorkerAndFailsForTheOthers) {
  run_reduced({.workers = 2}, [](Runtime& rt, Worker& worker) {
    const auto gradient = numbers(3000, rt.worker_index());
    std::vector<float> sum(3000, -1.0F);
    if (rt.worker_index() == 0) {
      auto round = worker.push_pull({{.key = 1, .push = gradient, .pull = sum}});
      DTR_ASSERT_OK(round);
      DTR_ASSERT_OK(worker.cancel(*round));
      meet(rt, "cancelled");
      EXPECT_EQ(error_of(worker.wait(*round, scaled(20s))).code, Errc::cancelled);
      DTR_ASSERT_OK(worker.quiesce(*round, scaled(20s)));
    } else {
      meet(rt, "cancelled");  // with this worker's data the round could end before it is cancelled
      auto round = worker.push_pull({{.key = 1, .push = gradient, .pull = sum}});
      DTR_ASSERT_OK(round);
      const auto ended = worker.wait(*round, scaled(10s));  // summed if it had left, else cancelled by rank 0
      if (!ended) {
        EXPECT_THAT(ended.error().message, HasSubstr("rank 0"));
      }
      DTR_ASSERT_OK(worker.quiesce(*round, scaled(20s)));
    }
    auto round = worker.push_pull({{.key = 1, .push = gradient, .pull = sum}});
    DTR_ASSERT_OK(round);
    DTR_ASSERT_OK(worker.wait(*round, scaled(10s)));
    EXPECT_TRUE(same_bits(sum, sum_of_numbers(3000, 2)));
  });
}

TEST(WorkerTest, HandlesNameEachTensorBeforeAndAfterTheEnd) {
  run_reduced({.workers = 1, .servers = 2}, [](Runtime&, Worker& worker) {
    const auto a = numbers(3000, 0);
    std::vector<float> sum(3000);
    auto round = worker.push_pull({{.key = 0, .push = a, .pull = sum}, {.key = 1, .push = a}});
    DTR_ASSERT_OK(round);
    auto parts = worker.handles(*round);
    DTR_ASSERT_OK(parts);
    ASSERT_EQ(parts->size(), 3U);
    for (const RoundHandle& part : *parts) DTR_EXPECT_OK(worker.wait(part, scaled(20s)));
    DTR_ASSERT_OK(worker.wait(*round, scaled(20s)));
    EXPECT_EQ(worker.handles(*round)->size(), 3U);
    auto rows = worker.trace(*round);
    DTR_ASSERT_OK(rows);
    EXPECT_EQ(rows->size(), 2U);
    for (const RoundTrace& row : *rows) {
      EXPECT_LE(row.request_start, row.request_posted);
      EXPECT_LE(row.request_posted, row.request_received);
      EXPECT_LE(row.request_received, row.request_processed);
      EXPECT_LE(row.request_processed, row.response_start);
      EXPECT_LE(row.response_start, row.response_posted);
      EXPECT_LE(row.response_posted, row.response_received);
      EXPECT_LE(row.response_received, row.response_processed);
    }
  });
}

TEST(WorkerTest, TooManyOpenRoundsAreBusy) {
  run({.workers = 1}, [](Runtime& rt) {
    if (rt.is_server()) {
      value_or_throw(rt.allgather("later", {}, scaled(20s)));
      DTR_EXPECT_OK(Reducer(rt).serve(scaled(20s)));
      return;
    }
    const std::vector<float> gradient(100, 1.0F);
    Worker worker(rt, {.rounds = 4});
    for (int i = 0; i < 4; ++i) DTR_ASSERT_OK(worker.push_pull({{.key = 1, .push = gradient}}));
    const Error error = error_of(worker.push_pull({{.key = 1, .push = gradient}}));
    EXPECT_EQ(error.code, Errc::busy);
    EXPECT_THAT(error.message, HasSubstr("round 1 is still open"));
    value_or_throw(rt.allgather("later", {}, scaled(20s)));
    DTR_EXPECT_OK(worker.wait({.round = 4}, scaled(20s)));
    const auto next = worker.push_pull({{.key = 1, .push = gradient}});
    DTR_ASSERT_OK(next);
    DTR_EXPECT_OK(worker.wait(*next, scaled(20s)));
  });
}

TEST(WorkerTest, AServerThatEndsEarlyClosesTheRounds) {
  run({.workers = 1}, [](Runtime& rt) {
    if (rt.is_server()) {
      { const Reducer unused(rt); }
      value_or_throw(rt.allgather("over", {}, scaled(20s)));
      return;
    }
    const std::vector<float> gradient(3000, 1.0F);
    Worker worker(rt);
    auto round = worker.push_pull({{.key = 1, .push = gradient}});
    value_or_throw(rt.allgather("over", {}, scaled(20s)));
    // The hello may have come after the Reducer's end: then nobody answers.
    const Error error = round ? error_of(worker.wait(*round, scaled(500ms))) : round.error();
    EXPECT_THAT(error.code, ::testing::AnyOf(Errc::closed, Errc::timed_out)) << error.to_string();
  });
}

TEST(WorkerTest, SecondWorkersAndWrongRolesAreRefused) {
  run({.workers = 1}, [](Runtime& rt) {
    if (rt.is_server()) {
      EXPECT_THROW(Worker{rt}, Exception);
      DTR_EXPECT_OK(Reducer(rt).serve(scaled(20s)));
      return;
    }
    const Worker worker(rt);
    EXPECT_THROW(Worker{rt}, Exception);
    EXPECT_THROW((Worker{rt, {.group = 99}}), Exception);
    EXPECT_THROW(Reducer{rt}, Exception);
  });
}

TEST(WorkerTest, WorkersFollowEachOtherOnOneReducer) {
  run({.workers = 2}, [](Runtime& rt) {
    if (rt.is_server()) {
      Reducer reducer(rt);
      for (int i = 0; i < 3; ++i) DTR_EXPECT_OK(reducer.serve(scaled(20s)));
      return;
    }
    for (int i = 0; i < 3; ++i) {
      Worker worker(rt);
      const std::size_t count = 3000 + static_cast<std::size_t>(i);  // a new Worker's keys are new
      const auto gradient = numbers(count, rt.worker_index());
      std::vector<float> sum(count);
      auto round = worker.push_pull({{.key = 1, .push = gradient, .pull = sum}});
      DTR_ASSERT_OK(round);
      DTR_ASSERT_OK(worker.wait(*round, scaled(20s)));
      EXPECT_TRUE(same_bits(sum, sum_of_numbers(count, 2)));
    }
  });
}

}  // namespace
}  // namespace dtr
