// Time-outs, cancel, reset, broken connections: every request ends once, and what is delivered is delivered once.
#include <algorithm>
#include <array>
#include <functional>
#include <numeric>
#include <random>

#include <netinet/in.h>
#include <sys/socket.h>

#include "fabric_tcp/node.hpp"

namespace dtr::testing {
namespace {

std::uint16_t port_of(const Node& node) {
  const auto address = node.transport->address();
  std::uint16_t port = 0;
  std::memcpy(&port, address.data() + 2, sizeof port);
  return port;
}

/// Cuts every connection of this process to that node, as a failing network would.
int cut_connections_to(const Node& node) {
  int cut = 0;
  for (int fd = 3; fd < 2048; ++fd) {
    sockaddr_in peer{};
    socklen_t length = sizeof peer;
    if (::getpeername(fd, reinterpret_cast<sockaddr*>(&peer), &length) != 0) continue;
    if (ntohs(peer.sin_port) != port_of(node)) continue;
    ::shutdown(fd, SHUT_RDWR);
    ++cut;
  }
  return cut;
}

TEST(TcpRecoveryTest, RequestsToASilentPeerEndAtTheirDeadline) {
  Pair pair({.socket_buffer_bytes = 16384});
  constexpr std::size_t kSize = 8 << 20;
  auto source = pattern(kSize, 1);
  std::vector<std::byte> sink(kSize);
  Region* local = pair.a.add(source);
  const RemoteRegion* remote = pair.import(pair.b.add(sink));
  Completion small;
  Completion large;
  Completion unsent;
  small.arm(1);
  large.arm(1);
  unsent.arm(1);
  const std::array requests{WorkRequest::put({local, 0}, {remote, 0}, 8, &small),
                            WorkRequest::put({local, 0}, {remote, 0}, kSize, &large),
                            WorkRequest::put({local, 0}, {remote, 0}, kSize, &unsent)};
  const auto start = std::chrono::steady_clock::now();
  for (const auto& request : requests) {
    ASSERT_EQ(pair.channel->post(std::span(&request, 1), Deadline(150ms)).accepted, 1U);
  }
  ASSERT_TRUE(drive_until(
      5s, [&] { return small.done() && large.done() && unsent.done(); }, pair.a));
  EXPECT_GE(std::chrono::steady_clock::now() - start, 150ms);
  EXPECT_EQ(small.status().code, Errc::timed_out);
  EXPECT_FALSE(small.status().fenced);
  EXPECT_TRUE(small.status().quiesced) << "its bytes are copied and gone";
  EXPECT_FALSE(large.status().quiesced) << "the socket still takes bytes from it";
  EXPECT_FALSE(large.status().fenced);
  EXPECT_TRUE(unsent.status().quiesced && unsent.status().fenced) << "never started";
  EXPECT_FALSE(pair.channel->quiesced());
  EXPECT_GT(local->uses(), 0U);
  EXPECT_TRUE(pair.a.recorder.downs.empty()) << "silent is not dead";

  // When the target comes back, the rest drains and memory is quiet.
  ASSERT_TRUE(pair.drive([&] { return pair.channel->quiesced(); }));
  EXPECT_EQ(local->uses(), 0U);
  EXPECT_TRUE(pair.run(WorkRequest::flush(nullptr)).ok());
  EXPECT_TRUE(sink == source);
}

TEST(TcpRecoveryTest, ResetMakesMemoryQuietAtOnceAndTheTargetNeverSeesWhatComesAfter) {
  Pair pair({.socket_buffer_bytes = 16384});
  constexpr std::size_t kSize = 8 << 20;
  std::vector<std::byte> source(kSize, std::byte{1});
  std::vector<std::byte> sink(kSize);
  Region* local = pair.a.add(source);
  const RemoteRegion* remote = pair.import(pair.b.add(sink));
  Completion done;
  done.arm(1);
  const auto request = WorkRequest::put({local, 0}, {remote, 0}, kSize, &done);
  ASSERT_EQ(pair.channel->post(std::span(&request, 1), Deadline(50ms)).accepted, 1U);
  ASSERT_TRUE(drive_until(
      5s, [&] { return done.done(); }, pair.a));
  ASSERT_FALSE(pair.channel->quiesced());
  pair.channel->reset();
  EXPECT_TRUE(pair.channel->quiesced());
  EXPECT_EQ(local->uses(), 0U);
  std::fill(source.begin(), source.end(), std::byte{2});
  EXPECT_TRUE(pair.run(WorkRequest::flush(nullptr)).ok());
  EXPECT_EQ(std::count(sink.begin(), sink.end(), std::byte{2}), 0) << "a timed-out put is not replayed";
  EXPECT_TRUE(pair.run(WorkRequest::put({local, 0}, {remote, 0}, kSize, nullptr)).ok());
  EXPECT_TRUE(sink == source);
}

TEST(TcpRecoveryTest, ATimedOutGetNeverWritesAgain) {
  Pair pair;
  constexpr std::size_t kSize = 4 << 20;
  const auto expected = pattern(kSize, 1);
  auto source = expected;
  std::vector<std::byte> sink(kSize, std::byte{9});
  Region* local = pair.a.add(sink);
  const RemoteRegion* remote = pair.import(pair.b.add(source));
  Completion done;
  done.arm(1);
  const auto request = WorkRequest::get({remote, 0}, {local, 0}, kSize, &done);
  ASSERT_EQ(pair.channel->post(std::span(&request, 1), Deadline(50ms)).accepted, 1U);
  ASSERT_TRUE(drive_until(
      5s, [&] { return done.done(); }, pair.a));
  EXPECT_EQ(done.status().code, Errc::timed_out);
  EXPECT_TRUE(done.status().quiesced && done.status().fenced);
  EXPECT_TRUE(pair.channel->quiesced());
  EXPECT_EQ(local->uses(), 0U);
  pair.a.regions->revoke(*local);
  pair.a.regions->remove(*local);
  EXPECT_TRUE(pair.run(WorkRequest::flush(nullptr)).ok());  // the late answer has passed by now
  EXPECT_EQ(std::count(sink.begin(), sink.end(), std::byte{9}), static_cast<std::ptrdiff_t>(kSize));
  Region* again = pair.a.add(sink);
  EXPECT_TRUE(pair.run(WorkRequest::get({remote, 0}, {again, 0}, kSize, nullptr)).ok());
  EXPECT_TRUE(sink == expected);
}

TEST(TcpRecoveryTest, AGetCancelledInMidAnswerIsQuietAndTheStreamGoesOn) {
  Pair pair({.socket_buffer_bytes = 65536});
  constexpr std::size_t kSize = 8 << 20;
  const auto expected = pattern(kSize, 1);
  auto source = expected;
  std::vector<std::byte> sink(kSize);
  Region* local = pair.a.add(sink);
  const RemoteRegion* remote = pair.import(pair.b.add(source));
  Completion done;
  Completion after;
  done.arm(1);
  after.arm(1);
  const std::array requests{WorkRequest::get({remote, 0}, {local, 0}, kSize, &done), WorkRequest::flush(&after)};
  ASSERT_EQ(pair.channel->post(requests, Deadline(scaled(20s))).accepted, 2U);
  ASSERT_TRUE(pair.drive([&] { return sink[100000] == expected[100000]; }));
  EXPECT_EQ(pair.channel->cancel(done), 1U);
  EXPECT_EQ(pair.channel->cancel(done), 0U);
  EXPECT_EQ(done.status().code, Errc::cancelled);
  ASSERT_TRUE(pair.channel->quiesced());
  const auto frozen = sink;
  ASSERT_TRUE(pair.drive([&] { return after.done(); }));
  EXPECT_TRUE(after.status().ok());
  EXPECT_TRUE(sink == frozen);
  EXPECT_EQ(local->uses(), 0U);
}

TEST(TcpRecoveryTest, CancelEndsOpenRequestsOnceAndOthersGoOn) {
  Pair pair;
  std::vector<std::byte> source(1 << 20, std::byte{3});
  std::vector<std::byte> sink(1 << 20);
  Region* local = pair.a.add(source);
  const RemoteRegion* remote = pair.import(pair.b.add(sink));
  Completion doomed;
  Completion kept;
  doomed.arm(100);
  kept.arm(100);
  std::vector<WorkRequest> requests;
  for (int i = 0; i < 100; ++i) {
    requests.push_back(WorkRequest::put({local, 0}, {remote, 0}, 1 << 20, &doomed));
    requests.push_back(WorkRequest::notify(1, static_cast<std::uint32_t>(i), &kept));
  }
  ASSERT_EQ(pair.channel->post(requests, Deadline(scaled(20s))).accepted, 200U);
  EXPECT_EQ(pair.channel->cancel(doomed), 100U);
  EXPECT_TRUE(doomed.done());
  EXPECT_EQ(doomed.status().code, Errc::cancelled);
  ASSERT_TRUE(pair.drive([&] { return kept.done(); }));
  EXPECT_TRUE(kept.status().ok());
  EXPECT_EQ(pair.b.recorder.notifications.size(), 100U);
  EXPECT_EQ(local->uses(), 0U);
}

/// A stream of everything, with something terrible happening every now and then.
void survive(const std::function<void(Pair&)>& mishap, std::uint32_t seed) {
  Pair pair({.socket_buffer_bytes = 65536, .queue_depth = 256});
  std::mt19937 random(seed);
  constexpr std::uint32_t kRounds = 1500;
  constexpr std::size_t kPiece = 20000;
  constexpr std::size_t kSize = (kRounds - 10) * 16 + kPiece;  // where the last large piece ends
  auto source = pattern(kSize, seed);
  std::vector<std::byte> sink(kSize);
  std::vector<std::byte> back(kSize);
  alignas(8) std::array<std::uint64_t, 1> word{};
  alignas(8) std::array<std::uint64_t, 1> old{};
  Region* local = pair.a.add(source);
  Region* returned = pair.a.add(back);
  const RemoteRegion* remote = pair.import(pair.b.add(sink));
  const RemoteRegion* counter = pair.import(pair.b.add(std::as_writable_bytes(std::span(word))));
  Region* old_value = pair.a.add(std::as_writable_bytes(std::span(old)));
  Completion done;
  std::vector<Completion> adds(kRounds);
  std::uint32_t mishaps = 0;
  for (std::uint32_t i = 0; i < kRounds; ++i) {
    const auto payload = pattern(i % 3000, i);
    const std::size_t size = i % 10 == 0 ? kPiece : 16;
    done.arm(4);
    adds[i].arm(1);
    const std::array requests{WorkRequest::put({local, i * 16}, {remote, i * 16}, size, &done),
                              WorkRequest::send(1, payload, &done),
                              WorkRequest::get({remote, i * 16}, {returned, i * 16}, 16, &done),
                              WorkRequest::put_notify({local, i * 16}, {remote, i * 16}, 16, 2, i, &done),
                              WorkRequest::fetch_add({counter, 0}, 1, {old_value, 0}, &adds[i])};
    pair.post(requests);
    for (std::uint32_t k = random() % 3; k > 0; --k) pair.a.progress();
    for (std::uint32_t k = random() % 2; k > 0; --k) pair.b.progress();
    if (random() % 100 == 0) {
      mishap(pair);
      ++mishaps;
    }
  }
  ASSERT_GT(mishaps, 3U);
  const auto all_done = [&] {
    return done.done() && std::all_of(adds.begin(), adds.end(), [](const Completion& c) { return c.done(); });
  };
  ASSERT_TRUE(pair.drive(all_done, 30s));
  EXPECT_TRUE(done.status().ok()) << to_string(done.status().code);
  EXPECT_TRUE(sink == source);
  ASSERT_EQ(pair.b.recorder.messages.size(), kRounds);
  ASSERT_EQ(pair.b.recorder.notifications.size(), kRounds);
  std::uint64_t surely_added = 0;
  for (std::uint32_t i = 0; i < kRounds; ++i) {
    ASSERT_EQ(pair.b.recorder.messages[i].payload, pattern(i % 3000, i)) << i;
    ASSERT_EQ(pair.b.recorder.notifications[i].value, i);
    const Errc code = adds[i].status().code;
    ASSERT_TRUE(code == Errc::ok || code == Errc::cancelled) << to_string(code);
    if (code == Errc::ok) ++surely_added;
  }
  EXPECT_GE(word[0], surely_added);
  EXPECT_LE(word[0], kRounds);
  EXPECT_TRUE(pair.a.recorder.downs.empty());
  EXPECT_TRUE(pair.b.recorder.downs.empty());
  EXPECT_EQ(local->uses() + returned->uses() + old_value->uses(), 0U);
}

TEST(TcpRecoveryTest, AResetLosesAndDoublesNothing) {
  for (std::uint32_t seed = 1; seed <= 3; ++seed) {
    survive([](Pair& pair) { pair.channel->reset(); }, seed);
  }
}

TEST(TcpRecoveryTest, ABrokenConnectionHealsAndLosesAndDoublesNothing) {
  for (std::uint32_t seed = 11; seed <= 13; ++seed) {
    survive([](Pair& pair) { cut_connections_to(pair.b); }, seed);
  }
}

TEST(TcpRecoveryTest, ARefusalIsNotForgottenOverABrokenConnection) {
  Pair pair;
  std::vector<std::byte> memory(64);
  std::vector<std::byte> sink(64);
  Region* local = pair.a.add(memory);
  Region* target = pair.b.add(sink);
  RemoteKey key = target->key();
  ++key.secret;
  const RemoteRegion* bad = value_or_throw(pair.channel->import(key));
  const RemoteRegion* good = pair.import(target);
  for (int round = 0; round < 20; ++round) {
    std::array<Completion, 3> done;
    for (auto& completion : done) completion.arm(1);
    const std::array requests{WorkRequest::put({local, 0}, {good, 0}, 8, &done[0]),
                              WorkRequest::put({local, 0}, {bad, 0}, 8, &done[1]),
                              WorkRequest::get({bad, 0}, {local, 0}, 8, &done[2])};
    pair.post(requests);
    drive_for(2ms, pair.b);  // worked off, answered, and the answer is lost:
    pair.channel->reset();
    ASSERT_TRUE(pair.drive([&] { return done[0].done() && done[1].done() && done[2].done(); }));
    EXPECT_EQ(done[0].status().code, Errc::ok);
    EXPECT_EQ(done[1].status().code, Errc::not_registered);
    EXPECT_EQ(done[2].status().code, Errc::not_registered);
  }
}

TEST(TcpRecoveryTest, AContinuationMayPostAgainAndCancelAndReset) {
  Pair pair;
  struct Chain : Completion {
    explicit Chain(Pair& on) : Completion(&Chain::next), pair(on) {}
    static void next(Completion& completion) noexcept {
      auto& chain = static_cast<Chain&>(completion);
      if (++chain.rounds >= 50) return;
      if (chain.rounds == 20) chain.pair.channel->reset();
      Completion other;
      chain.pair.channel->cancel(other);
      chain.arm(1);
      const auto request = WorkRequest::notify(1, 1, &chain);
      if (chain.pair.channel->post(std::span(&request, 1), Deadline(scaled(20s))).accepted != 1) std::abort();
    }
    Pair& pair;
    int rounds = 0;
  } chain(pair);
  chain.arm(1);
  const auto request = WorkRequest::notify(1, 1, &chain);
  ASSERT_EQ(pair.channel->post(std::span(&request, 1), Deadline(scaled(20s))).accepted, 1U);
  ASSERT_TRUE(pair.drive([&] { return chain.rounds == 50; }));
  EXPECT_EQ(pair.b.recorder.notifications.size(), 50U);
}

TEST(TcpRecoveryTest, AFailedChannelEndsEverythingOnceAndRefusesMore) {
  Pair pair;
  std::vector<std::byte> memory(1 << 20);
  Region* local = pair.a.add(memory);
  std::vector<std::byte> sink(1 << 20);
  const RemoteRegion* remote = pair.import(pair.b.add(sink));
  Completion done;
  done.arm(1000);
  const std::vector<WorkRequest> requests(1000, WorkRequest::put({local, 0}, {remote, 0}, 1 << 20, &done));
  ASSERT_EQ(pair.channel->post(requests, Deadline(scaled(20s))).accepted, 1000U);
  pair.channel->abort(Errc::cancelled);
  EXPECT_TRUE(done.done());
  EXPECT_EQ(done.status().code, Errc::cancelled);
  EXPECT_TRUE(done.status().quiesced);
  EXPECT_EQ(local->uses(), 0U);
  EXPECT_EQ(pair.channel->state(), ChannelState::failed);
  const auto result = pair.channel->post(requests, Deadline(1s));
  EXPECT_EQ(result.accepted, 0U);
  EXPECT_EQ(result.status.code, Errc::cancelled);
  EXPECT_FALSE(pair.channel->explain(result.status).empty());
  // And a new channel to the same peer starts afresh.
  auto again = pair.a.connect(pair.b);
  ASSERT_TRUE(pair.drive([&] { return again->state() == ChannelState::open; }));
  const auto notify = WorkRequest::notify(1, 42, nullptr);
  ASSERT_EQ(again->post(std::span(&notify, 1), Deadline(scaled(20s))).accepted, 1U);
  ASSERT_TRUE(pair.drive([&] { return pair.b.recorder.notifications.size() == 1; }));
  EXPECT_TRUE(pair.b.recorder.downs.empty());
}

TEST(TcpRecoveryTest, OneChannelAPeer) {
  Pair pair;
  const auto second = pair.a.transport->connect(1, pair.b.transport->address(), Deadline(1s));
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, Errc::already_exists);
}

}  // namespace
}  // namespace dtr::testing
