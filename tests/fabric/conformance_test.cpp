// The contract of the fabric, the same for every transport. Each test's name is the sentence that it proves.
#include <atomic>
#include <random>
#include <thread>

#include <gmock/gmock.h>

#include "dtr/fabric/refusals.hpp"
#include "fabric/world.hpp"

namespace dtr::testing {
namespace {

using fabric::Completion;
using fabric::Port;
using fabric::RemoteRegion;
using fabric::WorkRequest;

constexpr Port kPort = 7;

class ConformanceTest : public ::testing::TestWithParam<TransportCase> {
 protected:
  [[nodiscard]] static Memory make(fabric::Fabric& fabric, std::size_t bytes, RegionOptions options = {}) {
    return {fabric, bytes, GetParam().managed, options};
  }

  /// Submits to the target and waits for the end.
  [[nodiscard]] static Result<void> run(World& world, std::vector<WorkRequest> requests,
                                        std::chrono::milliseconds bound = 10s) {
    Completion done;
    for (WorkRequest& request : requests) request.completion = &done;
    world.initiator().submit(world.target_id(), requests, scaled(bound));
    auto result = world.initiator().wait(done, world.target_id(), "test", scaled(bound) + 5s);
    EXPECT_TRUE(done.done());
    return result;
  }

  [[nodiscard]] static const RemoteRegion* import(World& world, const Memory& memory) {
    return value_or_throw(world.initiator().import(world.target_id(), memory.region()->key()));
  }
};

TEST_P(ConformanceTest, PutWritesExactlyTheNamedBytes) {
  World world(GetParam());
  for (const std::size_t size :
       {std::size_t{1}, std::size_t{7}, std::size_t{8}, std::size_t{63}, std::size_t{64}, std::size_t{65},
        std::size_t{4095}, std::size_t{4096}, std::size_t{4097}, std::size_t{65536}, std::size_t{(1 << 20) + 3}}) {
    Memory source = make(world.initiator(), size + 16);
    Memory sink = make(world.target(), size + 32);
    source.pattern(size);
    sink.fill(std::byte{0x5A});
    ASSERT_TRUE(run(world, {WorkRequest::put({source.region(), 0}, {import(world, sink), 16}, size, nullptr),
                            WorkRequest::flush(nullptr)}))
        << size;
    EXPECT_EQ(sink.mismatches(size, 16, size), 0U) << size;
    for (std::size_t i = 0; i < 16; ++i) {
      EXPECT_EQ(sink.data()[i], std::byte{0x5A}) << size;
      EXPECT_EQ(sink.data()[16 + size + i], std::byte{0x5A}) << size;
    }
  }
}

TEST_P(ConformanceTest, GetReadsExactlyTheNamedBytes) {
  World world(GetParam());
  for (const std::size_t size : {std::size_t{1}, std::size_t{8}, std::size_t{65}, std::size_t{4097}, std::size_t{65536},
                                 std::size_t{(1 << 20) + 3}}) {
    Memory sink = make(world.initiator(), size + 32);
    Memory source = make(world.target(), size + 16);
    source.pattern(size);
    sink.fill(std::byte{0x5A});
    ASSERT_TRUE(run(world, {WorkRequest::get({import(world, source), 0}, {sink.region(), 16}, size, nullptr)}));
    EXPECT_EQ(sink.mismatches(size, 16, size), 0U) << size;
    for (std::size_t i = 0; i < 16; ++i) {
      EXPECT_EQ(sink.data()[i], std::byte{0x5A}) << size;
      EXPECT_EQ(sink.data()[16 + size + i], std::byte{0x5A}) << size;
    }
  }
}

TEST_P(ConformanceTest, EmptyTransfersFinish) {
  World world(GetParam());
  Memory source = make(world.initiator(), 8);
  Memory sink = make(world.target(), 8);
  sink.fill(std::byte{1});
  EXPECT_TRUE(run(world, {WorkRequest::put({source.region(), 8}, {import(world, sink), 8}, 0, nullptr),
                          WorkRequest::get({import(world, sink), 0}, {source.region(), 0}, 0, nullptr),
                          WorkRequest::flush(nullptr)}));
  EXPECT_EQ(sink.data()[7], std::byte{1});
}

TEST_P(ConformanceTest, LargeTransfersKeepEveryByte) {
  World world(GetParam());
  constexpr std::size_t kSize = (24 << 20) + 13;
  Memory source = make(world.initiator(), kSize);
  Memory sink = make(world.target(), kSize);
  source.pattern(1);
  ASSERT_TRUE(run(world, {WorkRequest::put({source.region(), 0}, {import(world, sink), 0}, kSize, nullptr)}, 60s));
  EXPECT_EQ(sink.mismatches(1, 0, kSize), 0U);
  source.fill(std::byte{0});
  ASSERT_TRUE(run(world, {WorkRequest::get({import(world, sink), 0}, {source.region(), 0}, kSize, nullptr)}, 60s));
  EXPECT_EQ(source.mismatches(1, 0, kSize), 0U);
}

TEST_P(ConformanceTest, NotificationComesAfterItsOwnData) {
  World world(GetParam());
  constexpr int kRounds = 300;
  constexpr std::size_t kBytes = 3000;
  Memory source = make(world.initiator(), kBytes * kRounds);
  Memory sink = make(world.target(), kBytes * kRounds);
  sink.fill(std::byte{0});

  /// Looks at the data at the very moment of the notification.
  class Checker final : public fabric::PortHandler {
   public:
    explicit Checker(const Memory& memory) : memory_(memory) {}
    void on_notify(fabric::PeerId, std::uint32_t value) noexcept override {
      for (std::size_t i = 0; i < kBytes; ++i) {
        if (memory_.data()[value * kBytes + i] != pattern_byte(value, i)) ++wrong;
      }
      ++seen;
    }
    void on_message(fabric::PeerId, std::span<const std::byte>) noexcept override {}
    void on_peer_down(fabric::PeerId, const Error&) noexcept override {}
    std::atomic<int> seen{0};
    std::atomic<int> wrong{0};

   private:
    const Memory& memory_;
  } checker(sink);
  ASSERT_TRUE(world.target().open_port(kPort, checker));

  const RemoteRegion* remote = import(world, sink);
  std::vector<WorkRequest> requests;
  for (std::uint32_t round = 0; round < kRounds; ++round) {
    for (std::size_t i = 0; i < kBytes; ++i) source.data()[round * kBytes + i] = pattern_byte(round, i);
    requests.push_back(WorkRequest::put_notify({source.region(), round * kBytes}, {remote, round * kBytes}, kBytes,
                                               kPort, round, nullptr));
  }
  ASSERT_TRUE(run(world, requests));
  EXPECT_EQ(world.target().progress().wait([&]() noexcept { return checker.seen == kRounds; }, scaled(10s)), Errc::ok);
  EXPECT_EQ(checker.wrong, 0);
  world.target().close_port(kPort);
}

TEST_P(ConformanceTest, NotificationsCarryPortValueAndSource) {
  World world(GetParam());
  Inbox first;
  Inbox second;
  ASSERT_TRUE(world.target().open_port(1, first));
  ASSERT_TRUE(world.target().open_port(255, second));
  ASSERT_TRUE(run(world, {WorkRequest::notify(1, 0, nullptr), WorkRequest::notify(255, 0xFFFFFF, nullptr)}));
  const auto a = first.next();
  const auto b = second.next();
  ASSERT_TRUE(a && b);
  EXPECT_EQ(a->value, 0U);
  EXPECT_EQ(b->value, 0xFFFFFFU);
  EXPECT_EQ(b->from, 0U);
  world.target().close_port(1);
  world.target().close_port(255);
}

TEST_P(ConformanceTest, ValuesAbove24BitsAreRefused) {
  World world(GetParam());
  WorkRequest request = WorkRequest::notify(1, 0, nullptr);
  request.value = 0x1000000;
  const auto result = run(world, {request});
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code, Errc::invalid_argument);
}

TEST_P(ConformanceTest, MessagesArriveWholeAndOnce) {
  World world(GetParam());
  Inbox inbox;
  ASSERT_TRUE(world.target().open_port(kPort, inbox));
  constexpr std::uint32_t kMessages = 3000;
  for (std::uint32_t i = 0; i < kMessages; ++i) {
    std::vector<std::byte> payload(i % 4097);
    for (std::size_t k = 0; k < payload.size(); ++k) payload[k] = pattern_byte(i, k);
    // No completion: what is sent in a burst waits for room by itself.
    world.initiator().submit(world.target_id(), std::array{WorkRequest::send(kPort, payload, nullptr)}, scaled(30s));
    payload.assign(payload.size(), std::byte{0});  // the payload is the caller's again at once
  }
  for (std::uint32_t i = 0; i < kMessages; ++i) {
    const auto event = inbox.next();
    ASSERT_TRUE(event) << "message " << i << " did not come";
    ASSERT_EQ(event->payload.size(), i % 4097) << i;
    for (std::size_t k = 0; k < event->payload.size(); ++k) ASSERT_EQ(event->payload[k], pattern_byte(i, k)) << i;
  }
  EXPECT_FALSE(inbox.next(50ms)) << "a message came twice";
  world.target().close_port(kPort);
}

TEST_P(ConformanceTest, TooLargeMessagesAreRefused) {
  World world(GetParam());
  const std::vector<std::byte> payload(4097);
  const auto result = run(world, {WorkRequest::send(kPort, payload, nullptr)});
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code, Errc::out_of_range);
}

