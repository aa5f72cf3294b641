// Operations that end otherwise than by their message: each exactly once, in time, with a reason, and its buffer at
// rest.
#include <atomic>
#include <csignal>
#include <cstring>
#include <memory>
#include <thread>

#include <malloc.h>
#include <sys/wait.h>
#include <unistd.h>

#include "dtr/messaging/detail/operations.hpp"
#include "dtr/messaging/detail/wire.hpp"
#include "messaging/ways.hpp"
#include "support/bytes_of.hpp"

namespace dtr {
namespace {

using namespace testing;
using ::testing::HasSubstr;

constexpr std::uint64_t kTag = 7;

class MessageEndTest : public ::testing::TestWithParam<Job> {};

INSTANTIATE_TEST_SUITE_P(Ways, MessageEndTest, ::testing::ValuesIn(message_ways()), way_name);

/// Over no transport does so much go before somebody has asked for it.
constexpr std::size_t kLarge = 100'000;

void meet_all(Runtime& rt, const std::string& where) { value_or_throw(rt.allgather(where, {}, soon())); }

TEST_P(MessageEndTest, WhatNobodyAnswersEndsAtItsDeadlineAndLeavesNoTrace) {
  run(GetParam(), [](Runtime& rt) {
    Messenger messenger(rt);
    if (rt.rank() == 0) {
      const Bytes large = data_of(kLarge, 1);
      const auto started = std::chrono::steady_clock::now();
      auto late = messenger.send(1, kTag, large, 50ms);
      DTR_ASSERT_OK(late);
      const auto sent = messenger.wait(*late);
      ASSERT_FALSE(sent);
      EXPECT_EQ(sent.error().code, Errc::timed_out);
      EXPECT_EQ(sent.error().peer, 1);
      EXPECT_EQ(sent.error().operation, "send");
      EXPECT_THAT(sent.error().message, HasSubstr(std::to_string(kLarge)));
      Bytes buffer(10);
      const auto received = messenger.wait(value_or_throw(messenger.recv(1, 55, buffer, 50ms)));
      ASSERT_FALSE(received);
      EXPECT_EQ(received.error().code, Errc::timed_out);
      EXPECT_THAT(received.error().message, HasSubstr("55"));
      const auto from_any = messenger.wait(value_or_throw(messenger.recv(kAnyRank, 55, buffer, 50ms)));
      ASSERT_FALSE(from_any);
      EXPECT_EQ(from_any.error().code, Errc::timed_out);
      EXPECT_EQ(from_any.error().peer, -1);
      EXPECT_LT(std::chrono::steady_clock::now() - started, scaled(10s));
      meet_all(rt, "timed out");
    } else {
      meet_all(rt, "timed out");
    }
    // The abandoned offer is not received; the next one is.
    Bytes data = rt.rank() == 0 ? data_of(kLarge, 2) : Bytes(kLarge);
    const auto next = rt.rank() == 0 ? messenger.send(1, kTag, data, soon()) : messenger.recv(0, kTag, data, soon());
    DTR_ASSERT_OK(next);
    DTR_ASSERT_OK(messenger.wait(*next));
    EXPECT_EQ(data, data_of(kLarge, 2));
  });
}

TEST_P(MessageEndTest, AnOperationThatNobodyWaitsForEndsAtItsDeadlineToo) {
  run(GetParam(), [](Runtime& rt) {
    Messenger messenger(rt);
    Bytes buffer(10);
    const auto handle = value_or_throw(messenger.recv(1 - rt.rank(), kTag, buffer, 20ms));
    const Deadline patience(scaled(20s));
    while (!messenger.done(handle) && !patience.passed()) std::this_thread::sleep_for(5ms);
    EXPECT_TRUE(messenger.done(handle));
    EXPECT_EQ(messenger.wait(handle).error().code, Errc::timed_out);
    meet_all(rt, "end");
  });
}

TEST_P(MessageEndTest, CancelEndsASendAndARecvThatNobodyAnswers) {
  run(GetParam(), [](Runtime& rt) {
    Messenger messenger(rt);
    Bytes data(kLarge);
    if (rt.rank() == 0) {
      const auto handle = value_or_throw(messenger.send(1, kTag, data, soon()));
      EXPECT_FALSE(messenger.done(handle));
      EXPECT_TRUE(messenger.cancel(handle));
      EXPECT_TRUE(messenger.done(handle));
      EXPECT_FALSE(messenger.cancel(handle)) << "it has ended";
      EXPECT_EQ(messenger.wait(handle).error().code, Errc::cancelled);
      meet_all(rt, "cancelled");
      const Bytes next = data_of(100);
      DTR_EXPECT_OK(messenger.wait(value_or_throw(messenger.send(1, kTag, next, soon()))));
      return;
    }
    const auto unanswered = value_or_throw(messenger.recv(0, 99, data, soon()));
    EXPECT_TRUE(messenger.cancel(unanswered));
    EXPECT_EQ(messenger.wait(unanswered).error().code, Errc::cancelled);
    meet_all(rt, "cancelled");
    const auto message = messenger.wait(value_or_throw(messenger.recv(0, kTag, data, soon())));
    DTR_ASSERT_OK(message);
    EXPECT_EQ(message->bytes, 100U) << "not the one that was withdrawn";
  });
}

TEST_P(MessageEndTest, AThreadThatWaitsIsToldOfACancelByAnother) {
  run(GetParam(), [](Runtime& rt) {
    Messenger messenger(rt);
    Bytes buffer(10);
    const auto handle = value_or_throw(messenger.recv(1 - rt.rank(), kTag, buffer, scaled(60s)));
    std::atomic<Errc> code{Errc::ok};
    const auto started = std::chrono::steady_clock::now();
    std::thread waiter([&] { code = messenger.wait(handle).error().code; });
    std::this_thread::sleep_for(20ms);
    EXPECT_TRUE(messenger.cancel(handle));
    waiter.join();
    EXPECT_EQ(code, Errc::cancelled);
    EXPECT_LT(std::chrono::steady_clock::now() - started, scaled(20s));
    meet_all(rt, "end");
  });
}

/// Either side gives up at any moment of a long message. Whatever comes of it, both end, a buffer whose recv has ended
/// is not written, and the messages that follow are whole.
TEST_P(MessageEndTest, GivingUpInMidMessageHarmsNeitherSideNorWhatFollows) {
  run(GetParam(), [](Runtime& rt) {
    Messenger messenger(rt);
    constexpr std::size_t kSize = 3 << 20;
    const Bytes out = data_of(kSize);
    Bytes in(kSize);
    for (int round = 0; round < 16; ++round) {
      const bool sends = rt.rank() == 0;
      const bool gives_up = (round % 2 == 0) == sends;
      const auto tag = static_cast<std::uint64_t>(round);
      meet_all(rt, "round");
      const auto handle =
          value_or_throw(sends ? messenger.send(1, tag, out, soon()) : messenger.recv(0, tag, in, soon()));
      // Whatever has become of that one, a message of one byte comes behind it.
      MessageHandle last{};
      if (gives_up) {
        const auto until = std::chrono::steady_clock::now() + std::chrono::microseconds(60 * (round / 2));
        while (std::chrono::steady_clock::now() < until) rt.progress();
        messenger.cancel(handle);
      }
      if (sends) last = value_or_throw(messenger.send(1, tag, std::span(out).first(1), soon()));
      auto outcome = messenger.wait(handle);
      if (!outcome) {
        EXPECT_EQ(outcome.error().code, Errc::cancelled) << outcome.error().to_string();
      }
      if (sends) {
        DTR_ASSERT_OK(messenger.wait(last));
        continue;
      }
      const bool given_up = !outcome.has_value();
      Bytes left(given_up ? kSize : 0);
      if (given_up) std::fill(in.begin(), in.end(), std::byte{0x11});  // whoever wrote into it now would be seen below
      if (outcome && outcome->bytes == kSize) {
        EXPECT_EQ(in, out) << round;
      }
      Bytes& rest = given_up ? left : in;
      while (!outcome || outcome->bytes != 1) {
        outcome = messenger.wait(value_or_throw(messenger.recv(0, tag, rest, soon())));
        DTR_ASSERT_OK(outcome);
      }
      if (given_up) {
        EXPECT_EQ(std::count(in.begin(), in.end(), std::byte{0x11}), static_cast<std::ptrdiff_t>(kSize));
      }
    }
    meet_all(rt, "rounds over");
  });
}

/// A receiver keeps so many offers; what is sent beyond waits.
constexpr int kMoreThanOffers = 1030;

TEST_P(MessageEndTest, WhatWaitedBehindOffersThatWereTakenByItsOwnRankGoes) {
  run(GetParam(), [](Runtime& rt) {
    if (rt.rank() == 0) {
      Messenger messenger(rt);
      const Bytes out = data_of(5000);
      std::vector<MessageHandle> sent;
      for (int i = 0; i < kMoreThanOffers; ++i) sent.push_back(value_or_throw(messenger.send(0, kTag, out, soon())));
      Bytes in(5000);
      for (int i = 0; i < kMoreThanOffers; ++i) {
        const auto received = messenger.wait(value_or_throw(messenger.recv(0, kTag, in, soon())));
        ASSERT_TRUE(received) << i << ": " << received.error().to_string();
        EXPECT_EQ(in, out);
      }
      for (const MessageHandle each : sent) DTR_ASSERT_OK(messenger.wait(each));
    }
    meet_all(rt, "end");
  });
}

TEST_P(MessageEndTest, WhatWaitedBehindOffersThatNobodyTookGoesOnceTheyEnd) {
  for (const bool cancels : {true, false}) {
    run(GetParam(), [cancels](Runtime& rt) {
      Messenger messenger(rt);
      const Bytes out = data_of(kLarge);
      Bytes in(kLarge);
      if (rt.rank() == 1) {
        const auto handle = value_or_throw(messenger.recv(0, kTag + 1, in, soon()));
        DTR_EXPECT_OK(messenger.wait(handle));
        EXPECT_EQ(in, out);
        return meet_all(rt, "end");
      }
      std::vector<MessageHandle> unanswered;
      const Deadline end = cancels ? soon() : Deadline(100ms);
      for (int i = 0; i < 1024; ++i) unanswered.push_back(value_or_throw(messenger.send(1, kTag, out, end)));
      const auto waiting = value_or_throw(messenger.send(1, kTag + 1, out, soon()));
      if (cancels) {
        for (const MessageHandle each : unanswered) EXPECT_TRUE(messenger.cancel(each));
      }
      DTR_EXPECT_OK(messenger.wait(waiting));
      for (const MessageHandle each : unanswered) {
        EXPECT_EQ(messenger.wait(each).error().code, cancels ? Errc::cancelled : Errc::timed_out);
      }
      meet_all(rt, "end");
    });
  }
}

TEST_P(MessageEndTest, ACopyWithinARankStopsAtTheDeadline) {
  run(GetParam(), [](Runtime& rt) {
    if (rt.rank() == 0) {
      Messenger messenger(rt);
      const Bytes out = data_of(16 << 20);
      Bytes in(out.size());
      const auto sent = value_or_throw(messenger.send(0, kTag, out, soon()));
      DTR_ASSERT_OK(messenger.wait(value_or_throw(messenger.send(0, kTag + 1, {}, soon()))));
      DTR_ASSERT_OK(messenger.wait(value_or_throw(messenger.recv(0, kTag + 1, {}, soon()))));  // so the other is known
      const auto received = messenger.wait(value_or_throw(messenger.recv(0, kTag, in, Deadline(0ms))));
      ASSERT_FALSE(received);
      EXPECT_EQ(received.error().code, Errc::timed_out) << received.error().to_string();
      const auto outcome = messenger.wait(sent);
      ASSERT_FALSE(outcome);
      EXPECT_EQ(outcome.error().code, Errc::cancelled) << outcome.error().to_string();
      const auto again = value_or_throw(messenger.send(0, kTag, out, soon()));
      DTR_ASSERT_OK(messenger.wait(value_or_throw(messenger.recv(0, kTag, in, soon()))));
      DTR_ASSERT_OK(messenger.wait(again));
      EXPECT_TRUE(in == out);
    }
    meet_all(rt, "end");
  });
}

TEST(MessageCancelTest, ACopyWithinARankStopsWhenItsSendIsCancelled) {
  run({.transport = "shm", .workers = 1, .servers = 0}, [](Runtime& rt) {
    Messenger messenger(rt);
    const Bytes out = data_of(32 << 20);
    Bytes in(out.size());
    bool stopped = false;
    for (int attempt = 0; attempt < 200 && !stopped; ++attempt) {  // until the cancel comes in the midst of the copy
      const auto sent = value_or_throw(messenger.send(0, kTag, out, soon()));
      std::atomic<bool> goes{false};
      bool cancelled = false;
      std::thread other([&] {
        while (!goes) std::this_thread::yield();
        std::this_thread::sleep_for(std::chrono::microseconds(100 * (attempt % 20)));
        cancelled = messenger.cancel(sent);
      });
      goes = true;
      const auto came = value_or_throw(messenger.recv(0, kTag, in, soon()));
      other.join();
      if (!messenger.done(came)) {
        EXPECT_TRUE(messenger.cancel(came));  // the send went before they met
      }
      const auto received = messenger.wait(came);
      EXPECT_EQ(messenger.wait(sent).has_value(), !cancelled);
      EXPECT_EQ(received.has_value(), !cancelled);
      stopped = !received && received.error().message.find("the sender has given up") != std::string::npos;
    }
    EXPECT_TRUE(stopped);
  });
}

TEST_P(MessageEndTest, ASendToItsOwnRankIsToldToAThreadThatWaitsForIt) {
  run(GetParam(), [](Runtime& rt) {
    if (rt.rank() == 0) {
      Messenger messenger(rt);
      const Bytes out = data_of(100000);
      Bytes in(out.size());
      for (int i = 0; i < 20; ++i) {
        const auto sent = value_or_throw(messenger.send(0, kTag, out, soon()));
        std::atomic<bool> good{false};
        std::thread waiter([&] { good = messenger.wait(sent).has_value(); });
        std::this_thread::sleep_for(1ms);
        const auto received = messenger.wait(value_or_throw(messenger.recv(0, kTag, in, soon())));
        waiter.join();
        DTR_EXPECT_OK(received);
        EXPECT_TRUE(good);
      }
    }
    meet_all(rt, "end");
  });
}

TEST(PutTest, WithoutMemoryForItsCopyEndsItsMessageOnBothSidesAndTheNextComesWhole) {
  const Job job{.transport = "tcp",
                .workers = 2,
                .servers = 0,
                .config = {{"memory.pool_bytes", "4194304"}, {"memory.pool_max_bytes", "4194304"}}};
  run(job, [](Runtime& rt) {
    Messenger messenger(rt);
    const bool sends = rt.rank() == 0;
    std::vector<Buffer> held;
    for (std::size_t bytes = sends ? 1 << 20 : 0; bytes >= 4096;) {
      auto more = rt.allocate(bytes);
      if (more) {
        held.push_back(std::move(*more));
      } else {
        bytes /= 2;
      }
    }
    Bytes data = sends ? data_of(300000) : Bytes(300000);
    const auto begin = [&] {
      return value_or_throw(sends ? messenger.send(1, kTag, data, soon()) : messenger.recv(0, kTag, data, soon()));
    };
    const auto outcome = messenger.wait(begin());
    ASSERT_FALSE(outcome);
    EXPECT_EQ(outcome.error().code, sends ? Errc::resource_exhausted : Errc::cancelled) << outcome.error().to_string();
    held.clear();
    for (int i = 0; i < 20; ++i) {
      const auto next = messenger.wait(begin());
      ASSERT_TRUE(next) << i << ": " << next.error().to_string();
      EXPECT_TRUE(data == data_of(300000));
    }
    meet_all(rt, "end");
  });
}

/// Its send has ended well, for the message was copied: only what follows can tell.
TEST(PutTest, ThatFailsLaterBreaksThePairAndNothingGoesOnSilently) {
  run({.transport = "tcp", .workers = 2, .servers = 0, .config = {{"tcp.eager_bytes", "4096"}}}, [](Runtime& rt) {
    const auto port = value_or_throw(rt.service_port("messaging"));
    if (rt.rank() == 1) {
      auto slots = value_or_throw(rt.allocate(65536));
      messaging::Take take{.head = {.kind = messaging::Kind::take},
                           .id = std::uint64_t{1} << 32,  // the first operation of a Messenger
                           .bytes = 60000,
                           .key = slots.region()->key(),
                           .slots = 1,
                           .slot_bytes = 65536,
                           .piece = 65536};
      take.key.secret ^= 0x5555;  // it is not that of the slots
      meet_all(rt, "offered");
      const auto request = fabric::WorkRequest::send(port, std::as_bytes(std::span(&take, 1)), nullptr);
      rt.fabric().submit(0, {&request, 1}, soon());
      const Deadline patience(scaled(20s));
      while (rt.fabric().peer_state(0) == Errc::ok && !patience.passed()) std::this_thread::sleep_for(1ms);
      return;
    }
    Messenger messenger(rt);
    const Bytes out = data_of(60000);
    Bytes in(10);
    const auto sent = value_or_throw(messenger.send(1, kTag, out, soon()));
    const auto received = value_or_throw(messenger.recv(1, kTag, in, soon()));
    meet_all(rt, "offered");
    DTR_EXPECT_OK(messenger.wait(sent));
    const auto outcome = messenger.wait(received);
    ASSERT_FALSE(outcome);
    EXPECT_NE(outcome.error().code, Errc::timed_out) << outcome.error().to_string();
    EXPECT_FALSE(messenger.send(1, kTag, out, soon()));
  });
}

TEST(PutTest, ThatWasCancelledHalfWayIsOverButNotAtRest) {
  fabric::Completion put;
  EXPECT_TRUE(messaging::at_rest(put)) << "never armed";
  put.arm(1);
  EXPECT_FALSE(messaging::at_rest(put));
  put.finish(1, {.code = Errc::cancelled, .quiesced = false});
  EXPECT_TRUE(put.done());
  EXPECT_FALSE(messaging::at_rest(put));
}

/// What a thread of the parent held at the fork stays held in the child for ever.
class MessengerForkTest : public ::testing::TestWithParam<const char*> {};

INSTANTIATE_TEST_SUITE_P(Ways, MessengerForkTest, ::testing::Values("tcp", "shm"),
                         [](const auto& transport) { return std::string(transport.param); });

TEST_P(MessengerForkTest, TheChildDestroysItWithoutWaitingForLocksOfTheParent) {
  run({.transport = GetParam(), .workers = 2, .servers = 0}, [](Runtime& rt) {
    auto messenger = std::make_unique<Messenger>(rt);
    const Buffer data = value_or_throw(rt.allocate(100'000));  // of the pool: shm lends it
    for (int i = 0; i < 2; ++i) {                              // both have sent and received
      const auto handle = rt.rank() == i ? messenger->send(1 - i, kTag, data.span(), soon())
                                         : messenger->recv(i, kTag, data.span(), soon());
      DTR_ASSERT_OK(messenger->wait(value_or_throw(Result<MessageHandle>(handle))));
    }
    if (rt.rank() == 1) {
      std::atomic<bool> over{false};
      std::thread other([&] {
        while (!over) static_cast<void>(rt.allocate(4096));
      });
      for (int i = 0; i < 10; ++i) {
        const pid_t child = ::fork();
        if (child == 0) {
          messenger.reset();
          ::_exit(7);
        }
        int status = 0;
        const Deadline patience(scaled(20s));
        while (::waitpid(child, &status, WNOHANG) == 0) {
          if (patience.passed()) ::kill(child, SIGKILL);
          std::this_thread::sleep_for(1ms);
        }
        EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 7) << "child " << i << " hangs";
      }
      over = true;
      other.join();
    }
    meet_all(rt, "end");
  });
}

TEST_P(MessageEndTest, OperationsTowardsAMessengerThatEndsAreClosed) {
  run(GetParam(), [](Runtime& rt) {
    auto messenger = std::make_unique<Messenger>(rt);
    Bytes data(kLarge);
    if (rt.rank() == 1) {
      const Bytes last = data_of(100);
      DTR_EXPECT_OK(messenger->wait(value_or_throw(messenger->send(0, 1, last, soon()))));
      meet_all(rt, "begun");
      messenger.reset();
      return meet_all(rt, "gone");
    }
    const auto sent = value_or_throw(messenger->send(1, kTag, data, soon()));
    const auto received = value_or_throw(messenger->recv(1, kTag, data, soon()));
    meet_all(rt, "begun");
    for (const auto handle : {sent, received}) {
      const auto outcome = messenger->wait(handle);
      ASSERT_FALSE(outcome);
      EXPECT_EQ(outcome.error().code, Errc::closed) << outcome.error().to_string();
    }
    meet_all(rt, "gone");
    const auto before = messenger->wait(value_or_throw(messenger->recv(1, 1, data, soon())));
    DTR_ASSERT_OK(before);
    EXPECT_EQ(before->bytes, 100U) << "what it sent before it ended";
  });
}

TEST_P(MessageEndTest, AMessengerEndsInTimeWithOpenOperations) {
  run(GetParam(), [](Runtime& rt) {
    Bytes in(3 << 20);
    const Bytes out(3 << 20);
    std::vector<MessageHandle> handles;
    const auto started = std::chrono::steady_clock::now();
    {
      Messenger messenger(rt);
      for (int i = 0; i < 3; ++i) {
        handles.push_back(value_or_throw(messenger.send(1 - rt.rank(), kTag, out, scaled(60s))));
        handles.push_back(value_or_throw(messenger.recv(1 - rt.rank(), kTag + (i == 0 ? 0 : 1), in, scaled(60s))));
      }
      for (int i = 0; i < 50 * (1 + rt.rank()); ++i) rt.progress();
    }
    EXPECT_LT(std::chrono::steady_clock::now() - started, scaled(20s));
    std::fill(in.begin(), in.end(), std::byte{3});
    meet_all(rt, "ended");
    EXPECT_EQ(std::count(in.begin(), in.end(), std::byte{3}), static_cast<std::ptrdiff_t>(in.size()));
  });
}

TEST_P(MessageEndTest, OperationsLeftOpenAtFinalizeEnd) {
  run(GetParam(), [](Runtime& rt) {
    Bytes in(100000);
    const Bytes out(100000);
    Messenger messenger(rt);
    const auto sent = value_or_throw(messenger.send(1 - rt.rank(), 1, out, 500ms));
    const auto received = value_or_throw(messenger.recv(1 - rt.rank(), 2, in, 500ms));
    DTR_EXPECT_OK(rt.finalize(soon()));
    const auto started = std::chrono::steady_clock::now();
    EXPECT_FALSE(messenger.wait(sent));
    EXPECT_FALSE(messenger.wait(received));
    EXPECT_LT(std::chrono::steady_clock::now() - started, scaled(10s));
  });
}

// --- nonsense ---

using messaging::Kind;

struct Nonsense {
  const char* what;
  std::vector<Bytes> said;
};
// NOLINTNEXTLINE(readability-identifier-naming): the name is GoogleTest's
void PrintTo(const Nonsense& nonsense, std::ostream* out) { *out << nonsense.what; }

std::vector<Nonsense> all_nonsense() {
  using namespace messaging;
  const Take take{.head = {.kind = Kind::take}, .id = 1, .bytes = 100, .slots = 1, .slot_bytes = 4096, .piece = 4096};
  Take no_slots = take;
  no_slots.slots = 0;
  Take huge = take;
  huge.slots = huge.slot_bytes = 0xFFFF'FFFF;
  Take no_piece = take;
  no_piece.piece = 0;
  const Offer offer{.head = {.kind = Kind::offer}, .tag = 1, .bytes = 100, .id = 9};
  Offer far = offer;
  far.head.sequence = 1U << 31;
  Offer nobody = offer;
  nobody.id = 0;
  const RemoteKey eight{.length = 8};
  const Source beside{.mappable = 1, .lease = eight};
  const Source crooked{.lease = {.length = 100}, .lease_offset = 4};
  const Source behind{.lease = eight, .lease_offset = 8};
  std::vector<Bytes> flood;
  for (std::uint32_t i = 0; i < 1100; ++i) {
    Offer one = offer;
    one.head.sequence = i;
    flood.push_back(bytes_of(one));
  }
  std::vector<Bytes> deluge;
  for (std::uint32_t i = 0; i < 600; ++i) {
    deluge.push_back(bytes_of(Eager{.head = {.kind = Kind::eager, .sequence = i}, .tag = 1}));
    deluge.back().resize(4000);
  }
  const Eager ahead{.head = {.kind = Kind::eager, .sequence = 5}, .tag = 1};
  return {
      {"nothing", {Bytes{}}},
      {"half_a_head", {Bytes(3)}},
      {"unknown_kind", {bytes_of(Head{.kind = static_cast<Kind>(99)})}},
      {"short_eager", {bytes_of(Head{.kind = Kind::eager})}},
      {"short_offer", {bytes_of(Head{.kind = Kind::offer})}},
      {"offer_of_nobody", {bytes_of(nobody)}},
      {"offer_and_a_half", {bytes_of(offer, 1)}},
      {"offer_of_more_than_there_is", {bytes_of(offer, beside)}},
      {"lease_across_words", {bytes_of(offer, crooked)}},
      {"lease_behind_its_memory", {bytes_of(offer, behind)}},
      {"far_sequence", {bytes_of(far)}},
      {"same_sequence_twice", {bytes_of(ahead), bytes_of(ahead)}},
      {"short_withdrawal", {bytes_of(Head{.kind = Kind::withdraw})}},
      {"short_take", {bytes_of(Head{.kind = Kind::take})}},
      {"take_into_nothing", {bytes_of(take)}},
      {"take_without_slots", {bytes_of(no_slots)}},
      {"take_into_everything", {bytes_of(huge)}},
      {"take_in_no_pieces", {bytes_of(no_piece)}},
      {"done_with_a_strange_code", {bytes_of(Done{.head = {.kind = Kind::done}, .id = 1, .code = 12345})}},
      {"credit_for_what_was_not_sent", {bytes_of(Credit{.head = {.kind = Kind::credit}, .freed = 1 << 20})}},
      {"credit_for_pieces", {bytes_of(Credit{.head = {.kind = Kind::credit}, .pieces = 1})}},
      {"long_goodbye", {bytes_of(Head{.kind = Kind::bye}, std::uint64_t{0})}},
      {"more_offers_than_allowed", flood},
      {"more_than_there_is_room_for", deluge},
  };
}

/// What one rank says to another is bounded, however often it begins anew.
TEST(MessageBoundTest, ARankWhoseMessengersEndAgainAndAgainWithMessagesThatNobodyTookIsShutOut) {
  run({.transport = "tcp", .workers = 2, .servers = 0}, [](Runtime& rt) {
    const auto port = value_or_throw(rt.service_port("messaging"));
    if (rt.rank() == 1) {
      const Deadline patience(scaled(30s));
      const auto shut_out = [&] { return rt.fabric().peer_state(0) != Errc::ok || patience.passed(); };
      int goodbyes = 0;
      for (; goodbyes < 40 && !shut_out(); ++goodbyes) {
        for (std::uint32_t i = 0; i < 250; ++i) {
          Bytes message = bytes_of(messaging::Eager{.head = {.kind = Kind::eager, .sequence = i}, .tag = 1});
          message.resize(4000);
          const auto request = fabric::WorkRequest::send(port, message, nullptr);
          rt.fabric().submit(0, {&request, 1}, soon());
        }
        fabric::Completion said;
        const auto head = bytes_of(messaging::Head{.kind = Kind::bye});
        const auto bye = fabric::WorkRequest::send(port, head, &said).fenced();
        rt.fabric().submit(0, {&bye, 1}, soon());
        static_cast<void>(rt.fabric().progress().wait([&]() noexcept { return said.done(); }, scaled(60s)));
      }
      while (!shut_out()) std::this_thread::sleep_for(1ms);
      EXPECT_NE(rt.fabric().peer_state(0), Errc::ok) << "not shut out";
      EXPECT_GE(goodbyes, 16) << "so much is kept";
      return;
    }
    Messenger messenger(rt);
    const Deadline patience(scaled(60s));
    while (rt.fabric().peer_state(1) == Errc::ok && !patience.passed()) std::this_thread::sleep_for(1ms);
    EXPECT_EQ(rt.fabric().peer_state(1), Errc::protocol_error);
  });
}

#if !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
TEST(MessageBoundTest, WhatNobodyHasAskedForHoldsNoMoreMemoryThanItsSenderIsChargedFor) {
  run({.transport = "shm", .workers = 2, .servers = 0}, [](Runtime& rt) {
    constexpr std::uint64_t kLong = 1;
    constexpr std::uint64_t kShort = 2;
    constexpr std::uint64_t kAllThere = 3;
    constexpr int kRounds = 24;  // there is room for so much, though freed room is told in quarters
    Messenger messenger(rt);
    Bytes buffer(1000);
    const auto receive = [&](std::uint64_t tag) {
      value_or_throw(messenger.wait(value_or_throw(messenger.recv(1, tag, buffer, soon()))));
    };
    const auto send = [&](std::uint64_t tag, int times, std::size_t bytes) {
      for (int i = 0; i < times; ++i) {
        value_or_throw(messenger.wait(value_or_throw(messenger.send(0, tag, {buffer.data(), bytes}, soon()))));
      }
    };
    const auto in_use = [] {
      const auto info = ::mallinfo2();
      return info.uordblks + info.hblkhd;
    };
    std::size_t before = 0;
    for (int round = 0; round < kRounds; ++round) {
      if (rt.rank() == 1) {
        send(kLong, 250, buffer.size());
        send(kAllThere, 1, 0);
      } else {
        receive(kAllThere);
        for (int i = 0; i < 250; ++i) receive(kLong);  // their memory may be used again
      }
      meet_all(rt, "large/" + std::to_string(round));
      if (round == 0) before = in_use();
      if (rt.rank() == 1) {
        send(kShort, 250, 8);
        send(kAllThere, 1, 0);
      } else {
        receive(kAllThere);
      }
      meet_all(rt, "small/" + std::to_string(round));
    }
    EXPECT_LT(in_use() - before, kRounds * 250 * 400);  // with 1000 bytes each it would be 6 MB
    meet_all(rt, "measured");
  });
}
#endif

/// The bound is on what lies there at a time, not on what has come in all.
TEST(MessageBoundTest, ARankWhoseMessengersEndAgainAndAgainStaysWelcomeWhereSomebodyTakesWhatTheyLeave) {
  run({.transport = "tcp", .workers = 2, .servers = 0}, [](Runtime& rt) {
    constexpr std::uint64_t kLives = 80;  // 19 MiB come in all
    constexpr std::uint64_t kMessages = 250;
    const auto message = [](std::uint64_t life, std::uint64_t i) { return data_of(1000, life * kMessages + i); };
    const auto taker = rt.rank() == 0 ? std::make_unique<Messenger>(rt) : nullptr;
    Bytes buffer(1000);
    for (std::uint64_t life = 0; life < kLives; ++life) {
      if (rt.rank() == 1) {
        Messenger messenger(rt);
        for (std::uint64_t i = 0; i < kMessages; ++i) {
          const Bytes data = message(life, i);
          const auto sent = value_or_throw(messenger.send(0, life, data, soon()));
          value_or_throw(messenger.wait(sent));
        }
      }
      meet_all(rt, "left/" + std::to_string(life));
      for (std::uint64_t i = 0; taker != nullptr && i < kMessages; ++i) {
        const auto came = value_or_throw(taker->wait(value_or_throw(taker->recv(1, life, buffer, soon()))));
        ASSERT_EQ(came.bytes, buffer.size());
        ASSERT_EQ(buffer, message(life, i)) << life << ", " << i;
      }
    }
  });
}

TEST(MessageBoundTest, WhoAsksForMoreThanWasOfferedIsShutOut) {
  run({.transport = "tcp", .workers = 2, .servers = 0}, [](Runtime& rt) {
    const auto port = value_or_throw(rt.service_port("messaging"));
    if (rt.rank() == 1) {
      auto slots = value_or_throw(rt.allocate(65536));
      const messaging::Take take{.head = {.kind = Kind::take},
                                 .id = 77,
                                 .bytes = 60000,
                                 .key = slots.region()->key(),
                                 .slots = 1,
                                 .slot_bytes = 65536,
                                 .piece = 65536};
      const auto request = fabric::WorkRequest::send(port, std::as_bytes(std::span(&take, 1)), nullptr);
      rt.fabric().submit(0, {&request, 1}, soon());
      const Deadline patience(scaled(30s));
      while (rt.fabric().peer_state(0) == Errc::ok && !patience.passed()) std::this_thread::sleep_for(1ms);
      EXPECT_NE(rt.fabric().peer_state(0), Errc::ok) << "not shut out";
      return;
    }
    Messenger messenger(rt);
    Bytes data(10);
    const auto received = messenger.recv(1, 2, data, scaled(60s));
    if (received) {
      EXPECT_EQ(messenger.wait(*received).error().code, Errc::protocol_error);
    } else {
      EXPECT_EQ(received.error().code, Errc::protocol_error);
    }
  });
}

class MalformedMessageTest : public ::testing::TestWithParam<Nonsense> {};

INSTANTIATE_TEST_SUITE_P(Messages, MalformedMessageTest, ::testing::ValuesIn(all_nonsense()),
                         [](const auto& nonsense) { return std::string(nonsense.param.what); });

TEST_P(MalformedMessageTest, ShutsItsSenderOutAndNobodyElse) {
  run({.transport = "tcp", .workers = 3, .servers = 0}, [](Runtime& rt) {
    const auto port = value_or_throw(rt.service_port("messaging"));
    if (rt.rank() == 1) {
      for (const Bytes& message : GetParam().said) {
        const auto request = fabric::WorkRequest::send(port, message, nullptr);
        rt.fabric().submit(0, {&request, 1}, soon());
      }
      const Deadline patience(scaled(20s));
      while (rt.fabric().peer_state(0) == Errc::ok && !patience.passed()) {
        std::this_thread::sleep_for(1ms);
      }
      EXPECT_NE(rt.fabric().peer_state(0), Errc::ok) << "not shut out";
      return;
    }
    Messenger messenger(rt);
    Bytes data(70000);
    if (rt.rank() == 0) {
      const auto from_it = messenger.recv(1, 77, data, soon());
      if (from_it) {
        const auto outcome = messenger.wait(*from_it);
        ASSERT_FALSE(outcome);
        EXPECT_EQ(outcome.error().code, Errc::protocol_error) << outcome.error().to_string();
      } else {
        EXPECT_EQ(from_it.error().code, Errc::protocol_error) << from_it.error().to_string();
      }
    }
    for (int i = 0; i < 5; ++i) {
      const bool sends = rt.rank() == 2;
      const Bytes right = data_of(data.size(), static_cast<std::uint64_t>(i));
      if (sends) data = right;
      const auto handle =
          value_or_throw(sends ? messenger.send(0, 3, data, soon()) : messenger.recv(2, 3, data, soon()));
      DTR_ASSERT_OK(messenger.wait(handle));
      EXPECT_EQ(data, right);
    }
  });
}

}  // namespace
}  // namespace dtr
