// Messages come whole, once, in order, to whoever asked for them; on every transport.
#include <atomic>
#include <set>
#include <thread>

#include "messaging/ways.hpp"

namespace dtr {
namespace {

using namespace testing;
using ::testing::HasSubstr;

constexpr std::uint64_t kTag = 7;

class MessengerTest : public ::testing::TestWithParam<Job> {};

INSTANTIATE_TEST_SUITE_P(Ways, MessengerTest, ::testing::ValuesIn(message_ways()), way_name);

std::vector<std::size_t> sizes() {
  return {0,    1,    8,     100,   4000,  4080,  4081,   4096,   4097,   4336,    4337,
          5000, 8192, 10001, 65535, 65536, 65537, 131072, 200000, 600001, 1 << 20, (1 << 20) + 1};
}

struct LargestEager {
  ConfigPairs config;
  std::size_t bytes;
};

/// A round trip over tcp takes longer than copying 64 KiB, so so much goes before somebody has asked.
TEST(LargestEagerTest, OverTcpIsWhatTheConfigurationSays) {
  const LargestEager cases[] = {{{}, 65536},
                                {{{"tcp.eager_bytes", "8192"}}, 8192 - 16},
                                {{{"tcp.eager_bytes", "64"}}, 4352 - 16},  // fabric.eager_bytes is more
                                {{{"tcp.eager_bytes", "1MiB"}}, 65536}};   // as messages.thresholds has it
  for (const auto& one : cases) {
    SCOPED_TRACE(one.bytes);
    run({.transport = "tcp", .workers = 2, .servers = 0, .config = one.config}, [&one](Runtime& rt) {
      Messenger messenger(rt);
      Bytes word(1);
      const auto heard_of = value_or_throw(rt.rank() == 1 ? messenger.send(0, kTag + 1, word, soon())
                                                          : messenger.recv(1, kTag + 1, word, soon()));
      DTR_ASSERT_OK(messenger.wait(heard_of));
      if (rt.rank() == 0) {
        const Bytes data = data_of(one.bytes + 1, 7);
        const std::span whole(data);
        const auto at_once = value_or_throw(messenger.send(1, kTag, whole.first(one.bytes), soon()));
        DTR_EXPECT_OK(messenger.wait(at_once));
        const auto offered = value_or_throw(messenger.send(1, kTag, whole, 100ms));
        EXPECT_EQ(messenger.wait(offered).error().code, Errc::timed_out);
      }
      value_or_throw(rt.allgather("sent", {}, soon()));
      if (rt.rank() == 0) return;
      Bytes data(one.bytes);
      DTR_ASSERT_OK(messenger.wait(value_or_throw(messenger.recv(0, kTag, data, soon()))));
      const Bytes sent = data_of(one.bytes + 1, 7);
      EXPECT_TRUE(std::equal(data.begin(), data.end(), sent.begin()));
    });
  }
}

/// What comes before a Messenger is there is held for all ranks together, and must not be much.
TEST(LargestEagerTest, OverTcpIsThatOfAllTransportsUntilThePeersMessengerHasBeenHeardOf) {
  run({.transport = "tcp", .workers = 2, .servers = 0}, [](Runtime& rt) {
    std::unique_ptr<Messenger> own;
    for (int life = 0; life < 2; ++life) {  // of rank 1's; rank 0 keeps its own, and has to forget
      if (own == nullptr) own = std::make_unique<Messenger>(rt);
      Messenger& messenger = *own;
      Bytes data(10000);
      if (rt.rank() == 0) {
        const auto unheard = value_or_throw(messenger.send(1, kTag, data, 100ms));
        EXPECT_EQ(messenger.wait(unheard).error().code, Errc::timed_out);
      }
      value_or_throw(rt.allgather("unheard", {}, soon()));
      const auto word = value_or_throw(rt.rank() == 1 ? messenger.send(0, kTag, std::span(data).first(1), soon())
                                                      : messenger.recv(1, kTag, data, soon()));
      DTR_ASSERT_OK(messenger.wait(word));
      if (rt.rank() == 0) DTR_EXPECT_OK(messenger.wait(value_or_throw(messenger.send(1, kTag, data, soon()))));
      value_or_throw(rt.allgather("heard", {}, soon()));
      if (rt.rank() == 1) DTR_EXPECT_OK(messenger.wait(value_or_throw(messenger.recv(0, kTag, data, soon()))));
      if (rt.rank() == 1) own.reset();
      value_or_throw(rt.allgather("over", {}, soon()));
    }
  });
}

TEST_P(MessengerTest, EverySizeComesWholeWhetherExpectedOrNot) {
  run(GetParam(), [](Runtime& rt) {
    Messenger messenger(rt);
    for (const bool expected : {true, false}) {
      for (const std::size_t size : sizes()) {
        const std::string round = std::to_string(size) + (expected ? "e" : "u");
        if (rt.rank() == 0) {
          if (expected) value_or_throw(rt.allgather("posted" + round, {}, soon()));
          const Bytes data = data_of(size, size);
          auto sent = messenger.send(1, kTag, data, soon());
          DTR_ASSERT_OK(sent);
          if (!expected) value_or_throw(rt.allgather("sent" + round, {}, soon()));
          const auto outcome = messenger.wait(*sent);
          DTR_ASSERT_OK(outcome);
          EXPECT_EQ(outcome->bytes, size);
        } else {
          Bytes buffer(size + 8, std::byte{0x5A});
          if (!expected) value_or_throw(rt.allgather("sent" + round, {}, soon()));
          auto posted = messenger.recv(0, kTag, std::span(buffer).first(size), soon());
          DTR_ASSERT_OK(posted);
          if (expected) value_or_throw(rt.allgather("posted" + round, {}, soon()));
          const auto message = messenger.wait(*posted);
          DTR_ASSERT_OK(message);
          EXPECT_EQ(message->source, 0);
          EXPECT_EQ(message->tag, kTag);
          EXPECT_EQ(message->bytes, size);
          EXPECT_TRUE(std::equal(buffer.begin(), buffer.begin() + static_cast<std::ptrdiff_t>(size),
                                 data_of(size, size).begin()))
              << size;
          EXPECT_EQ(buffer[size], std::byte{0x5A}) << "written behind the buffer's end";
        }
      }
    }
  });
}

TEST_P(MessengerTest, MessagesAreCountedByTheWayTheyCame) {
  run(GetParam(), [](Runtime& rt) {
    const auto count = [&](const char* name, MetricLabels labels) {
      labels.insert(labels.begin(), {"group", "3"});
      return rt.metrics().counter(name, "", labels).value();
    };
    for (std::uint64_t life = 1; life <= 2; ++life) {  // of one Messenger after the other
      {
        Messenger messenger(rt, {.group = 3});
        Bytes data(100'000);
        for (const std::size_t size : {std::size_t{100}, data.size()}) {
          const auto part = std::span(data).first(size);
          auto begun = rt.rank() == 0 ? messenger.send(1, kTag, part, soon()) : messenger.recv(0, kTag, part, soon());
          DTR_ASSERT_OK(messenger.wait(value_or_throw(std::move(begun))));
        }
        const auto gone = value_or_throw(messenger.recv(1 - rt.rank(), kTag + 1, data, soon()));
        EXPECT_TRUE(messenger.cancel(gone));
        value_or_throw(rt.allgather("counted", {}, soon()));
      }
      EXPECT_EQ(count("dtr_messages_failed_total", {}), life);
      if (rt.rank() == 0) {
        EXPECT_EQ(count("dtr_messages_sent_total", {}), 2 * life);
        EXPECT_EQ(count("dtr_messages_sent_bytes_total", {}), 100'100 * life);
      } else {
        EXPECT_EQ(count("dtr_messages_received_total", {{"way", "eager"}}), life);
        EXPECT_EQ(count("dtr_messages_received_bytes_total", {{"way", "eager"}}), 100 * life);
        const auto larger = count("dtr_messages_received_total", {{"way", "slots"}}) +
                            count("dtr_messages_received_total", {{"way", "read"}});
        EXPECT_EQ(larger, life);
      }
      value_or_throw(rt.allgather("ended", {}, soon()));
    }
  });
}

TEST_P(MessengerTest, MessagesOfOneTagComeInTheOrderOfTheirSendsWhateverTheirSizes) {
  run(GetParam(), [](Runtime& rt) {
    Messenger messenger(rt);
    constexpr std::size_t kCount = 60;
    const auto size_of = [](std::size_t i) { return i % 3 == 0 ? 16 + i : i % 3 == 1 ? 70000 + i : 4096; };
    std::vector<Bytes> memory(kCount);
    std::vector<MessageHandle> handles;
    for (std::size_t i = 0; i < kCount; ++i) {
      memory[i] = rt.rank() == 0 ? data_of(size_of(i), i) : Bytes(80000);
      auto begun =
          rt.rank() == 0 ? messenger.send(1, kTag, memory[i], soon()) : messenger.recv(0, kTag, memory[i], soon());
      DTR_ASSERT_OK(begun);
      handles.push_back(*begun);
    }
    for (std::size_t i = 0; i < kCount; ++i) {
      const auto message = messenger.wait(handles[i]);
      DTR_ASSERT_OK(message);
      EXPECT_EQ(message->bytes, size_of(i));
      if (rt.rank() == 0) continue;
      memory[i].resize(message->bytes);
      EXPECT_EQ(memory[i], data_of(size_of(i), i)) << i;
    }
  });
}

TEST_P(MessengerTest, TagsAreReceivedInAnyOrderAndAMaskChoosesAmongThem) {
  run(GetParam(), [](Runtime& rt) {
    Messenger messenger(rt);
    constexpr std::uint64_t kCount = 40;
    const auto size_of = [](std::uint64_t tag) { return tag % 2 == 0 ? std::size_t{50} : std::size_t{9000}; };
    if (rt.rank() == 0) {
      std::vector<Bytes> memory;
      std::vector<MessageHandle> handles;
      for (std::uint64_t tag = 0; tag < kCount; ++tag) {
        memory.push_back(data_of(size_of(tag), tag));
        handles.push_back(value_or_throw(messenger.send(1, tag, memory.back(), soon())));
      }
      for (const auto handle : handles) DTR_EXPECT_OK(messenger.wait(handle));
      return;
    }
    for (std::uint64_t tag = kCount; tag-- > 4;) {
      Bytes buffer(size_of(tag));
      const auto message = messenger.wait(value_or_throw(messenger.recv(0, tag, buffer, soon())));
      DTR_ASSERT_OK(message);
      EXPECT_EQ(buffer, data_of(size_of(tag), tag));
    }
    Bytes buffer(9000);
    const auto odd = messenger.wait(value_or_throw(messenger.recv(0, 1, buffer, soon(), 1)));
    DTR_ASSERT_OK(odd);
    EXPECT_EQ(odd->tag, 1U);
    for (const std::uint64_t tag : {0U, 2U, 3U}) {  // what is left, oldest first
      const auto any = messenger.wait(value_or_throw(messenger.recv(kAnyRank, 99, buffer, soon(), 0)));
      DTR_ASSERT_OK(any);
      EXPECT_EQ(any->tag, tag);
      EXPECT_EQ(any->source, 0);
    }
  });
}

TEST_P(MessengerTest, ATooLongMessageEndsTheRecvNamingBothSizesAndNothingElse) {
  run(GetParam(), [](Runtime& rt) {
    Messenger messenger(rt);
    for (const std::size_t size : {std::size_t{100}, std::size_t{100000}}) {
      if (rt.rank() == 0) {
        const Bytes data = data_of(size);
        for (int i = 0; i < 2; ++i)
          DTR_EXPECT_OK(messenger.wait(value_or_throw(messenger.send(1, kTag, data, soon()))));
        continue;
      }
      Bytes buffer(size, std::byte{1});
      const auto cut =
          messenger.wait(value_or_throw(messenger.recv(0, kTag, std::span(buffer).first(size - 1), soon())));
      ASSERT_FALSE(cut);
      EXPECT_EQ(cut.error().code, Errc::truncated);
      EXPECT_THAT(cut.error().message, HasSubstr(std::to_string(size)));
      EXPECT_THAT(cut.error().message, HasSubstr(std::to_string(size - 1)));
      EXPECT_EQ(cut.error().peer, 0);
      DTR_EXPECT_OK(messenger.wait(value_or_throw(messenger.recv(0, kTag, buffer, soon()))));
      EXPECT_EQ(buffer, data_of(size));
    }
  });
}

TEST_P(MessengerTest, ManyThreadsSendAndReceiveAtOnce) {
  run(GetParam(), [](Runtime& rt) {
    Messenger messenger(rt);
    constexpr std::uint64_t kThreads = 4;
    constexpr std::uint64_t kEach = 150;
    std::vector<std::thread> threads;
    std::atomic<int> wrong{0};
    for (std::uint64_t t = 0; t < kThreads; ++t) {
      threads.emplace_back([&, t] {
        const int other = 1 - rt.rank();
        for (std::uint64_t i = 0; i < kEach; ++i) {
          const std::size_t size = i % 10 == 9 ? 30000 : 40;
          const auto mine = static_cast<std::uint64_t>(rt.rank());
          const Bytes out = data_of(size, t * 1000 + i + mine * 77);
          Bytes in(size);
          const auto sent = messenger.send(other, t, out, soon());
          const auto came = messenger.recv(other, t, in, soon());
          const bool good = sent && came && messenger.wait(*came) && messenger.wait(*sent) &&
                            in == data_of(size, t * 1000 + i + (1 - mine) * 77);
          if (!good) ++wrong;
        }
      });
    }
    for (auto& thread : threads) thread.join();
    EXPECT_EQ(wrong, 0);
  });
}

TEST_P(MessengerTest, MoreMessagesThanTheReceiverKeepsWaitAtTheSender) {
  run(GetParam(), [](Runtime& rt) {
    Messenger messenger(rt);
    constexpr std::size_t kCount = 3000;  // of 1000 bytes: three times the room, and more than there are offers
    constexpr std::size_t kSize = 1000;
    if (rt.rank() == 0) {
      const Bytes data = data_of(kSize);
      std::vector<MessageHandle> handles;
      for (std::size_t i = 0; i < kCount; ++i) handles.push_back(value_or_throw(messenger.send(1, i, data, soon())));
      EXPECT_FALSE(messenger.done(handles.back()));
      value_or_throw(rt.allgather("all sent", {}, soon()));
      for (const auto handle : handles) DTR_ASSERT_OK(messenger.wait(handle));
      return;
    }
    value_or_throw(rt.allgather("all sent", {}, soon()));
    Bytes buffer(kSize);
    for (std::size_t i = 0; i < kCount; ++i) {
      const auto message = messenger.wait(value_or_throw(messenger.recv(0, 0, buffer, soon(), 0)));
      DTR_ASSERT_OK(message);
      ASSERT_EQ(message->tag, i);
    }
  });
}

TEST_P(MessengerTest, LargeOnesAndSmallOnesBeyondTheReceiversRoomComeInOrder) {
  run(GetParam(), [](Runtime& rt) {
    Messenger messenger(rt);
    constexpr std::size_t kCount = 120;  // 3.6 MB: more than a queue or a receiver has room for
    const auto size_of = [](std::size_t i) { return i % 3 == 0 ? 60000 + i : i % 3 == 1 ? i : 30000 - i; };
    Bytes buffer(70000);
    const auto heard_of = value_or_throw(rt.rank() == 1 ? messenger.send(0, kTag, std::span(buffer).first(1), soon())
                                                        : messenger.recv(1, kTag, buffer, soon()));
    DTR_ASSERT_OK(messenger.wait(heard_of));
    if (rt.rank() == 0) {
      std::vector<Bytes> memory;
      std::vector<MessageHandle> handles;
      for (std::size_t i = 0; i < kCount; ++i) {
        memory.push_back(data_of(size_of(i), i));
        handles.push_back(value_or_throw(messenger.send(1, i, memory.back(), soon())));
      }
      EXPECT_FALSE(messenger.done(handles.back()));
      value_or_throw(rt.allgather("all sent", {}, soon()));
      for (const auto handle : handles) DTR_ASSERT_OK(messenger.wait(handle));
      return;
    }
    value_or_throw(rt.allgather("all sent", {}, soon()));
    for (std::size_t i = 0; i < kCount; ++i) {
      const auto message = messenger.wait(value_or_throw(messenger.recv(0, 0, buffer, soon(), 0)));
      DTR_ASSERT_OK(message);
      ASSERT_EQ(message->tag, i);
      const Bytes sent = data_of(size_of(i), i);
      ASSERT_EQ(message->bytes, sent.size());
      ASSERT_TRUE(std::equal(sent.begin(), sent.end(), buffer.begin())) << i;
    }
  });
}

TEST_P(MessengerTest, OneMessengerAfterTheOtherServesTheSameRuntime) {
  run(GetParam(), [](Runtime& rt) {
    for (int i = 0; i < 3; ++i) {
      value_or_throw(rt.allgather("before", {}, soon()));
      Messenger messenger(rt);
      const Bytes out = data_of(70000, static_cast<std::uint64_t>(i));
      Bytes in(out.size());
      const auto sent = messenger.send(1 - rt.rank(), kTag, out, soon());
      const auto came = messenger.recv(1 - rt.rank(), kTag, in, soon());
      DTR_ASSERT_OK(sent);
      DTR_ASSERT_OK(came);
      DTR_ASSERT_OK(messenger.wait(*came));
      DTR_ASSERT_OK(messenger.wait(*sent));
      EXPECT_EQ(in, out);
    }
  });
}

class AnySourceTest : public ::testing::TestWithParam<Job> {};

INSTANTIATE_TEST_SUITE_P(Ways, AnySourceTest, ::testing::ValuesIn(message_ways(4)), way_name);

TEST_P(AnySourceTest, EachSenderIsHeardInItsOwnOrder) {
  run(GetParam(), [](Runtime& rt) {
    Messenger messenger(rt);
    constexpr std::size_t kEach = 20;
    const auto size_of = [](std::size_t i) { return i % 4 == 3 ? std::size_t{20000} : std::size_t{64}; };
    if (rt.rank() != 0) {
      for (std::size_t i = 0; i < kEach; ++i) {
        const Bytes data = data_of(size_of(i), static_cast<std::uint64_t>(rt.rank()) * 1000 + i);
        DTR_ASSERT_OK(messenger.wait(value_or_throw(messenger.send(0, i, data, soon()))));
      }
      return;
    }
    std::vector<std::size_t> next(4, 0);
    Bytes buffer(20000);
    for (std::size_t i = 0; i < 3 * kEach; ++i) {
      const auto message = messenger.wait(value_or_throw(messenger.recv(kAnyRank, 0, buffer, soon(), 0)));
      DTR_ASSERT_OK(message);
      const auto source = static_cast<std::size_t>(message->source);
      ASSERT_LT(source, next.size());
      EXPECT_EQ(message->tag, next[source]);
      const Bytes right = data_of(size_of(next[source]), source * 1000 + next[source]);
      EXPECT_TRUE(std::equal(right.begin(), right.end(), buffer.begin())) << "from rank " << source;
      ++next[source];
    }
  });
}

TEST(MessengerToSelfTest, ARankSendsToItself) {
  run({.transport = "shm", .workers = 1, .servers = 0}, [](Runtime& rt) {
    Messenger messenger(rt);
    for (const std::size_t size : sizes()) {
      for (const bool expected : {true, false}) {
        const Bytes out = data_of(size, size);
        Bytes in(size);
        Result<MessageHandle> came;
        Result<MessageHandle> sent;
        if (expected) came = messenger.recv(0, kTag, in, soon());
        sent = messenger.send(0, kTag, out, soon());
        if (!expected) came = messenger.recv(kAnyRank, kTag, in, soon());
        DTR_ASSERT_OK(sent);
        DTR_ASSERT_OK(came);
        DTR_EXPECT_OK(messenger.wait(*came));
        DTR_EXPECT_OK(messenger.wait(*sent));
        EXPECT_EQ(in, out);
      }
    }
  });
}

TEST(MessengerCallsTest, WrongCallsAreErrorsAtOnce) {
  run({.transport = "shm", .workers = 1, .servers = 0}, [](Runtime& rt) {
    Messenger messenger(rt);
    const Bytes data(8);
    EXPECT_EQ(messenger.send(1, 0, data).error().code, Errc::not_found);
    EXPECT_EQ(messenger.send(kAnyRank, 0, data).error().code, Errc::not_found);
    EXPECT_EQ(messenger.send(0, 0, std::span<const std::byte>(static_cast<const std::byte*>(nullptr), 8)).error().code,
              Errc::invalid_argument);
    EXPECT_EQ(messenger.wait({}).error().code, Errc::stale_handle);
    EXPECT_EQ(messenger.wait({.slot = 5, .generation = 1}).error().code, Errc::stale_handle);
    EXPECT_FALSE(messenger.cancel({.slot = 0xFFFF'FFFF, .generation = 1}));
    const auto sent = messenger.send(0, 0, data);
    DTR_ASSERT_OK(sent);
    DTR_EXPECT_OK(messenger.wait(*sent));
    EXPECT_EQ(messenger.wait(*sent).error().code, Errc::stale_handle);
    EXPECT_THROW(Messenger(rt, {}), Exception) << "the group is taken";
    EXPECT_THROW(Messenger(rt, {.group = 64}), Exception);
    const Messenger other(rt, {.group = 1});
  });
}

}  // namespace
}  // namespace dtr