TEST_P(ConformanceTest, WhatComesBeforeThePortIsOpenIsKept) {
  World world(GetParam());
  const std::vector<std::byte> payload(100, std::byte{9});
  ASSERT_TRUE(run(world, {WorkRequest::send(kPort, payload, nullptr), WorkRequest::notify(kPort, 5, nullptr),
                          WorkRequest::flush(nullptr)}));
  std::this_thread::sleep_for(20ms);
  Inbox inbox;
  ASSERT_TRUE(world.target().open_port(kPort, inbox));
  auto message = inbox.next();
  auto notification = inbox.next();
  ASSERT_TRUE(message && notification);
  if (!message->is_message) std::swap(message, notification);  // a notification may overtake a message
  EXPECT_TRUE(message->is_message);
  EXPECT_EQ(message->payload, payload);
  EXPECT_FALSE(notification->is_message);
  EXPECT_EQ(notification->value, 5U);
  world.target().close_port(kPort);
}

TEST_P(ConformanceTest, FetchAddsFromManyThreadsAddUpAndReturnEveryOldValueOnce) {
  World world(GetParam());
  Memory word = make(world.target(), 64);
  word.fill(std::byte{0});
  const RemoteRegion* remote = import(world, word);
  constexpr int kThreads = 4;
  constexpr int kAdds = 500;
  std::vector<std::atomic<int>> seen(kThreads * kAdds);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&] {
      Memory old = make(world.initiator(), 8 * kAdds);
      Completion done;
      std::vector<WorkRequest> requests;
      for (std::uint64_t i = 0; i < kAdds; ++i) {
        requests.push_back(WorkRequest::fetch_add({remote, 8}, 1, {old.region(), 8 * i}, &done));
      }
      world.initiator().submit(world.target_id(), requests, scaled(20s));
      ASSERT_TRUE(world.initiator().wait(done, world.target_id(), "fetch_add", scaled(20s)));
      for (std::size_t i = 0; i < kAdds; ++i) {
        std::uint64_t value = 0;
        std::memcpy(&value, old.data() + 8 * i, 8);
        ASSERT_LT(value, seen.size());
        ++seen[value];
      }
    });
  }
  for (auto& thread : threads) thread.join();
  for (std::size_t i = 0; i < seen.size(); ++i) EXPECT_EQ(seen[i], 1) << i;
  std::uint64_t total = 0;
  std::memcpy(&total, word.data() + 8, 8);
  EXPECT_EQ(total, seen.size());
}

