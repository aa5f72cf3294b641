// What is left of an earlier Worker of a rank when the next one comes.

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
    const auto say_hello = [&](std::uint32_t epoch) {
      mouth.say(2, bytes_of(Hello{.head = {.kind = Kind::hello, .epoch = epoch}, .workers = 2}));
      EXPECT_FALSE(mouth.hear(Kind::welcome).empty());
    };
    const auto say_bye = [&](std::uint32_t epoch, std::uint64_t rounds) {
      mouth.say(2, bytes_of(Bye{.head = {.kind = Kind::bye, .epoch = epoch}, .rounds = rounds}));
      EXPECT_FALSE(mouth.hear(Kind::parted).empty());
    };
    std::vector<std::uint32_t> slots;
    say_hello(1);
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
      say_bye(session, 1);
      say_hello(session + 1);
      together("the next worker is here");
      together("answered");
    }
    say_bye(kSessions + 1, 0);
    EXPECT_THAT(slots, ::testing::Each(slots.front()));
  });
}

}  // namespace
}  // namespace dtr
