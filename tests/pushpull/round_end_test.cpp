// How rounds end that do not go well: at their deadlines, by name, and with memory that is the caller's again.
#include <array>
#include <atomic>
#include <functional>
#include <thread>

#include "pushpull/job.hpp"

namespace dtr {
namespace {

using namespace testing;
using ::testing::HasSubstr;

Error error_of(const auto& result) { return result ? Error{.code = Errc::ok} : result.error(); }

constexpr std::size_t kCount = 50000;

/// Bounded, like every wait.
void wait_until(
    const std::atomic<bool>& sign, const std::function<void()>& meanwhile = [] {}) {
  const Deadline deadline(scaled(20s));
  while (!sign && !deadline.passed()) {
    meanwhile();
    std::this_thread::sleep_for(1ms);
  }
}

class RoundEndTest : public ::testing::TestWithParam<std::string> {
 protected:
  [[nodiscard]] Job job(int workers) const { return {.transport = GetParam(), .workers = workers, .servers = 1}; }

  /// Nobody makes progress but who waits: a rank that sleeps is as silent as a stopped one.
  [[nodiscard]] Job job_without_threads(int workers) const {
    Job made = job(workers);
    made.config = {{"progress.mode", "inline"}};
    return made;
  }
};

INSTANTIATE_TEST_SUITE_P(Ways, RoundEndTest, ::testing::Values("shm", "tcp"),
                         [](const auto& way) { return way.param; });

TEST_P(RoundEndTest, AtItsDeadlineARoundEndsAndItsMemoryIsNotWrittenAfterQuiesce) {
  std::atomic<bool> seen{false};
  run(job(1), [&](Runtime& rt) {
    if (rt.is_server()) {
      Server server(rt);
      auto request = server.get_any(scaled(20s));
      DTR_ASSERT_OK(request);
      seen = true;
      value_or_throw(rt.allgather("reused", {}, scaled(20s)));
      const std::vector<float> answer(kCount, 3.0F);
      DTR_EXPECT_OK(server.respond(request->handle, {answer}));  // too late: it goes nowhere
      DTR_EXPECT_OK(server.flush(scaled(10s)));
      value_or_throw(rt.allgather("answered", {}, scaled(20s)));
      request = server.get_any(scaled(20s));
      DTR_ASSERT_OK(request);
      DTR_EXPECT_OK(server.respond(request->handle, {answer}));
      EXPECT_EQ(error_of(server.get_any(scaled(20s))).code, Errc::closed);
      return;
    }
    std::vector<float> out(kCount, 1.0F);
    const std::vector<float> mine(kCount, 2.0F);
    Worker worker(rt);
    auto round = worker.push_pull({{.key = 1, .push = mine, .pull = out}}, 150ms);
    DTR_ASSERT_OK(round);
    wait_until(seen);  // nobody looks at the round meanwhile, so it has not ended
    const Error late = error_of(worker.wait(*round, scaled(20s)));
    EXPECT_EQ(late.code, Errc::timed_out);
    EXPECT_EQ(late.peer, 1);
    EXPECT_THAT(late.message, HasSubstr("until the deadline of the round"));
    EXPECT_TRUE(worker.done(*round).value());
    DTR_ASSERT_OK(worker.quiesce(*round, scaled(10s)));
    std::fill(out.begin(), out.end(), 7.0F);
    value_or_throw(rt.allgather("reused", {}, scaled(20s)));
    value_or_throw(rt.allgather("answered", {}, scaled(20s)));
    EXPECT_EQ(out, std::vector<float>(kCount, 7.0F));
    EXPECT_EQ(error_of(worker.wait(*round)).code, Errc::timed_out) << "again and again the same";
    round = worker.push_pull({{.key = 1, .push = mine, .pull = out}});
    DTR_ASSERT_OK(round);
    DTR_ASSERT_OK(worker.wait(*round, scaled(20s)));
    EXPECT_EQ(out, std::vector<float>(kCount, 3.0F));
  });
}

TEST_P(RoundEndTest, TensorsAreTakenBackByForceFromAServerThatIsSilent) {
  std::atomic<bool> seen{false};
  std::atomic<bool> reused{false};
  run(job_without_threads(1), [&](Runtime& rt) {
    const std::vector<float> answer(kCount, 3.0F);
    if (rt.is_server()) {
      Server server(rt);
      for (int i = 0; i < 2; ++i) {
        auto request = server.get_any(scaled(20s));
        DTR_ASSERT_OK(request);
        if (i == 1) {
          seen = true;
          wait_until(reused);
        }
        DTR_EXPECT_OK(server.respond(request->handle, {answer}));
      }
      static_cast<void>(server.flush(scaled(10s)));
      value_or_throw(rt.allgather("answered", {}, scaled(20s)));
      return;
    }
    std::vector<float> out(kCount);
    const std::vector<float> mine(kCount, 2.0F);
    Worker worker(rt);
    auto round = worker.push_pull({{.key = 1, .push = mine, .pull = out}});
    DTR_ASSERT_OK(round);
    DTR_ASSERT_OK(worker.wait(*round, scaled(20s)));
    round = worker.push_pull({{.key = 1, .push = mine, .pull = out}}, 300ms);
    DTR_ASSERT_OK(round);
    wait_until(seen, [&] { rt.progress(); });
    EXPECT_EQ(error_of(worker.wait(*round, scaled(20s))).code, Errc::timed_out);
    EXPECT_EQ(error_of(worker.quiesce(*round, 100ms)).code, Errc::busy) << "nobody has said that it will not write";
    DTR_ASSERT_OK(worker.quiesce(*round, scaled(2s), true));
    std::fill(out.begin(), out.end(), 7.0F);
    reused = true;
    value_or_throw(rt.allgather("answered", {}, scaled(20s)));
    EXPECT_EQ(out, std::vector<float>(kCount, 7.0F));
  });
}

TEST_P(RoundEndTest, AReducerEndsARoundAndNamesTheWorkerThatDidNotCome) {
  run_reduced(job(2), [](Runtime& rt, Worker& worker) {
    std::vector<float> out(kCount);
    const auto mine = numbers(kCount, rt.worker_index());
    if (rt.worker_index() == 0) {
      auto round = worker.push_pull({{.key = 1, .push = mine, .pull = out}}, scaled(400ms));
      DTR_ASSERT_OK(round);
      const Error error = error_of(worker.wait(*round, scaled(20s)));
      EXPECT_EQ(error.code, Errc::timed_out) << error.to_string();
      DTR_ASSERT_OK(worker.quiesce(*round, scaled(20s)));
      meet(rt, "late");
      // Not the server's fault, if that could say so before our own deadline.
      if (error.message.find("deadline of the round") == std::string::npos) {
        EXPECT_EQ(error.peer, 1);
        EXPECT_THAT(error.message, HasSubstr("no part of the round came from rank 1"));
      }
    } else {
      meet(rt, "late");
      auto round = worker.push_pull({{.key = 1, .push = mine, .pull = out}});
      DTR_ASSERT_OK(round);
      // It ends with the reducer's word, or well if rank 0 was the first to give up: its data are there.
      const auto ended = worker.wait(*round, scaled(20s));
      if (!ended) {
        EXPECT_THAT(ended.error().code, ::testing::AnyOf(Errc::timed_out, Errc::cancelled));
      }
      EXPECT_TRUE(!ended || same_bits(out, sum_of_numbers(kCount, 2)));
      DTR_ASSERT_OK(worker.quiesce(*round, scaled(20s)));
    }
    auto round = worker.push_pull({{.key = 1, .push = mine, .pull = out}});
    DTR_ASSERT_OK(round);
    DTR_ASSERT_OK(worker.wait(*round, scaled(20s)));
    EXPECT_TRUE(same_bits(out, sum_of_numbers(kCount, 2)));
  });
}

TEST_P(RoundEndTest, GetBatchEndsARoundOfTooFewWorkersAndGoesOnWithTheNext) {
  run(job(2), [](Runtime& rt) {
    if (rt.is_server()) {
      Server server(rt);
      Result<std::vector<Request>> batch = server.get_batch(scaled(20s));
      DTR_ASSERT_OK(batch);
      for (const Request& request : *batch) DTR_EXPECT_OK(server.respond(request.handle));
      batch = server.get_batch(scaled(20s));
      ASSERT_FALSE(batch);
      if (batch.error().code == Errc::cancelled) {  // rank 0's own deadline came first: then it is rank 0's doing
        EXPECT_EQ(batch.error().peer, 0) << batch.error().to_string();
      } else {
        EXPECT_EQ(batch.error().code, Errc::timed_out);
        EXPECT_THAT(batch.error().message, HasSubstr("no request from rank 1"));
      }
      value_or_throw(rt.allgather("late", {}, scaled(20s)));
      for (int i = 0; i < 3; ++i) {
        batch = server.get_batch(scaled(20s));
        DTR_ASSERT_OK(batch);
        for (const Request& request : *batch) {
          EXPECT_EQ(request.round, static_cast<std::uint64_t>(i + 2));
          DTR_EXPECT_OK(server.respond(request.handle));
        }
      }
      EXPECT_EQ(error_of(server.get_batch(scaled(20s))).code, Errc::closed);
      return;
    }
    const std::vector<float> mine(kCount, 2.0F);
    Worker worker(rt);
    auto first = worker.push_pull({{.key = 1, .push = mine}});
    DTR_ASSERT_OK(first);
    DTR_ASSERT_OK(worker.wait(*first, scaled(20s)));
    if (rt.rank() == 0) {
      auto round = worker.push_pull({{.key = 1, .push = mine}}, scaled(1s));
      DTR_ASSERT_OK(round);
      EXPECT_EQ(error_of(worker.wait(*round, scaled(20s))).code, Errc::timed_out);
    }
    value_or_throw(rt.allgather("late", {}, scaled(20s)));
    if (rt.rank() == 1) {
      auto round = worker.push_pull({{.key = 1, .push = mine}});
      DTR_ASSERT_OK(round);
      EXPECT_THAT(error_of(worker.wait(*round, scaled(20s))).code, ::testing::AnyOf(Errc::timed_out, Errc::cancelled));
    }
    for (int i = 0; i < 3; ++i) {
      auto round = worker.push_pull({{.key = 1, .push = mine}});
      DTR_ASSERT_OK(round);
      DTR_EXPECT_OK(worker.wait(*round, scaled(20s)));
    }
  });
}

TEST_P(RoundEndTest, ACancelledRoundDoesNotHoldUpTheBatchesAfterIt) {
  run(job(2), [](Runtime& rt) {
    if (rt.is_server()) {
      Server server(rt);
      int good = 0;
      while (true) {
        auto batch = server.get_batch(scaled(20s));
        if (!batch && batch.error().code == Errc::closed) break;
        if (!batch) {
          ASSERT_EQ(batch.error().code, Errc::cancelled) << batch.error().to_string();
          EXPECT_EQ(batch.error().peer, 0);
          continue;
        }
        ++good;
        for (const Request& request : *batch) DTR_EXPECT_OK(server.respond(request.handle));
      }
      EXPECT_GE(good, 3);
      return;
    }
    const std::vector<float> mine(kCount, 2.0F);
    Worker worker(rt, {.rounds = 16});
    // Rank 0 gives up what waits here for a slot, so that an empty part goes out before rank 1 has sent its own.
    std::vector<RoundHandle> rounds;
    if (rt.rank() == 1) meet(rt, "cancelled");
    for (int i = 0; i < 6; ++i) {
      auto round = worker.push_pull({{.key = 1, .push = mine}});
      DTR_ASSERT_OK(round);
      rounds.push_back(*round);
    }
    if (rt.rank() == 0) {
      for (int i = 3; i < 6; ++i) DTR_EXPECT_OK(worker.cancel(rounds[static_cast<std::size_t>(i)]));
      meet(rt, "cancelled");
    }
    for (int i = 0; i < 3; ++i) DTR_EXPECT_OK(worker.wait(rounds[static_cast<std::size_t>(i)], scaled(20s)));
    for (int i = 3; i < 6; ++i) {
      EXPECT_EQ(error_of(worker.wait(rounds[static_cast<std::size_t>(i)], scaled(20s))).code, Errc::cancelled);
    }
    auto round = worker.push_pull({{.key = 1, .push = mine}});
    DTR_ASSERT_OK(round);
    DTR_EXPECT_OK(worker.wait(*round, scaled(20s)));
  });
}

TEST_P(RoundEndTest, FailAllEndsOpenAndLaterRoundsOfEverybodyWithItsError) {
  run(job(2), [](Runtime& rt) {
    if (rt.is_server()) {
      Server server(rt);
      auto batch = server.get_batch(scaled(20s));
      DTR_ASSERT_OK(batch);
      DTR_EXPECT_OK(server.fail_all({.code = Errc::no_space, .message = "the disk is full"}));
      const std::vector<float> answer(kCount, 3.0F);
      EXPECT_EQ(error_of(server.respond(batch->front().handle, {answer})).code, Errc::stale_handle);
      value_or_throw(rt.allgather("failed", {}, scaled(20s)));
      return;
    }
    std::vector<float> out(kCount, 1.0F);
    Worker worker(rt);
    auto round = worker.push_pull({{.key = 1, .pull = out}});
    DTR_ASSERT_OK(round);
    const Error error = error_of(worker.wait(*round, scaled(20s)));
    EXPECT_EQ(error.code, Errc::no_space);
    EXPECT_THAT(error.message, HasSubstr("the disk is full"));
    DTR_EXPECT_OK(worker.quiesce(*round, scaled(10s)));
    EXPECT_EQ(error_of(worker.push_pull({{.key = 1, .pull = out}})).code, Errc::no_space);
    EXPECT_EQ(out, std::vector<float>(kCount, 1.0F));
    value_or_throw(rt.allgather("failed", {}, scaled(20s)));
  });
}

TEST_P(RoundEndTest, MemoryOfAnOpenRoundIsRefusedToAnotherAndToForget) {
  run(job(1), [](Runtime& rt) {
    if (rt.is_server()) {
      value_or_throw(rt.allgather("go", {}, scaled(20s)));
      DTR_EXPECT_OK(Reducer(rt).serve(scaled(20s)));
      return;
    }
    std::vector<float> out(kCount, 1.0F);
    Worker worker(rt);
    auto round = worker.push_pull({{.key = 1, .push = out, .pull = out}});
    DTR_ASSERT_OK(round);
    // Half of it and beyond: neither the same tensor nor inside of it.
    const std::span<float> half = std::span(out).subspan(kCount / 2);
    EXPECT_EQ(error_of(worker.forget(std::as_bytes(half))).code, Errc::busy);
    const std::uint64_t key = 1;
    EXPECT_EQ(error_of(worker.unbind(std::span(&key, 1))).code, Errc::busy);
    value_or_throw(rt.allgather("go", {}, scaled(20s)));
    DTR_ASSERT_OK(worker.wait(*round, scaled(20s)));
    DTR_EXPECT_OK(worker.forget(std::as_bytes(std::span(out))));
  });
}

}  // namespace
}  // namespace dtr