TEST_P(ConformanceTest, CompareSwapWritesOnlyOnEqual) {
  World world(GetParam());
  Memory word = make(world.target(), 8);
  Memory old = make(world.initiator(), 16);
  word.fill(std::byte{0});
  const RemoteRegion* remote = import(world, word);
  ASSERT_TRUE(run(world, {WorkRequest::compare_swap({remote, 0}, 0, 17, {old.region(), 0}, nullptr)}));
  ASSERT_TRUE(run(world, {WorkRequest::compare_swap({remote, 0}, 0, 99, {old.region(), 8}, nullptr)}));
  std::uint64_t values[2];
  std::memcpy(values, old.data(), 16);
  EXPECT_EQ(values[0], 0U);
  EXPECT_EQ(values[1], 17U);
  std::uint64_t now = 0;
  std::memcpy(&now, word.data(), 8);
  EXPECT_EQ(now, 17U);
}

TEST_P(ConformanceTest, UnalignedAtomicsAreRefused) {
  World world(GetParam());
  Memory word = make(world.target(), 16);
  Memory old = make(world.initiator(), 8);
  const auto result = run(world, {WorkRequest::fetch_add({import(world, word), 4}, 1, {old.region(), 0}, nullptr)});
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code, Errc::invalid_argument);
}

TEST_P(ConformanceTest, FencedRequestsStartAfterAllEarlierOnes) {
  World world(GetParam());
  constexpr std::size_t kSize = 1 << 20;
  Memory here = make(world.initiator(), 2 * kSize);
  Memory there = make(world.target(), kSize);
  const RemoteRegion* remote = import(world, there);
  for (std::uint64_t round = 0; round < 8; ++round) {
    there.pattern(round);
    here.fill(std::byte{0xEE});
    // The get reads the old content although the put behind it overwrites that; then the get of the new content.
    ASSERT_TRUE(run(world, {WorkRequest::get({remote, 0}, {here.region(), 0}, kSize, nullptr),
                            WorkRequest::put({here.region(), kSize}, {remote, 0}, kSize, nullptr).fenced(),
                            WorkRequest::get({remote, 0}, {here.region(), kSize}, kSize, nullptr).fenced()}));
    EXPECT_EQ(here.mismatches(round, 0, kSize), 0U);
    EXPECT_EQ(here.data()[2 * kSize - 1], std::byte{0xEE});
    EXPECT_EQ(there.data()[kSize / 2], std::byte{0xEE});
  }
}

TEST_P(ConformanceTest, MessagesKeepTheirOrderWhetherFencedOrNot) {
  World world(GetParam());
  Inbox inbox;
  ASSERT_TRUE(world.target().open_port(kPort, inbox));
  constexpr std::size_t kSize = 64 << 10;
  constexpr std::uint32_t kMessages = 60;
  Memory here = make(world.initiator(), kSize);
  Memory there = make(world.target(), kSize * kMessages / 3);  // puts have no order: each has a place of its own
  const RemoteRegion* remote = import(world, there);
  std::vector<std::uint32_t> numbers(kMessages);
  std::vector<WorkRequest> requests;
  for (std::uint32_t i = 0; i < kMessages; ++i) {
    numbers[i] = i;
    const auto message = WorkRequest::send(kPort, std::as_bytes(std::span(&numbers[i], 1)), nullptr);
    if (i % 3 != 0) {
      requests.push_back(message);
      continue;
    }
    requests.push_back(WorkRequest::put({here.region(), 0}, {remote, i / 3 * kSize}, kSize, nullptr));
    requests.push_back(message.fenced());
  }
  ASSERT_TRUE(run(world, requests));
  for (std::uint32_t i = 0; i < kMessages; ++i) {
    const auto event = inbox.next();
    ASSERT_TRUE(event);
    std::uint32_t number = 0;
    ASSERT_EQ(event->payload.size(), sizeof number);
    std::memcpy(&number, event->payload.data(), sizeof number);
    EXPECT_EQ(number, i);
  }
  world.target().close_port(kPort);
}

