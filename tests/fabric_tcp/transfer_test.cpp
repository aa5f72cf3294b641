// Data, messages, notifications and atomics between two ranks.
#include <array>
#include <numeric>

#include "fabric_tcp/node.hpp"

namespace dtr::testing {
namespace {

TEST(TcpTransferTest, PutsAndGetsOfEverySizeMoveExactlyTheirBytes) {
  Pair pair;
  for (const std::size_t size : {std::size_t{0}, std::size_t{1}, std::size_t{7}, std::size_t{8}, std::size_t{2047},
                                 std::size_t{2048}, std::size_t{2049}, std::size_t{4095}, std::size_t{4096},
                                 std::size_t{4097}, std::size_t{65536}, std::size_t{(1 << 20) + 3}}) {
    auto source = pattern(size + 16, size);
    std::vector<std::byte> sink(size + 32, std::byte{0xAA});
    Region* local = pair.a.add(source);
    Region* target = pair.b.add(sink);
    const RemoteRegion* remote = pair.import(target);
    ASSERT_TRUE(pair.run(WorkRequest::put({local, 3}, {remote, 16}, size, nullptr)).ok()) << size;
    EXPECT_EQ(std::memcmp(sink.data() + 16, source.data() + 3, size), 0) << size;
    for (std::size_t i = 0; i < 16; ++i) {
      ASSERT_EQ(sink[i], std::byte{0xAA});
      ASSERT_EQ(sink[size + 16 + i], std::byte{0xAA});
    }
    std::vector<std::byte> back(size + 2, std::byte{0xBB});
    Region* returned = pair.a.add(back);
    ASSERT_TRUE(pair.run(WorkRequest::get({remote, 16}, {returned, 1}, size, nullptr)).ok()) << size;
    EXPECT_EQ(std::memcmp(back.data() + 1, source.data() + 3, size), 0) << size;
    EXPECT_EQ(back.front(), std::byte{0xBB});
    EXPECT_EQ(back.back(), std::byte{0xBB});
    EXPECT_EQ(local->uses(), 0U);
    EXPECT_EQ(target->uses(), 0U);
    EXPECT_EQ(returned->uses(), 0U);
    for (auto [node, region] : {std::pair{&pair.a, local}, {&pair.a, returned}, {&pair.b, target}}) {
      node->regions->revoke(*region);
      node->regions->remove(*region);
    }
  }
}

TEST(TcpTransferTest, LargeTransfersThroughSmallSocketBuffersKeepEveryByte) {
  Pair pair({.socket_buffer_bytes = 8192});
  constexpr std::size_t kSize = (4 << 20) + 11;
  auto source = pattern(kSize, 1);
  std::vector<std::byte> sink(kSize);
  std::vector<std::byte> back(kSize);
  Region* local = pair.a.add(source);
  const RemoteRegion* remote = pair.import(pair.b.add(sink));
  Region* returned = pair.a.add(back);
  ASSERT_TRUE(pair.run(WorkRequest::put({local, 0}, {remote, 0}, kSize, nullptr), 60s).ok());
  EXPECT_TRUE(sink == source);
  ASSERT_TRUE(pair.run(WorkRequest::get({remote, 0}, {returned, 0}, kSize, nullptr), 60s).ok());
  EXPECT_TRUE(back == source);
}

TEST(TcpTransferTest, SixtyFourMebibytesArriveWhole) {
  Pair pair;
  constexpr std::size_t kSize = 64 << 20;
  auto source = pattern(kSize, 2);
  std::vector<std::byte> sink(kSize);
  Region* local = pair.a.add(source);
  const RemoteRegion* remote = pair.import(pair.b.add(sink));
  ASSERT_TRUE(pair.run(WorkRequest::put({local, 0}, {remote, 0}, kSize, nullptr), 60s).ok());
  EXPECT_TRUE(sink == source);
  std::fill(source.begin(), source.end(), std::byte{0});
  ASSERT_TRUE(pair.run(WorkRequest::get({remote, 0}, {local, 0}, kSize, nullptr), 60s).ok());
  EXPECT_TRUE(sink == source);
}

TEST(TcpTransferTest, AMixtureOfSizesInOneBatchLandsInPlace) {
  Pair pair;
  constexpr std::size_t kSize = 8 << 20;
  auto source = pattern(kSize, 3);
  std::vector<std::byte> sink(kSize);
  std::vector<std::byte> back(kSize);
  Region* local = pair.a.add(source);
  Region* returned = pair.a.add(back);
  const RemoteRegion* remote = pair.import(pair.b.add(sink));
  Completion done;
  std::vector<WorkRequest> puts;
  std::vector<WorkRequest> gets;
  std::size_t at = 0;
  for (std::size_t i = 0; at < kSize; ++i) {
    const std::size_t size = std::min(kSize - at, (i * i * 37) % 50021 + 1);
    puts.push_back(WorkRequest::put({local, at}, {remote, at}, size, &done));
    gets.push_back(WorkRequest::get({remote, at}, {returned, at}, size, &done));
    at += size;
  }
  done.arm(static_cast<std::uint32_t>(puts.size()));
  pair.post(puts);
  ASSERT_TRUE(pair.drive([&] { return done.done(); }));
  ASSERT_TRUE(done.status().ok());
  EXPECT_TRUE(sink == source);
  done.arm(static_cast<std::uint32_t>(gets.size()));
  pair.post(gets);
  ASSERT_TRUE(pair.drive([&] { return done.done(); }));
  ASSERT_TRUE(done.status().ok());
  EXPECT_TRUE(back == source);
  EXPECT_EQ(local->uses() + returned->uses(), 0U);
}

TEST(TcpTransferTest, MessagesAndNotificationsArriveOnceInOrder) {
  Pair pair;
  constexpr std::uint32_t kRounds = 5000;
  for (std::uint32_t i = 0; i < kRounds; ++i) {
    const auto payload = pattern(i % 4097, i);
    const std::array requests{WorkRequest::send(3, payload, nullptr), WorkRequest::notify(4, i, nullptr)};
    pair.post(requests);
  }
  ASSERT_TRUE(pair.drive([&] { return pair.b.recorder.notifications.size() >= kRounds; }));
  ASSERT_EQ(pair.b.recorder.messages.size(), kRounds);
  ASSERT_EQ(pair.b.recorder.notifications.size(), kRounds);
  for (std::uint32_t i = 0; i < kRounds; ++i) {
    EXPECT_EQ(pair.b.recorder.messages[i].port, 3);
    ASSERT_EQ(pair.b.recorder.messages[i].payload, pattern(i % 4097, i));
    EXPECT_EQ(pair.b.recorder.notifications[i].value, i);
    EXPECT_EQ(pair.b.recorder.notifications[i].from, 0U);
  }
}

TEST(TcpTransferTest, MessagesLargerThanAnyBufferArriveWhole) {
  Pair pair({.eager_bytes = 1 << 20});
  for (const std::size_t size : {std::size_t{65488}, std::size_t{65536}, std::size_t{200001}, std::size_t{1 << 20}}) {
    const auto payload = pattern(size, size);
    const std::array requests{WorkRequest::send(1, {}, nullptr), WorkRequest::send(1, payload, nullptr)};
    pair.post(requests);
    ASSERT_TRUE(pair.drive([&] { return pair.b.recorder.messages.size() == 2; })) << size;
    EXPECT_EQ(pair.b.recorder.messages[1].payload, payload);
    pair.b.recorder.messages.clear();
  }
}

TEST(TcpTransferTest, BothDirectionsAtOnceNeedNoAgreement) {
  Pair pair;
  auto back = pair.b.connect(pair.a);
  ASSERT_TRUE(pair.drive([&] { return back->state() == ChannelState::open; }));
  constexpr std::size_t kSize = 3 << 20;
  auto first = pattern(kSize, 4);
  auto second = pattern(kSize, 5);
  std::vector<std::byte> first_sink(kSize);
  std::vector<std::byte> second_sink(kSize);
  const auto forth = WorkRequest::put({pair.a.add(first), 0}, {pair.import(pair.b.add(first_sink)), 0}, kSize, nullptr);
  const RemoteRegion* remote = value_or_throw(back->import(pair.a.add(second_sink)->key()));
  Completion done;
  done.arm(2);
  std::array requests{forth, WorkRequest::put({pair.b.add(second), 0}, {remote, 0}, kSize, &done)};
  requests[0].completion = &done;
  ASSERT_EQ(pair.channel->post(std::span(&requests[0], 1), Deadline(scaled(20s))).accepted, 1U);
  ASSERT_EQ(back->post(std::span(&requests[1], 1), Deadline(scaled(20s))).accepted, 1U);
  ASSERT_TRUE(pair.drive([&] { return done.done(); }));
  EXPECT_TRUE(first_sink == first);
  EXPECT_TRUE(second_sink == second);
}

TEST(TcpTransferTest, AtomicsReturnTheOldValue) {
  Pair pair;
  alignas(8) std::array<std::uint64_t, 4> words{5, 0, 0, 0};
  alignas(8) std::array<std::uint64_t, 4> old{99, 99, 99, 99};
  const RemoteRegion* remote = pair.import(pair.b.add(std::as_writable_bytes(std::span(words))));
  Region* local = pair.a.add(std::as_writable_bytes(std::span(old)));
  ASSERT_TRUE(pair.run(WorkRequest::fetch_add({remote, 0}, 3, {local, 0}, nullptr)).ok());
  ASSERT_TRUE(pair.run(WorkRequest::compare_swap({remote, 0}, 8, 100, {local, 8}, nullptr)).ok());
  ASSERT_TRUE(pair.run(WorkRequest::compare_swap({remote, 0}, 8, 200, {local, 16}, nullptr)).ok());
  EXPECT_EQ(old[0], 5U);
  EXPECT_EQ(old[1], 8U);
  EXPECT_EQ(old[2], 100U);
  EXPECT_EQ(words[0], 100U);
}

TEST(TcpTransferTest, AFencedRequestWaitsForTheAnswersBeforeIt) {
  Pair pair;
  constexpr std::size_t kSize = 2 << 20;
  auto remote_memory = pattern(kSize, 6);
  const auto original = remote_memory;
  std::vector<std::byte> local(kSize, std::byte{1});
  std::vector<std::byte> seen(kSize);
  Region* here = pair.a.add(local);
  Region* sink = pair.a.add(seen);
  const RemoteRegion* remote = pair.import(pair.b.add(remote_memory));
  // Without the fence the put overtakes the bytes of the get's answer that are still waiting to leave.
  Completion done;
  done.arm(3);
  const std::array requests{WorkRequest::get({remote, 0}, {sink, 0}, kSize, &done),
                            WorkRequest::put({here, 0}, {remote, 0}, kSize, &done).fenced(),
                            WorkRequest::notify(1, 1, &done).fenced()};
  ASSERT_EQ(pair.channel->post(requests, Deadline(scaled(20s))).accepted, 3U);
  // The target alone may not see what comes after the fence.
  drive_for(20ms, pair.b);
  EXPECT_TRUE(pair.b.recorder.notifications.empty());
  EXPECT_TRUE(remote_memory == original);
  ASSERT_TRUE(pair.drive([&] { return done.done(); }));
  EXPECT_TRUE(seen == original);
  EXPECT_TRUE(remote_memory == local);
  EXPECT_EQ(pair.b.recorder.notifications.size(), 1U);
}

TEST(TcpTransferTest, AFullQueueSaysAgainAndLosesNothing) {
  Pair pair({.queue_depth = 16});
  std::vector<WorkRequest> requests;
  for (std::uint32_t i = 0; i < 100; ++i) requests.push_back(WorkRequest::notify(1, i, nullptr));
  const auto result = pair.channel->post(requests, Deadline(scaled(20s)));
  EXPECT_EQ(result.accepted, 15U);  // one place is kept for the goodbye
  EXPECT_EQ(result.status.code, Errc::again);
  pair.post(std::span(requests).subspan(result.accepted));
  ASSERT_TRUE(pair.drive([&] { return pair.b.recorder.notifications.size() >= 100; }));
  for (std::uint32_t i = 0; i < 100; ++i) EXPECT_EQ(pair.b.recorder.notifications[i].value, i);
}

TEST(TcpTransferTest, ThousandsOfGetsBeyondTheReplyQueueAreAllAnswered) {
  Pair pair;
  constexpr std::size_t kGets = 4000;
  auto source = pattern(kGets * 64, 8);
  std::vector<std::byte> sink(kGets * 64);
  const RemoteRegion* remote = pair.import(pair.b.add(source));
  Region* local = pair.a.add(sink);
  Completion done;
  done.arm(kGets);
  std::vector<WorkRequest> requests;
  for (std::size_t i = 0; i < kGets; ++i) {
    requests.push_back(WorkRequest::get({remote, i * 64}, {local, i * 64}, 64, &done));
  }
  ASSERT_EQ(pair.channel->post(requests, Deadline(scaled(20s))).accepted, kGets);
  drive_for(50ms, pair.b);  // the target answers while nobody listens, until it may not take more
  ASSERT_TRUE(pair.drive([&] { return done.done(); }));
  EXPECT_TRUE(done.status().ok());
  EXPECT_TRUE(sink == source);
}

}  // namespace
}  // namespace dtr::testing
