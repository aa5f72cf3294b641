// What is left of an earlier Worker of a rank when the next one comes.

#include <algorithm>
#include <vector>

#include "dtr/pushpull/detail/route.hpp"
#include "dtr/pushpull/detail/wire.hpp"
#include "pushpull/job.hpp"
#include "pushpull/mouth.hpp"
#include "support/bytes_of.hpp"

namespace dtr {
namespace {

using namespace testing;
using namespace pushpull;

constexpr std::uint64_t kKey = 1;
constexpr std::uint64_t kBytes = 64 * 1024;

TEST(SessionTest, SlotsThatAreStillReadWhenTheNextWorkerComesAreUsedAgainAfterwards) {
  constexpr std::uint32_t kSessions = 4;
  run({.transport = "shm", .workers = 2}, [](Runtime& rt) {
    const auto together = [&](const char* where) { value_or_throw(rt.allgather(where, {}, scaled(20s))); };
    if (rt.is_server()) {
      Server server(rt);
      together("open");
      for (std::uint32_t session = 1; session <= kSessions; ++session) {
        const auto request = server.get_any(scaled(20s));
        DTR_ASSERT_OK(request);
        together("the server reads it");
        together("the next worker is here");
        static_cast<void>(server.respond(request->handle));  // nobody waits for it any more
        together("answered");
      }
      return;
    }
    together("open");
    if (rt.rank() == 1) {  // has no Worker yet, so that the server goes on
      for (std::uint32_t session = 1; session <= kSessions; ++session) {
        together("the server reads it");
        together("the next worker is here");
        together("answered");
      }
      return;
    }
    Mouth mouth(rt, "pushpull worker", "pushpull server");
    std::vector<std::uint32_t> slots;
    mouth.say_hello(2, 1);
    for (std::uint32_t session = 1; session <= kSessions; ++session) {
      mouth.say(2, bytes_of(Bind{.head = {.kind = Kind::bind, .epoch = session}, .key = kKey, .bytes = kBytes}));
      const auto bound = front<Bound>(mouth.hear(Kind::bound));
      ASSERT_TRUE(bound);
      slots.push_back(bound->slot);
      const Round round{.head = {.kind = Kind::round, .epoch = session},
                        .fragments = 1,
                        .pushes = 1,
                        .patience_ns = std::chrono::nanoseconds(scaled(20s)).count()};
      const PushEntry push{.key = kKey, .bytes = kBytes, .total = kBytes, .slot = bound->slot, .dtype = 1};
      mouth.say(2, bytes_of(round, push));
      together("the server reads it");
      mouth.say_bye(2, session, 1);
      mouth.say_hello(2, session + 1);
      together("the next worker is here");
      together("answered");
    }
    mouth.say_bye(2, kSessions + 1, 0);
    EXPECT_THAT(slots, ::testing::Each(slots.front()));
  });
}

// Rank 0 leaves without knowing that its puts have ended, four times with an open round that was pushed in place: the
// copies are nobody's once rank 1 has completed those rounds.
TEST(SessionTest, CopiesForAWorkerThatLeftUncleanlyGoWithTheRoundTheyWereFor) {
  constexpr std::uint32_t kSessions = 4;
  constexpr std::size_t kCount = kBytes / sizeof(float);
  std::uint64_t key = 0;
  while (server_of(key, 0, 2) != 0) ++key;
  run({.workers = 2, .colocated = true}, [&](Runtime& rt) {
    const auto together = [&](const char* where) { value_or_throw(rt.allgather(where, {}, scaled(20s))); };
    Reducer reducer(rt);
    value_or_throw(reducer.start());
    together("started");
    if (rt.rank() == 1) {
      together("left");
      const std::vector<float> mine(kCount, 1.0F);
      std::vector<float> sum(kCount);
      for (std::uint32_t session = 1; session <= kSessions; ++session) {
        Worker worker(rt);
        const auto round = worker.push_pull({{.key = key, .push = mine, .pull = sum}});
        DTR_ASSERT_OK(round);
        DTR_EXPECT_OK(worker.wait(*round, scaled(30s)));
        EXPECT_THAT(sum, ::testing::Each(1.0F + static_cast<float>(session)));
      }
      together("summed");
      together("bound");
      DTR_EXPECT_OK(reducer.join(scaled(20s)));
      return;
    }
    Mouth mouth(rt, "pushpull worker", "pushpull server");
    mouth.say_hello(1, 1);
    mouth.say_hello(0, 1);
    for (std::uint32_t session = 1; session <= kSessions; ++session) {
      std::vector<float> gradient(kCount, static_cast<float>(session));
      const Round round{.head = {.kind = Kind::round, .epoch = session},
                        .fragments = 1,
                        .pushes = 1,
                        .patience_ns = std::chrono::nanoseconds(scaled(60s)).count()};
      mouth.say(0, bytes_of(round, push_in_place(key, gradient)));
      mouth.say_bye(0, session, 1, Bye::kUnclean);
      std::fill(gradient.begin(), gradient.end(), 1e30F);
      mouth.say_hello(0, session + 1);
    }
    together("left");
    together("summed");
    // The numbers of slots that are free again are given out first.
    mouth.say(0, bytes_of(Bind{.head = {.kind = Kind::bind, .epoch = kSessions + 1}, .key = key, .bytes = kBytes}));
    const auto bound = front<Bound>(mouth.hear(Kind::bound));
    ASSERT_TRUE(bound);
    EXPECT_LT(bound->slot, kSessions);
    together("bound");
    mouth.say_bye(0, kSessions + 1, 0);
    mouth.say_bye(1, 1, 0);
    DTR_EXPECT_OK(reducer.join(scaled(20s)));
  });
}

}  // namespace
}  // namespace dtr