TEST_P(ConformanceTest, AMessageFencedBehindItsFailedDataIsNotSent) {
  World world(GetParam());
  Inbox inbox;
  ASSERT_TRUE(world.target().open_port(kPort, inbox));
  Memory here = make(world.initiator(), 64);
  Memory there = make(world.target(), 64);
  const RemoteRegion* remote = import(world, there);
  const std::array<std::byte, 8> word{};
  const auto bad = WorkRequest::put({here.region(), 0}, {remote, there.region()->length()}, 8, nullptr);
  const auto message = WorkRequest::send(kPort, word, nullptr).fenced();
  const auto result = run(world, {bad, message});
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code, Errc::out_of_range) << "the first failure is told";
  EXPECT_FALSE(inbox.next(100ms)) << "a message about data that did not arrive";
  ASSERT_TRUE(run(world, {WorkRequest::put({here.region(), 0}, {remote, 0}, 8, nullptr), message}));
  EXPECT_TRUE(inbox.next());
  world.target().close_port(kPort);
}

TEST_P(ConformanceTest, AccessOutsideTheRegionIsRefusedAndChangesNothing) {
  World world(GetParam());
  Memory source = make(world.initiator(), 64);
  Memory sink = make(world.target(), 64);
  source.fill(std::byte{1});
  sink.fill(std::byte{2});
  const RemoteRegion* remote = import(world, sink);
  const std::uint64_t length = sink.region()->length();
  for (const WorkRequest& request :
       {WorkRequest::put({source.region(), 0}, {remote, length}, 1, nullptr),
        WorkRequest::put({source.region(), 0}, {remote, length - 7}, 8, nullptr),
        WorkRequest::put({source.region(), 0}, {remote, ~0ULL - 3}, 8, nullptr),
        WorkRequest::put({source.region(), source.region()->length() - 1}, {remote, 0}, 2, nullptr),
        WorkRequest::get({remote, length - 1}, {source.region(), 0}, 2, nullptr)}) {
    const auto result = run(world, {request});
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error().code, Errc::out_of_range) << result.error().to_string();
  }
  for (std::size_t i = 0; i < 64; ++i) EXPECT_EQ(sink.data()[i], std::byte{2});
}

TEST_P(ConformanceTest, AccessThatTheRegionDoesNotAllowIsRefused) {
  World world(GetParam());
  Memory local = make(world.initiator(), 64);
  Memory readable = make(world.target(), 64, {.access = Access::read});
  Memory writable = make(world.target(), 64, {.access = Access::write});
  const auto code = [&](const WorkRequest& request) {
    const auto result = run(world, {request});
    return result ? Errc::ok : result.error().code;
  };
  EXPECT_EQ(code(WorkRequest::put({local.region(), 0}, {import(world, readable), 0}, 8, nullptr)),
            Errc::permission_denied);
  EXPECT_EQ(code(WorkRequest::get({import(world, readable), 0}, {local.region(), 0}, 8, nullptr)), Errc::ok);
  EXPECT_EQ(code(WorkRequest::get({import(world, writable), 0}, {local.region(), 0}, 8, nullptr)),
            Errc::permission_denied);
  EXPECT_EQ(code(WorkRequest::fetch_add({import(world, writable), 0}, 1, {local.region(), 0}, nullptr)),
            Errc::permission_denied);
}

TEST_P(ConformanceTest, UnregisteredMemoryIsRefusedAndUntouched) {
  World world(GetParam());
  Memory source = make(world.initiator(), 64);
  source.fill(std::byte{1});
  Memory sink = make(world.target(), 64);
  const RemoteRegion* remote = import(world, sink);
  ASSERT_TRUE(run(world, {WorkRequest::put({source.region(), 0}, {remote, 0}, 64, nullptr)}));
  ASSERT_TRUE(sink.unregister());
  const auto result = run(world, {WorkRequest::put({source.region(), 0}, {remote, 0}, 64, nullptr)});
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code, Errc::revoked) << result.error().to_string();
  // The slot serves another region now: the old key must not open it.
  Memory other = make(world.target(), 64);
  other.fill(std::byte{7});
  EXPECT_FALSE(run(world, {WorkRequest::put({source.region(), 0}, {remote, 0}, 64, nullptr)}));
  EXPECT_EQ(other.data()[0], std::byte{7});
}

