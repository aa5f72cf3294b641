// A rank that talks nonsense is shut out, with a reason; everybody else goes on.
#include <array>
#include <cstring>

#include "dtr/pushpull/detail/route.hpp"
#include "dtr/pushpull/detail/wire.hpp"
#include "pushpull/job.hpp"
#include "pushpull/mouth.hpp"
#include "support/bytes_of.hpp"

namespace dtr {
namespace {

using namespace testing;
using namespace pushpull;
using Bytes = std::vector<std::byte>;

constexpr std::uint32_t kEpoch = 77;

Head head_of(Kind kind, std::uint8_t flags = 0) { return {.kind = kind, .flags = flags, .epoch = kEpoch}; }

Round round_of(std::uint32_t pushes, std::uint32_t pulls) {
  return {.head = head_of(Kind::round),
          .fragments = 1,
          .pushes = static_cast<std::uint16_t>(pushes),
          .pulls = static_cast<std::uint16_t>(pulls),
          .patience_ns = 1'000'000'000};
}

struct Nonsense {
  const char* what;
  std::vector<Bytes> said;
};
// NOLINTNEXTLINE(readability-identifier-naming): the name is GoogleTest's
void PrintTo(const Nonsense& nonsense, std::ostream* out) { *out << nonsense.what; }

std::vector<Nonsense> all_nonsense() {
  const PushEntry push{.key = 1, .bytes = 16, .total = 16, .dtype = 1};
  PushEntry slotted = push;
  slotted.slot = 5;
  PushEntry elsewhere = push;
  elsewhere.slot = kInPlace;
  elsewhere.address = 0x10000;
  PushEntry beyond = push;
  beyond.offset = ~std::uint64_t{0} - 3;
  PushEntry empty = push;
  empty.bytes = 0;
  PushEntry strange = push;
  strange.dtype = 200;
  PushEntry long_push = push;
  long_push.bytes = long_push.total = std::uint64_t{1} << 60;
  const PullEntry pull{.key = 1, .bytes = 16, .total = 16, .region = 3};
  PullEntry huge = pull;
  huge.region = kInlined;
  huge.bytes = huge.total = std::uint64_t{1} << 62;
  Round many = round_of(1, 0);
  many.fragments = 0xFFFF'FFFF;
  Round none = round_of(1, 0);
  none.fragments = 0;
  Round far = round_of(1, 0);
  far.seq = std::uint64_t{1} << 39;
  Round crowded = round_of(0xFFFF, 0xFFFF);
  const std::array<std::byte, 16> data{};
  const auto good = bytes_of(round_of(1, 0), push, data);
  return {
      {"unknown_kind", {bytes_of(head_of(static_cast<Kind>(99)))}},
      {"kind_of_a_server", {bytes_of(head_of(Kind::welcome))}},
      {"short_bind", {bytes_of(head_of(Kind::bind))}},
      {"bind_of_nothing", {bytes_of(Bind{.head = head_of(Kind::bind), .key = 1})}},
      {"bind_of_everything", {bytes_of(Bind{.head = head_of(Kind::bind), .key = 1, .bytes = ~std::uint64_t{0}})}},
      {"short_unbind", {bytes_of(head_of(Kind::unbind))}},
      {"foreign_slot_back", {bytes_of(GiveBack{.head = head_of(Kind::give_back), .slot = 9})}},
      {"huge_region_number", {bytes_of(Announce{.head = head_of(Kind::announce), .region = 0xFFFF'FFFF})}},
      {"short_fetched", {bytes_of(head_of(Kind::fetched))}},
      {"short_cancel", {bytes_of(head_of(Kind::cancel))}},
      {"short_bye", {bytes_of(head_of(Kind::bye))}},
      {"short_round", {bytes_of(head_of(Kind::round))}},
      {"empty_round", {bytes_of(round_of(0, 0))}},
      {"entries_missing", {bytes_of(crowded)}},
      {"too_many_parts", {bytes_of(many, push, data)}},
      {"no_parts", {bytes_of(none, push, data)}},
      {"far_round", {bytes_of(far, push, data)}},
      {"same_round_twice", {good, good}},
      {"push_without_data", {bytes_of(round_of(1, 0), push)}},
      {"push_longer_than_memory", {bytes_of(round_of(1, 0), long_push, data)}},
      {"push_beyond_its_tensor", {bytes_of(round_of(1, 0), beyond, data)}},
      {"push_of_nothing", {bytes_of(round_of(1, 0), empty, data)}},
      {"push_of_unknown_type", {bytes_of(round_of(1, 0), strange, data)}},
      {"push_in_place_from_elsewhere", {bytes_of(round_of(1, 0), elsewhere)}},
      {"push_into_a_foreign_slot", {bytes_of(round_of(1, 0), slotted, data)}},
      {"pull_into_nowhere", {bytes_of(round_of(0, 1), pull)}},
      {"pull_of_everything", {bytes_of(round_of(0, 1), huge)}},
  };
}

class MalformedTest : public ::testing::TestWithParam<Nonsense> {};

INSTANTIATE_TEST_SUITE_P(Messages, MalformedTest, ::testing::ValuesIn(all_nonsense()),
                         [](const auto& nonsense) { return std::string(nonsense.param.what); });

TEST_P(MalformedTest, ShutsItsSenderOutAndNobodyElse) {
  run({.transport = "tcp", .workers = 2}, [](Runtime& rt) {
    if (rt.is_server()) {
      Server server(rt);
      value_or_throw(rt.allgather("open", {}, scaled(20s)));
      while (true) {
        auto request = server.get_any(scaled(20s));
        if (!request) {
          EXPECT_EQ(request.error().code, Errc::closed) << request.error().to_string();
          break;
        }
        if (request->worker == 1) {
          DTR_EXPECT_OK(server.respond(request->handle));
          continue;
        }
        DTR_EXPECT_OK(server.respond(request->handle, {std::span(request->pushes.at(0).data)}));
      }
      return;
    }
    value_or_throw(rt.allgather("open", {}, scaled(20s)));
    if (rt.rank() == 1) {
      Mouth mouth(rt, "pushpull worker", "pushpull server");
      mouth.say(2, bytes_of(Hello{.head = head_of(Kind::hello), .workers = 2}));
      ASSERT_FALSE(mouth.hear(Kind::welcome).empty());
      mouth.say(2, bytes_of(head_of(Kind::round)).empty() ? Bytes{} : Bytes(3));         // no head: dropped
      mouth.say(2, bytes_of(Fetched{.head = head_of(Kind::fetched), .ticket = 12345}));  // nothing was offered
      for (const Bytes& message : GetParam().said) mouth.say(2, message);
      const Bytes reason = mouth.hear(Kind::broken);
      ASSERT_FALSE(reason.empty()) << "not shut out";
      EXPECT_EQ(front<Broken>(reason)->code, static_cast<std::int32_t>(Errc::protocol_error));
      EXPECT_FALSE(words_after<Broken>(reason).empty());
      return;
    }
    Worker worker(rt);
    for (std::uint64_t i = 0; i < 20; ++i) {
      const auto mine = numbers(3000, 0, i);
      std::vector<float> out(3000);
      auto round = worker.push_pull({{.key = 1, .push = mine, .pull = out}});
      DTR_ASSERT_OK(round);
      DTR_ASSERT_OK(worker.wait(*round, scaled(20s)));
      EXPECT_TRUE(same_bits(out, mine));
    }
  });
}

TEST(MalformedAnswerTest, AWorkerDropsWhatItCannotReadAndItsRoundEndsInTime) {
  run({.transport = "tcp", .workers = 1}, [](Runtime& rt) {
    if (rt.is_server()) {
      Mouth mouth(rt, "pushpull server", "pushpull worker");
      const Bytes hello = mouth.hear(Kind::hello);
      ASSERT_FALSE(hello.empty());
      const std::uint32_t epoch = front<Head>(hello)->epoch;
      const auto head = [&](Kind kind) { return Head{.kind = kind, .epoch = epoch}; };
      mouth.say(0, bytes_of(Welcome{.head = head(Kind::welcome), .slots = 2}));
      ASSERT_FALSE(mouth.hear(Kind::round).empty());
      RemoteKey key{};
      key.length = 100;
      mouth.say(0, Bytes(2));
      for (int kind = 0; kind < 256; ++kind) {
        if (kind == static_cast<int>(Kind::parted)) continue;  // is whole with its head
        mouth.say(0, bytes_of(head(static_cast<Kind>(kind))));
      }
      mouth.say(0, bytes_of(Response{.head = head(Kind::response), .ticket = ~std::uint64_t{0}}));
      mouth.say(0, bytes_of(Muted{.head = head(Kind::muted), .ticket = 1234}));
      mouth.say(0, bytes_of(Release{.head = head(Kind::release), .ticket = 1}));
      mouth.say(0, bytes_of(Known{.head = head(Kind::known), .region = 0xFFFF'FFFF}));
      mouth.say(0, bytes_of(Bound{.head = head(Kind::bound), .key = 9, .slot = 0xFFFF'FFFF, .memory = key}));
      mouth.say(0, bytes_of(BindFailed{.head = head(Kind::bind_failed), .key = 9, .code = -1}));
      mouth.say(0, bytes_of(Rebind{.head = head(Kind::rebind), .key = 9}));
      mouth.say(0, bytes_of(Lend{.head = head(Kind::lend), .region = 0xFFFF'FFFF, .memory = key}));
      mouth.say(0, bytes_of(Lend{.head = head(Kind::lend), .region = 1, .memory = key}));
      value_or_throw(rt.allgather("said", {}, scaled(20s)));
      value_or_throw(rt.allgather("over", {}, scaled(20s)));
      return;
    }
    std::vector<float> out(10, 1.0F);
    const std::vector<float> mine(10, 1.0F);
    Worker worker(rt);
    auto round = worker.push_pull({{.key = 1, .push = mine, .pull = out}}, scaled(500ms));
    DTR_ASSERT_OK(round);
    value_or_throw(rt.allgather("said", {}, scaled(20s)));
    const auto ended = worker.wait(*round, scaled(20s));
    ASSERT_FALSE(ended);
    EXPECT_EQ(ended.error().code, Errc::timed_out) << ended.error().to_string();
    EXPECT_EQ(out, std::vector<float>(10, 1.0F));
    value_or_throw(rt.allgather("over", {}, scaled(20s)));
  });
}

TEST(MalformedAnswerTest, AnOfferOfMemoryThatWasNotLentEndsTheRoundWithAnError) {
  run({.transport = "tcp", .workers = 1}, [](Runtime& rt) {
    if (rt.is_server()) {
      Mouth mouth(rt, "pushpull server", "pushpull worker");
      const Bytes hello = mouth.hear(Kind::hello);
      ASSERT_FALSE(hello.empty());
      const auto head = [&, epoch = front<Head>(hello)->epoch](Kind kind, std::uint8_t flags = 0) {
        return Head{.kind = kind, .flags = flags, .epoch = epoch};
      };
      mouth.say(0, bytes_of(Welcome{.head = head(Kind::welcome), .slots = 2}));
      ASSERT_FALSE(mouth.hear(Kind::announce).empty());
      mouth.say(0, bytes_of(Known{.head = head(Kind::known)}));
      const Bytes round = mouth.hear(Kind::round);
      ASSERT_FALSE(round.empty());
      const Response response{.head = head(Kind::response, Response::kFetch), .ticket = front<Round>(round)->ticket};
      mouth.say(0, bytes_of(response, Offer{.region = 3}));
      EXPECT_FALSE(mouth.hear(Kind::fetched).empty()) << "the server has to know that nothing is read";
      value_or_throw(rt.allgather("over", {}, scaled(20s)));
      return;
    }
    std::vector<float> out(5000, 1.0F);
    Worker worker(rt);
    auto round = worker.push_pull({{.key = 1, .pull = out}}, scaled(20s));
    DTR_ASSERT_OK(round);
    const auto ended = worker.wait(*round, scaled(20s));
    ASSERT_FALSE(ended);
    EXPECT_EQ(ended.error().code, Errc::protocol_error) << ended.error().to_string();
    DTR_EXPECT_OK(worker.quiesce(*round, scaled(20s)));
    EXPECT_EQ(out, std::vector<float>(5000, 1.0F));
    value_or_throw(rt.allgather("over", {}, scaled(20s)));
  });
}

TEST(CancelOrderTest, ACancelThatOvertakesItsRoundStillGivesBackATensorInPlace) {
  constexpr std::size_t kCount = 20000;
  std::vector<float> gradient = numbers(kCount, 0);
  std::vector<float> other = numbers(kCount, 1);
  std::vector<float> sum(kCount);
  std::uint64_t key = 0;
  while (server_of(key, 0, 2) != 0) ++key;
  run({.workers = 2, .colocated = true}, [&](Runtime& rt) {
    Reducer reducer(rt);
    value_or_throw(reducer.start());
    value_or_throw(rt.allgather("started", {}, scaled(20s)));
    if (rt.rank() == 0) {
      Mouth mouth(rt, "pushpull worker", "pushpull server");
      mouth.say(1, bytes_of(Hello{.head = head_of(Kind::hello), .workers = 2}));
      ASSERT_FALSE(mouth.hear(Kind::welcome).empty());
      mouth.say(0, bytes_of(Hello{.head = head_of(Kind::hello), .workers = 2}));
      const Bytes welcome = mouth.hear(Kind::welcome);
      ASSERT_FALSE(welcome.empty());
      ASSERT_EQ(front<Welcome>(welcome)->in_place, 1U);
      Round round = round_of(1, 0);
      round.patience_ns = std::chrono::nanoseconds(scaled(30s)).count();
      mouth.say(0, bytes_of(Cancel{.head = head_of(Kind::cancel)}));
      mouth.say(0, bytes_of(round, push_in_place(key, gradient)));
      ASSERT_FALSE(mouth.hear(Kind::muted).empty());
      std::fill(gradient.begin(), gradient.end(), 1e30F);
      value_or_throw(rt.allgather("given back", {}, scaled(20s)));
      value_or_throw(rt.allgather("summed", {}, scaled(60s)));
      for (const int server : {0, 1}) mouth.say(server, bytes_of(Bye{.head = head_of(Kind::bye)}));
      EXPECT_FALSE(mouth.hear(Kind::parted).empty());
      DTR_EXPECT_OK(reducer.join(scaled(20s)));
      return;
    }
    {
      Worker worker(rt);
      value_or_throw(rt.allgather("given back", {}, scaled(20s)));
      auto round = worker.push_pull({{.key = key, .push = other, .pull = sum}});
      DTR_EXPECT_OK(round);
      if (round) DTR_EXPECT_OK(worker.wait(*round, scaled(30s)));
      EXPECT_TRUE(same_bits(sum, sum_of_numbers(kCount, 2)));
      value_or_throw(rt.allgather("summed", {}, scaled(60s)));
    }
    DTR_EXPECT_OK(reducer.join(scaled(20s)));
  });
}

}  // namespace
}  // namespace dtr
