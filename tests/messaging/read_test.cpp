// Messages that the receiver reads in the sender's memory: whole, or not at all, whatever the sender does meanwhile.
#include <algorithm>
#include <cstring>
#include <fstream>
#include <string>
#include <thread>

#include "messaging/ways.hpp"

namespace dtr {
namespace {

using namespace testing;

constexpr std::uint64_t kTag = 7;

/// From memory of the pool, which the receiver maps, or from malloc's, which it does not.
struct Lies {
  const char* where;
  bool mapped;
};
// NOLINTNEXTLINE(readability-identifier-naming): the name is GoogleTest's
void PrintTo(const Lies& lies, std::ostream* out) { *out << lies.where; }

class ReadTest : public ::testing::TestWithParam<Lies> {
 protected:
  static Job job(int ranks = 2) {
    return {.transport = "shm", .workers = ranks, .servers = 0, .config = {{"messages.thresholds", DTR_READ_TABLE}}};
  }

  static Memory memory(Runtime& rt, std::size_t bytes) { return {rt, bytes, GetParam().mapped}; }
};

INSTANTIATE_TEST_SUITE_P(Memory, ReadTest, ::testing::Values(Lies{"pool", true}, Lies{"malloc", false}),
                         [](const auto& lies) { return std::string(lies.param.where); });

void send_one(Messenger& messenger, int to, std::span<const std::byte> data) {
  DTR_ASSERT_OK(messenger.wait(value_or_throw(messenger.send(to, kTag, data, soon()))));
}
void recv_one(Messenger& messenger, int from, std::span<std::byte> data) {
  DTR_ASSERT_OK(messenger.wait(value_or_throw(messenger.recv(from, kTag, data, soon()))));
}

/// Bytes that this rank has read in memory of others.
std::uint64_t bytes_read(Runtime& rt) {
  std::uint64_t all = 0;
  for (const auto& each : rt.fabric().traffic()) {
    if (each.transport == "shm") all += each.totals.bytes[static_cast<std::size_t>(fabric::Opcode::get)];
  }
  return all;
}

/// One message, at the ends that are its.
void send_between(Runtime& rt, Messenger& messenger, int from, std::span<std::byte> data) {
  if (rt.rank() == from) {
    send_one(messenger, 1 - from, data);
  } else {
    recv_one(messenger, from, data);
  }
}

/// So many messages until the ways between the two stand: before, they go through slots.
void warm_up(Runtime& rt, Messenger& messenger, std::span<std::byte> memory) {
  bool read = false;
  for (int i = 0; i < 1000 && !read; ++i) {
    const auto piece = memory.first(8192);
    const std::uint64_t before = messages_read(rt);
    for (const int from : {0, 1}) send_between(rt, messenger, from, piece);
    std::byte told{messages_read(rt) > before};
    const auto all = value_or_throw(rt.allgather("read", {&told, 1}, soon()));
    read = all.at(0).at(0) != std::byte{0} && all.at(1).at(0) != std::byte{0};
  }
  EXPECT_TRUE(read) << "messages are not read";
}

TEST_P(ReadTest, EverySizeFromEveryPlaceComesWholeAndIsCopiedOnce) {
  run(job(), [](Runtime& rt) {
    Messenger messenger(rt);
    constexpr std::size_t kMost = (5 << 20) + 100;
    Memory mine = memory(rt, kMost);
    warm_up(rt, messenger, mine.span());
    std::uint64_t sum = 0;
    std::uint64_t count = 0;
    const std::uint64_t before = bytes_read(rt);
    const std::uint64_t messages_before = messages_read(rt);
    for (const std::size_t size : {4097, 5000, 8192, 65536, 65537, 1 << 20, (1 << 20) + 1, (5 << 20) + 3}) {
      for (const std::size_t at : {std::size_t{0}, std::size_t{1}, kMost - size}) {
        const Bytes right = data_of(size, size + at);
        const auto place = mine.span().subspan(at, size);
        sum += size;
        ++count;
        if (rt.rank() == 0) {
          std::memcpy(place.data(), right.data(), size);
          send_one(messenger, 1, place);
        } else {
          recv_one(messenger, 0, place);
          EXPECT_TRUE(std::equal(place.begin(), place.end(), right.begin())) << size << " at " << at;
        }
      }
    }
    if (rt.rank() == 1) {
      EXPECT_EQ(messages_read(rt), messages_before + count);
      EXPECT_GE(bytes_read(rt), before + sum);
      EXPECT_LE(bytes_read(rt), before + sum + count * 100) << "a look at the lease for each piece, no more";
    }
    value_or_throw(rt.allgather("end", {}, soon()));
  });
}

TEST_P(ReadTest, ManyAtOnceInBothDirectionsComeEachToItsOwn) {
  run(job(), [](Runtime& rt) {
    Messenger messenger(rt);
    constexpr std::size_t kCount = 50;
    constexpr std::size_t kEach = 300'001;
    const int other = 1 - rt.rank();
    Memory out = memory(rt, kCount * kEach);
    Memory in = memory(rt, kCount * kEach);
    warm_up(rt, messenger, out.span());
    const std::uint64_t read_before = messages_read(rt);
    const auto seed = [](int rank, std::size_t i) { return static_cast<std::uint64_t>(rank) * 1000 + i; };
    std::vector<MessageHandle> handles;
    for (std::size_t i = 0; i < kCount; ++i) {
      const Bytes data = data_of(kEach, seed(rt.rank(), i));
      std::memcpy(out.span().data() + i * kEach, data.data(), kEach);
      handles.push_back(value_or_throw(messenger.send(other, i, out.span().subspan(i * kEach, kEach), soon())));
    }
    for (std::size_t i = kCount; i-- > 0;) {
      handles.push_back(value_or_throw(messenger.recv(other, i, in.span().subspan(i * kEach, kEach), soon())));
    }
    for (const MessageHandle each : handles) DTR_ASSERT_OK(messenger.wait(each));
    for (std::size_t i = 0; i < kCount; ++i) {
      const Bytes right = data_of(kEach, seed(other, i));
      EXPECT_EQ(std::memcmp(in.span().data() + i * kEach, right.data(), kEach), 0) << i;
    }
    EXPECT_EQ(messages_read(rt), read_before + kCount);
    value_or_throw(rt.allgather("end", {}, soon()));
  });
}

// A copy of 32 MiB takes some milliseconds: the cancel comes before, in the midst of it, and afterwards.
TEST_P(ReadTest, WhatItsSenderTakesBackIsNeverDeliveredWithOtherBytes) {
  run(job(), [](Runtime& rt) {
    Messenger messenger(rt);
    constexpr std::size_t kBytes = 32 << 20;
    constexpr int kAttempts = 60;
    constexpr int kKept = 10;  // one of so many is not taken back
    Memory mine = memory(rt, kBytes);
    warm_up(rt, messenger, mine.span());
    int taken_back = 0;
    int came_whole = 0;
    for (int attempt = 0; attempt < kAttempts; ++attempt) {
      const auto right = static_cast<std::byte>(attempt);
      if (rt.rank() == 0) {
        std::fill(mine.span().begin(), mine.span().end(), right);
        value_or_throw(rt.allgather("filled", {}, soon()));
        const auto sent = value_or_throw(messenger.send(1, kTag, mine.span(), soon()));
        std::this_thread::sleep_for(std::chrono::microseconds(150 * (attempt % 20)));
        const bool cancelled = attempt % kKept != kKept - 1 && messenger.cancel(sent);
        if (cancelled) {
          std::fill(mine.span().begin(), mine.span().end(), std::byte{0xEE});
          ++taken_back;
        }
        EXPECT_EQ(messenger.wait(sent).has_value(), !cancelled);
      } else {
        value_or_throw(rt.allgather("filled", {}, soon()));
        const Deadline patience = attempt % kKept == kKept - 1 ? soon() : Deadline(scaled(300ms));
        const auto came = messenger.wait(value_or_throw(messenger.recv(0, kTag, mine.span(), patience)));
        if (came) {
          ++came_whole;
          EXPECT_EQ(std::count(mine.span().begin(), mine.span().end(), right), kBytes) << "attempt " << attempt;
        } else {
          EXPECT_TRUE(came.error().code == Errc::cancelled || came.error().code == Errc::timed_out)
              << came.error().to_string();
        }
      }
      value_or_throw(rt.allgather("attempted", {}, soon()));
    }
    if (rt.rank() == 0) {
      EXPECT_GT(taken_back, 0);
    } else {
      EXPECT_GE(came_whole, kAttempts / kKept);
    }
  });
}

TEST_P(ReadTest, ARecvThatIsCancelledWhileItReadsEndsItsSend) {
  run(job(), [](Runtime& rt) {
    Messenger messenger(rt);
    constexpr std::size_t kBytes = 32 << 20;
    Memory mine = memory(rt, kBytes);
    warm_up(rt, messenger, mine.span());
    for (int attempt = 0; attempt < 20; ++attempt) {
      bool ended_well = false;
      if (rt.rank() == 0) {
        const auto sent = value_or_throw(messenger.send(1, kTag, mine.span(), soon()));
        value_or_throw(rt.allgather("offered", {}, soon()));
        const auto outcome = messenger.wait(sent);
        ended_well = outcome.has_value();
        if (!outcome) {
          EXPECT_EQ(outcome.error().code, Errc::cancelled) << outcome.error().to_string();
        }
      } else {
        value_or_throw(rt.allgather("offered", {}, soon()));
        const auto came = value_or_throw(messenger.recv(0, kTag, mine.span(), soon()));
        std::this_thread::sleep_for(std::chrono::microseconds(100 * attempt));
        const bool cancelled = messenger.cancel(came);
        ended_well = messenger.wait(came).has_value();
        EXPECT_EQ(ended_well, !cancelled);
      }
      std::byte mine_ended{ended_well};
      const auto all = value_or_throw(rt.allgather("ended", {&mine_ended, 1}, soon()));
      EXPECT_EQ(all.at(0), all.at(1)) << "the two ends differ";
    }
  });
}

TEST_P(ReadTest, AMessageThatIsTooLongIsNotRead) {
  run(job(), [](Runtime& rt) {
    Messenger messenger(rt);
    Memory mine = memory(rt, 1 << 20);
    warm_up(rt, messenger, mine.span());
    const std::uint64_t read_before = bytes_read(rt);
    if (rt.rank() == 0) {
      send_one(messenger, 1, mine.span());
    } else {
      const auto came = messenger.wait(value_or_throw(messenger.recv(0, kTag, mine.span().first(100'000), soon())));
      ASSERT_FALSE(came);
      EXPECT_EQ(came.error().code, Errc::truncated);
      EXPECT_EQ(bytes_read(rt), read_before);
    }
    value_or_throw(rt.allgather("end", {}, soon()));
  });
}

TEST_P(ReadTest, MoreThanMayBeReadAtATimeComeAllTheSame) {
  run(job(6), [](Runtime& rt) {
    constexpr int kOfEach = 1000;  // to five ranks: more than the 4096 that may be lent
    Messenger messenger(rt);
    Memory mine = memory(rt, 5000);
    const Bytes right = data_of(5000);
    if (rt.rank() == 0) {
      std::memcpy(mine.span().data(), right.data(), right.size());
      std::vector<MessageHandle> sent;
      for (int i = 0; i < kOfEach; ++i) {
        for (int to = 1; to < rt.size(); ++to) {
          sent.push_back(value_or_throw(messenger.send(to, kTag, mine.span(), soon())));
        }
      }
      value_or_throw(rt.allgather("sent", {}, soon()));
      for (const MessageHandle each : sent) DTR_ASSERT_OK(messenger.wait(each));
    } else {
      value_or_throw(rt.allgather("sent", {}, soon()));
      for (int i = 0; i < kOfEach; ++i) {
        std::fill(mine.span().begin(), mine.span().end(), std::byte{0});
        recv_one(messenger, 0, mine.span());
        ASSERT_TRUE(std::equal(right.begin(), right.end(), mine.span().begin())) << i;
      }
    }
    value_or_throw(rt.allgather("end", {}, soon()));
  });
}

// The one side ends its Messenger while the other reads, or both do: what has come is right, and nothing comes later.
TEST_P(ReadTest, MessengersThatEndAmidAMessageEndItAndLeaveTheBuffersAlone) {
  run(job(), [](Runtime& rt) {
    constexpr std::size_t kBytes = 32 << 20;
    Memory mine = memory(rt, kBytes);
    for (int attempt = 0; attempt < 16; ++attempt) {
      const auto right = static_cast<std::byte>(attempt + 1);
      {
        Messenger messenger(rt);
        warm_up(rt, messenger, mine.span());
        std::fill(mine.span().begin(), mine.span().end(), rt.rank() == 0 ? right : std::byte{0});
        MessageHandle came;
        if (rt.rank() == 1) came = value_or_throw(messenger.recv(0, kTag, mine.span(), soon()));
        value_or_throw(rt.allgather("filled", {}, soon()));
        if (rt.rank() == 0) {
          static_cast<void>(value_or_throw(messenger.send(1, kTag, mine.span(), soon())));
          std::this_thread::sleep_for(std::chrono::microseconds(150 * (attempt % 8) + (attempt < 8 ? 0 : 100'000)));
        } else if (attempt < 8) {
          const auto outcome = messenger.wait(came);
          if (outcome) {
            EXPECT_EQ(std::count(mine.span().begin(), mine.span().end(), right), kBytes) << "attempt " << attempt;
          } else {
            EXPECT_TRUE(outcome.error().code == Errc::closed || outcome.error().code == Errc::cancelled)
                << outcome.error().to_string();
          }
        } else {
          std::this_thread::sleep_for(std::chrono::microseconds(150 * (attempt % 8)));
        }
      }
      std::fill(mine.span().begin(), mine.span().end(), std::byte{0xAA});
      value_or_throw(rt.allgather("both have ended", {}, soon()));
      EXPECT_EQ(std::count(mine.span().begin(), mine.span().end(), std::byte{0xAA}), kBytes) << "attempt " << attempt;
      value_or_throw(rt.allgather("both have looked", {}, soon()));
    }
  });
}

TEST_P(ReadTest, MessengersOneAfterTheOtherLeaveNothingOfThePoolBehind) {
  Job small = job();
  small.config.emplace_back("memory.pool_bytes", "4194304");
  small.config.emplace_back("memory.pool_max_bytes", "4194304");
  run(small, [](Runtime& rt) {
    Memory mine = memory(rt, 8192);
    for (int life = 0; life < 150; ++life) {  // of 32 KiB each
      auto messenger = std::make_unique<Messenger>(rt);
      const bool first = rt.rank() == life % 2;
      send_between(rt, *messenger, 0, mine.span());
      value_or_throw(rt.allgather("sent", {}, soon()));
      if (first) messenger.reset();
      value_or_throw(rt.allgather("one has ended", {}, soon()));
      messenger.reset();
      value_or_throw(rt.allgather("both have ended", {}, soon()));
    }
    DTR_EXPECT_OK(rt.allocate(2 << 20));
    value_or_throw(rt.allgather("end", {}, soon()));
  });
}

TEST(ReadRowTest, MemoryOfThePoolGoesAsMappedSaysAndOtherMemoryAsWaySays) {
  for (const bool from_pool : {true, false}) {
    for (const MessageWay mapped : {MessageWay::slots, MessageWay::read}) {
      const MessageWay way = mapped == MessageWay::read ? MessageWay::slots : MessageWay::read;
      run({.transport = "shm", .workers = 2, .servers = 0}, [&](Runtime& rt) {
        Thresholds table;
        table.tables = {{.transport = "shm", .rows = {{.up_to = 1 << 30, .way = way, .mapped = mapped}}}};
        Messenger messenger(rt, {.thresholds = table});
        const Buffer pooled = value_or_throw(rt.allocate(100'000));
        Bytes own(100'000);
        const std::span<std::byte> place = from_pool ? pooled.span() : std::span(own);
        constexpr std::uint64_t kCount = 200;
        for (std::uint64_t i = 0; i < kCount; ++i) {
          send_between(rt, messenger, 0, place);
        }
        if (rt.rank() == 1) {
          const bool reads = (from_pool ? mapped : way) == MessageWay::read;
          EXPECT_EQ(messages_read(rt) > 0, reads) << (from_pool ? "from the pool" : "from malloc");
        }
        value_or_throw(rt.allgather("end", {}, soon()));
      });
    }
  }
}

/// Memory that its owner can read and the kernel does not copy for others: that of the clock.
std::span<std::byte> unreadable_for_others() {
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    if (line.find("[vvar]") == std::string::npos) continue;
    // NOLINTNEXTLINE(performance-no-int-to-ptr): an address as text
    return {reinterpret_cast<std::byte*>(std::stoull(line, nullptr, 16)), 4096};
  }
  return {};
}

TEST(ReadWithoutTest, WhatTheKernelDoesNotLetTheReceiverReadGoesThroughSlots) {
  Thresholds table;
  table.tables = {{.transport = "shm", .rows = {{.up_to = 1 << 30, .way = MessageWay::read}}}};
  run({.transport = "shm", .workers = 2, .servers = 0}, [&](Runtime& rt) {
    Messenger messenger(rt, {.thresholds = table});
    Bytes readable(8192);
    warm_up(rt, messenger, readable);
    const std::span<std::byte> clock = unreadable_for_others();
    ASSERT_FALSE(clock.empty());
    const std::uint64_t before = messages_read(rt);
    for (int i = 0; i < 3; ++i) {
      if (rt.rank() == 0) {
        send_one(messenger, 1, clock);
      } else {
        Bytes in(clock.size());
        recv_one(messenger, 0, in);
        EXPECT_TRUE(std::any_of(in.begin(), in.end(), [](std::byte each) { return each != std::byte{0}; }));
      }
    }
    EXPECT_EQ(messages_read(rt), before);
    value_or_throw(rt.allgather("end", {}, soon()));
  });
}

TEST(ReadWithoutTest, WhereTheKernelDoesNotAllowItMessagesGoThroughSlots) {
  const Job job{.transport = "shm",
                .workers = 2,
                .servers = 0,
                .config = {{"messages.thresholds", DTR_READ_TABLE}, {"shm.cma", "off"}}};
  run(job, [](Runtime& rt) {
    Messenger messenger(rt);
    const Bytes right = data_of(1 << 20);
    for (int i = 0; i < 5; ++i) {
      if (rt.rank() == 0) {
        send_one(messenger, 1, right);
      } else {
        Bytes in(right.size());
        recv_one(messenger, 0, in);
        EXPECT_TRUE(in == right);
      }
    }
    EXPECT_EQ(bytes_read(rt), 0U);
    value_or_throw(rt.allgather("end", {}, soon()));
  });
}

}  // namespace
}  // namespace dtr