TEST_P(ConformanceTest, ErrorsSayWhatWasWrongWithTheRequestAndWhatToDo) {
  using ::testing::HasSubstr;
  World world(GetParam());
  Memory local = make(world.initiator(), 64);
  Memory sink = make(world.target(), 64);
  Memory readable = make(world.target(), 64, {.access = Access::read});
  const RemoteRegion* remote = import(world, sink);
  const std::uint64_t length = sink.region()->length();
  const std::uint64_t here = local.region()->length();
  const auto words = [&](const WorkRequest& request) {
    const auto result = run(world, {request});
    if (result) return std::string("no error");
    EXPECT_EQ(result.error().operation, "test");
    EXPECT_EQ(result.error().peer, static_cast<int>(world.target_id()));
    EXPECT_FALSE(result.error().path.empty());
    return result.error().message;
  };
  const auto bytes = [](std::uint64_t number) { return std::to_string(number) + " bytes"; };
  EXPECT_EQ(words(WorkRequest::put({local.region(), 0}, {remote, length - 3}, 8, nullptr)),
            "put of 8 bytes at offset " + std::to_string(length - 3) +
                " of the peer's region: it leaves the peer's region: 8 bytes at offset " + std::to_string(length - 3) +
                " of a region of " + bytes(length));
  EXPECT_THAT(words(WorkRequest::get({remote, 0}, {local.region(), here - 1}, 2, nullptr)),
              HasSubstr("get of 2 bytes at offset 0 of the peer's region: the local side leaves its region: 2 bytes at "
                        "offset " +
                        std::to_string(here - 1) + " of a region of " + bytes(here)));
  EXPECT_THAT(words(WorkRequest::put({}, {remote, 0}, 8, nullptr)), HasSubstr("Runtime::allocate"));
  EXPECT_THAT(words(WorkRequest::put({local.region(), 0}, {}, 8, nullptr)), HasSubstr("Fabric::import"));
  EXPECT_THAT(words(WorkRequest::put({local.region(), 0}, {import(world, readable), 0}, 8, nullptr)),
              HasSubstr("the peer's region allows read, and this needs write: RegionOptions::access"));
  EXPECT_THAT(words(WorkRequest::fetch_add({remote, 4}, 1, {local.region(), 0}, nullptr)),
              HasSubstr("fetch_add of 8 bytes at offset 4 of the peer's region: the word at address "));
  EXPECT_THAT(words(WorkRequest::notify(kPort, WorkRequest::kMaxValue + 1, nullptr)),
              HasSubstr("the value 16777216 has more than 24 bits"));
  const std::vector<std::byte> payload(4097);
  EXPECT_THAT(words(WorkRequest::send(kPort, payload, nullptr)),
              HasSubstr("a message has at most 4096 bytes (fabric.eager_bytes, "));
  ASSERT_TRUE(sink.unregister());
  EXPECT_THAT(words(WorkRequest::put({local.region(), 0}, {remote, 16}, 8, nullptr)),
              HasSubstr("took the region back"));
}

TEST_P(ConformanceTest, OperationsBytesAndFailuresAreCounted) {
  World world(GetParam());
  Inbox inbox;
  ASSERT_TRUE(world.target().open_port(kPort, inbox));
  Memory local = make(world.initiator(), 8192);
  Memory sink = make(world.target(), 8192);
  const RemoteRegion* remote = import(world, sink);
  const std::string transport = world.initiator().path(world.target_id()).transport;
  const auto totals = [&] {
    for (const fabric::TrafficReport& report : world.initiator().traffic()) {
      if (report.transport == transport) return report.totals;
    }
    return fabric::TrafficTotals{};
  };
  const fabric::TrafficTotals before = totals();
  const std::array<std::byte, 24> payload{};
  // They have no order among themselves, so each has bytes of its own on both sides.
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(run(world, {WorkRequest::put({local.region(), 0}, {remote, 0}, 5000, nullptr),
                            WorkRequest::get({remote, 5120}, {local.region(), 5120}, 100, nullptr),
                            WorkRequest::put_notify({local.region(), 6144}, {remote, 6144}, 8, kPort, 1, nullptr),
                            WorkRequest::send(kPort, payload, nullptr),
                            WorkRequest::fetch_add({remote, 7168}, 1, {local.region(), 7168}, nullptr),
                            WorkRequest::compare_swap({remote, 7680}, 1, 2, {local.region(), 7680}, nullptr)}));
  }
  EXPECT_FALSE(run(world, {WorkRequest::put({local.region(), 0}, {remote, 1 << 20}, 8, nullptr)}));
  const fabric::TrafficTotals after = totals();
  const std::array<std::uint64_t, 6> bytes{5000, 100, 8, 24, 8, 8};  // put, get, put_notify, send, the two atomics
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    const char* name = fabric::to_string(static_cast<fabric::Opcode>(i));
    EXPECT_EQ(after.operations[i] - before.operations[i], 3U) << name;
    EXPECT_EQ(after.bytes[i] - before.bytes[i], 3 * bytes[i]) << name;
  }
  for (std::size_t i = 0; i < after.failures.size(); ++i) {
    const bool refused = i == static_cast<std::size_t>(-static_cast<int>(Errc::out_of_range));
    EXPECT_EQ(after.failures[i] - before.failures[i], refused ? 1U : 0U) << i;
  }
  world.target().close_port(kPort);
}

TEST_P(ConformanceTest, MissingMemoryIsRefused) {
  World world(GetParam());
  Memory memory = make(world.initiator(), 8);
  for (const WorkRequest& request :
       {WorkRequest::put({}, {}, 8, nullptr), WorkRequest::put({memory.region(), 0}, {}, 8, nullptr)}) {
    const auto result = run(world, {request});
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error().code, Errc::not_registered);
  }
}

TEST_P(ConformanceTest, OneRefusedRequestDoesNotHarmItsNeighbours) {
  World world(GetParam());
  Memory source = make(world.initiator(), 64);
  Memory sink = make(world.target(), 64);
  source.pattern(3);
  sink.fill(std::byte{0});
  const RemoteRegion* remote = import(world, sink);
  Completion good;
  Completion bad;
  const std::array requests{WorkRequest::put({source.region(), 0}, {remote, 0}, 32, &good),
                            WorkRequest::put({source.region(), 0}, {remote, 1 << 20}, 8, &bad),
                            WorkRequest::put({source.region(), 32}, {remote, 32}, 32, &good)};
  world.initiator().submit(world.target_id(), requests, scaled(10s));
  EXPECT_TRUE(world.initiator().wait(good, world.target_id(), "put", scaled(10s)));
  EXPECT_FALSE(world.initiator().wait(bad, world.target_id(), "put", scaled(10s)));
  EXPECT_EQ(sink.mismatches(3, 0, 64), 0U);
}

TEST_P(ConformanceTest, TensOfThousandsOfSmallPutsEndInOneCompletion) {
  World world(GetParam());
  constexpr std::uint64_t kPuts = 20000;
  Memory source = make(world.initiator(), 8 * kPuts);
  Memory sink = make(world.target(), 8 * kPuts);
  source.pattern(11);
  const RemoteRegion* remote = import(world, sink);
  std::vector<WorkRequest> requests;
  for (std::uint64_t i = 0; i < kPuts; ++i) {
    const std::uint64_t at = 8 * ((i * 7919) % kPuts);
    requests.push_back(WorkRequest::put({source.region(), at}, {remote, at}, 8, nullptr));
  }
  ASSERT_TRUE(run(world, requests, 30s));
  EXPECT_EQ(sink.mismatches(11, 0, 8 * kPuts), 0U);
}

TEST_P(ConformanceTest, ManyThreadsMayPostToOnePeer) {
  World world(GetParam());
  constexpr std::size_t kThreads = 4;
  constexpr std::size_t kBytes = 10000;
  Memory sink = make(world.target(), kThreads * kBytes);
  const RemoteRegion* remote = import(world, sink);
  std::vector<std::thread> threads;
  for (std::size_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      Memory source = make(world.initiator(), kBytes);
      source.pattern(t);
      for (int round = 0; round < 50; ++round) {
        Completion done;
        std::vector<WorkRequest> requests;
        for (std::size_t at = 0; at < kBytes; at += 1000) {
          requests.push_back(WorkRequest::put({source.region(), at}, {remote, t * kBytes + at}, 1000, &done));
        }
        world.initiator().submit(world.target_id(), requests, scaled(20s));
        ASSERT_TRUE(world.initiator().wait(done, world.target_id(), "put", scaled(20s)));
      }
    });
  }
  for (auto& thread : threads) thread.join();
  for (std::size_t t = 0; t < kThreads; ++t) EXPECT_EQ(sink.mismatches(t, t * kBytes, kBytes), 0U) << t;
}

TEST_P(ConformanceTest, ContinuationsRunOnceAndMaySubmit) {
  World world(GetParam());
  struct Chain : Completion {
    explicit Chain(World& w) : Completion(&Chain::next), world(w) {}
    static void next(Completion& completion) noexcept {
      auto& chain = static_cast<Chain&>(completion);
      if (++chain.rounds == 100) {
        chain.finished.store(true);
        return;
      }
      chain.world.initiator().submit(chain.world.target_id(), std::array{WorkRequest::flush(&chain)}, scaled(10s));
    }
    World& world;
    std::atomic<int> rounds{0};
    std::atomic<bool> finished{false};
  } chain(world);
  world.initiator().submit(world.target_id(), std::array{WorkRequest::flush(&chain)}, scaled(10s));
  EXPECT_EQ(world.initiator().progress().wait([&]() noexcept { return chain.finished.load(); }, scaled(10s)), Errc::ok);
  EXPECT_EQ(chain.rounds, 100);
}

TEST_P(ConformanceTest, BlockingInACallbackIsAnErrorAndNoDeadlock) {
  World world(GetParam());
  class Waiter final : public fabric::PortHandler {
   public:
    explicit Waiter(World& world) : world_(world) {}
    void on_notify(fabric::PeerId, std::uint32_t) noexcept override {
      Completion never;
      never.arm(1);
      const auto result = world_.target().wait(never, 0, "wait", 1s);
      code = result ? Errc::ok : result.error().code;
      done = true;
    }
    void on_message(fabric::PeerId, std::span<const std::byte>) noexcept override {}
    void on_peer_down(fabric::PeerId, const Error&) noexcept override {}
    std::atomic<Errc> code{Errc::ok};
    std::atomic<bool> done{false};

   private:
    World& world_;
  } waiter(world);
  ASSERT_TRUE(world.target().open_port(kPort, waiter));
  ASSERT_TRUE(run(world, {WorkRequest::notify(kPort, 1, nullptr)}));
  const Deadline deadline(scaled(20s));
  while (!waiter.done && !deadline.passed()) std::this_thread::sleep_for(1ms);
  EXPECT_EQ(waiter.code, Errc::would_deadlock);
  world.target().close_port(kPort);
}

TEST_P(ConformanceTest, UnknownPeersAreAnError) {
  World world(GetParam());
  Completion done;
  world.initiator().submit(99, std::array{WorkRequest::flush(&done)}, 1s);
  const auto result = world.initiator().wait(done, 99, "flush", 1s);
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code, Errc::not_found);
}

TEST_P(ConformanceTest, ForcedQuiescenceKeepsTheChannelUsable) {
  World world(GetParam());
  Memory source = make(world.initiator(), 1 << 20);
  Memory sink = make(world.target(), 1 << 20);
  source.pattern(5);
  const RemoteRegion* remote = import(world, sink);
  Completion done;
  std::vector<WorkRequest> requests;
  for (std::uint64_t i = 0; i < 64; ++i) {
    requests.push_back(WorkRequest::put({source.region(), i << 14}, {remote, i << 14}, 1 << 14, &done));
  }
  world.initiator().submit(world.target_id(), requests, scaled(20s));
  ASSERT_TRUE(world.initiator().quiesce(world.target_id(), scaled(10s), true));
  ASSERT_TRUE(world.initiator().wait(done, world.target_id(), "put", scaled(20s)));  // replayed, not lost
  EXPECT_EQ(sink.mismatches(5, 0, 1 << 20), 0U);
  EXPECT_TRUE(run(world, {WorkRequest::flush(nullptr)}));
}

TEST_P(ConformanceTest, CancelledRequestsEndOnce) {
  World world(GetParam());
  Memory source = make(world.initiator(), 8 << 20);
  Memory sink = make(world.target(), 8 << 20);
  const RemoteRegion* remote = import(world, sink);
  for (int round = 0; round < 20; ++round) {
    Completion done;
    std::vector<WorkRequest> requests;
    for (std::uint64_t i = 0; i < 8; ++i) {
      requests.push_back(WorkRequest::put({source.region(), i << 20}, {remote, i << 20}, 1 << 20, &done));
    }
    world.initiator().submit(world.target_id(), requests, scaled(10s));
    const std::uint32_t cancelled = world.initiator().cancel(world.target_id(), done);
    const auto result = world.initiator().wait(done, world.target_id(), "put", scaled(10s));
    EXPECT_TRUE(done.done());
    if (cancelled > 0) {
      ASSERT_FALSE(result);
      EXPECT_EQ(result.error().code, Errc::cancelled);
    } else {
      EXPECT_TRUE(result);
    }
    ASSERT_TRUE(world.initiator().quiesce(world.target_id(), scaled(10s)));
  }
}

TEST_P(ConformanceTest, DescriptorsAndRegionsDoNotLeak) {
  const auto use_and_end_a_world = [] {
    World world(GetParam());
    Memory source = make(world.initiator(), 4096);
    Memory sink = make(world.target(), 4096);
    ASSERT_TRUE(run(world, {WorkRequest::put({source.region(), 0}, {import(world, sink), 0}, 4096, nullptr)}));
  };
  use_and_end_a_world();
  const std::size_t before = open_descriptors();
  constexpr int kRounds = 12;
  constexpr std::size_t kKept = 2;  // a thread keeps what it last used until its next transfer
  for (int round = 0; round < kRounds; ++round) use_and_end_a_world();
  EXPECT_LE(open_descriptors(), before + kKept);
}

// --- what needs another process or rank; loopback has none ---

class PeerConformanceTest : public ConformanceTest {};
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(PeerConformanceTest);

TEST_P(PeerConformanceTest, PeerThatLeavesIsToldApartFromOneThatDied) {
  World world(GetParam());
  Inbox inbox;
  ASSERT_TRUE(world.initiator().open_port(kPort, inbox));
  ASSERT_TRUE(run(world, {WorkRequest::flush(nullptr)}));
  world.stop(1);
  const auto down = inbox.next_down();
  ASSERT_TRUE(down);
  EXPECT_EQ(down->code, Errc::peer_left) << down->to_string();
  EXPECT_EQ(down->peer, 1);
  const auto result = run(world, {WorkRequest::flush(nullptr)});
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code, Errc::peer_left);
  world.initiator().close_port(kPort);
}

TEST_P(PeerConformanceTest, SilentPeerEndsRequestsAtTheirDeadlineAndNothingCorrupts) {
  World world(GetParam(), {.progress_threads = false});  // nobody drives the target
  Inbox inbox;
  ASSERT_TRUE(world.target().open_port(kPort, inbox));
  Memory source = make(world.initiator(), 4096);
  Memory sink = make(world.target(), 4096);
  const RemoteRegion* remote = import(world, sink);
  // Connecting needs the target once.
  Completion connected;
  world.initiator().submit(world.target_id(), std::array{WorkRequest::flush(&connected)}, scaled(10s));
  const Deadline bound(scaled(15s));
  while (!connected.done() && !bound.passed()) {
    world.target().progress().poll();
    world.initiator().progress().poll();
    std::this_thread::sleep_for(1ms);
  }
  ASSERT_TRUE(connected.done());

  source.pattern(1);
  const auto start = std::chrono::steady_clock::now();
  // What ends without the target has time to do so on a busy machine; what does not is to end soon.
  const std::chrono::milliseconds allowed = GetParam().one_sided ? 10s : 300ms;
  const auto put = run(world, {WorkRequest::put({source.region(), 0}, {remote, 0}, 4096, nullptr)}, allowed);
  EXPECT_LT(std::chrono::steady_clock::now() - start, scaled(allowed + 4s));
  if (GetParam().one_sided) {
    EXPECT_TRUE(put) << put.error().to_string();
  } else {
    ASSERT_FALSE(put);
    EXPECT_EQ(put.error().code, Errc::timed_out) << put.error().to_string();
  }
  // The target comes back: what is still on its way lands where it was meant to, and the channel works on.
  std::atomic<bool> stop{false};
  std::thread driver([&] {
    while (!stop) {
      world.target().progress().poll();
      std::this_thread::sleep_for(100us);
    }
  });
  EXPECT_TRUE(world.initiator().quiesce(world.target_id(), scaled(10s)));
  EXPECT_TRUE(run(world, {WorkRequest::put({source.region(), 0}, {remote, 0}, 4096, nullptr)}));
  EXPECT_EQ(sink.mismatches(1, 0, 4096), 0U);
  stop = true;
  driver.join();
  world.target().close_port(kPort);
}

TEST_P(PeerConformanceTest, DeclaredFailureEndsOpenAndLaterRequestsNamingTheRank) {
  World world(GetParam());
  ASSERT_TRUE(run(world, {WorkRequest::flush(nullptr)}));
  world.initiator().declare_down(world.target_id(), Errc::peer_failed, "rank 9 said so");
  const auto result = run(world, {WorkRequest::flush(nullptr)});
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code, Errc::peer_failed);
  EXPECT_EQ(result.error().peer, 1);
  EXPECT_THAT(result.error().to_string(), ::testing::HasSubstr("rank 9 said so"));
}

TEST_P(PeerConformanceTest, WhatFoundNoRoomGoesOutThoughNobodyWaits) {
  Completion done;
  World world(GetParam());
  Inbox inbox;
  ASSERT_TRUE(world.target().open_port(kPort, inbox));
  ASSERT_TRUE(run(world, {WorkRequest::flush(nullptr)}));
  const std::vector<std::byte> payload(world.initiator().max_message());
  constexpr std::size_t kMessages = 3000;
  const std::vector<WorkRequest> batch(10, WorkRequest::send(kPort, payload, &done));
  // The progress threads sleep, then comes more than a channel holds.
  for (int round = 0; round < 3; ++round) {
    std::this_thread::sleep_for(20ms);
    for (std::size_t i = 0; i < kMessages; i += batch.size()) {
      world.initiator().submit(world.target_id(), batch, scaled(60s));
    }
    for (std::size_t i = 0; i < kMessages; ++i) ASSERT_TRUE(inbox.next(20s)) << i;
  }
  ASSERT_TRUE(world.initiator().wait(done, world.target_id(), "all", scaled(20s)));
  world.target().close_port(kPort);
}

TEST_P(PeerConformanceTest, ClosingWaitsForTheOperationsUnderWayAndNoLonger) {
  Completion done;  // outlives what it is to be told
  World world(GetParam());
  Inbox inbox;
  ASSERT_TRUE(world.target().open_port(kPort, inbox));
  constexpr std::size_t kBytes = 4 << 20;
  Memory here(world.initiator(), kBytes, GetParam().managed);
  Memory there(world.target(), kBytes + 8, GetParam().managed);
  here.pattern(3);
  there.fill(std::byte{0});
  const RemoteRegion* remote = value_or_throw(world.initiator().import(world.target_id(), there.region()->key()));
  Memory old(world.initiator(), 8, GetParam().managed);
  const std::array<std::byte, 24> payload{};
  // Their deadline is far behind that of the end.
  world.initiator().submit(world.target_id(),
                           std::array{WorkRequest::put({here.region(), 0}, {remote, 0}, kBytes, &done),
                                      WorkRequest::send(kPort, payload, &done),
                                      WorkRequest::fetch_add({remote, kBytes}, 1, {old.region(), 0}, &done)},
                           scaled(300s));
  const auto closed = world.initiator().close_channels(scaled(20s));
  ASSERT_TRUE(closed) << closed.error().to_string();
  ASSERT_TRUE(world.initiator().wait(done, world.target_id(), "all three", scaled(1s)));
  EXPECT_EQ(there.mismatches(3, 0, kBytes), 0U);
  EXPECT_TRUE(inbox.next());
  world.target().close_port(kPort);
}

TEST_P(PeerConformanceTest, BothSidesMayTalkAtOnce) {
  World world(GetParam(), {.ranks = 3});
  constexpr std::size_t kBytes = 100000;
  std::vector<std::unique_ptr<Memory>> sources;
  std::vector<std::unique_ptr<Memory>> sinks;
  for (std::size_t r = 0; r < 3; ++r) {
    sources.push_back(std::make_unique<Memory>(world.rank(r), kBytes, GetParam().managed));
    sinks.push_back(std::make_unique<Memory>(world.rank(r), 3 * kBytes, GetParam().managed));
    sources.back()->pattern(r);
  }
  std::vector<std::thread> threads;
  for (std::size_t r = 0; r < 3; ++r) {
    threads.emplace_back([&, r] {
      for (int round = 0; round < 20; ++round) {
        for (fabric::PeerId to = 0; to < 3; ++to) {
          const auto* remote = value_or_throw(world.rank(r).import(to, sinks[to]->region()->key()));
          Completion done;
          world.rank(r).submit(
              to, std::array{WorkRequest::put({sources[r]->region(), 0}, {remote, r * kBytes}, kBytes, &done)},
              scaled(20s));
          ASSERT_TRUE(world.rank(r).wait(done, to, "put", scaled(20s)));
        }
      }
    });
  }
  for (auto& thread : threads) thread.join();
  for (const auto& sink : sinks) {
    for (std::size_t r = 0; r < 3; ++r) EXPECT_EQ(sink->mismatches(r, r * kBytes, kBytes), 0U);
  }
}

std::string case_name(const ::testing::TestParamInfo<TransportCase>& info) { return info.param.name; }

std::vector<TransportCase> peer_cases() {
  std::vector<TransportCase> cases = transport_cases();
  std::erase_if(cases, [](const TransportCase& c) { return c.to_itself; });
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Fabric, ConformanceTest, ::testing::ValuesIn(transport_cases()), case_name);
INSTANTIATE_TEST_SUITE_P(Fabric, PeerConformanceTest, ::testing::ValuesIn(peer_cases()), case_name);

}  // namespace
}  // namespace dtr::testing
