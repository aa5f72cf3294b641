// What a target does not allow: forged keys, revoked regions, wrong bounds. The connection survives.
#include <array>
#include <functional>

#include "fabric_tcp/node.hpp"

namespace dtr::testing {
namespace {

TEST(TcpRefusalTest, ForgedKeysAreRefusedAtTheTargetAndTouchNothing) {
  Pair pair;
  std::vector<std::byte> source(256, std::byte{1});
  std::vector<std::byte> sink(128, std::byte{2});
  Region* local = pair.a.add(source);
  Region* target = pair.b.add(sink, {.access = Access::read_write});
  const RemoteKey honest = target->key();
  struct Case {
    const char* name;
    std::function<void(RemoteKey&)> forge;
    std::uint64_t offset;
    std::uint64_t bytes;
    Errc expected;
  };
  const std::array cases{
      Case{"secret", [](RemoteKey& key) { ++key.secret; }, 0, 8, Errc::not_registered},
      Case{"generation", [](RemoteKey& key) { key.generation += 2; }, 0, 8, Errc::revoked},
      Case{"even generation", [](RemoteKey& key) { key.generation += 1; }, 0, 8, Errc::revoked},
      Case{"slot", [](RemoteKey& key) { key.slot += 77; }, 0, 8, Errc::not_registered},
      Case{"slot outside", [](RemoteKey& key) { key.slot = ~0U; }, 0, 8, Errc::not_registered},
      Case{"length", [](RemoteKey& key) { key.length = 256; }, 0, 129, Errc::out_of_range},
      Case{"offset", [](RemoteKey& key) { key.length = ~0ULL; }, ~0ULL - 100, 8, Errc::out_of_range},
      Case{"offset by one", [](RemoteKey& key) { key.length = 256; }, 121, 8, Errc::out_of_range},
  };
  for (const Case& forged : cases) {
    RemoteKey key = honest;
    forged.forge(key);
    const RemoteRegion* remote = value_or_throw(pair.channel->import(key));
    const Status put = pair.run(WorkRequest::put({local, 0}, {remote, forged.offset}, forged.bytes, nullptr));
    EXPECT_EQ(put.code, forged.expected) << forged.name;
    EXPECT_TRUE(put.quiesced && put.fenced) << forged.name;
    const Status get = pair.run(WorkRequest::get({remote, forged.offset}, {local, 0}, forged.bytes, nullptr));
    EXPECT_EQ(get.code, forged.expected) << forged.name;
  }
  RemoteKey key = honest;
  key.access = Access::all;
  const RemoteRegion* remote = value_or_throw(pair.channel->import(key));
  EXPECT_EQ(pair.run(WorkRequest::fetch_add({remote, 0}, 1, {local, 0}, nullptr)).code, Errc::permission_denied);
  key.address = 0;  // the initiator's check of the alignment is fooled, the target's is not
  const RemoteRegion* unaligned = value_or_throw(pair.channel->import(key));
  EXPECT_EQ(pair.run(WorkRequest::fetch_add({unaligned, 8}, 1, {local, 0}, nullptr)).code, Errc::permission_denied);
  for (const std::byte byte : sink) ASSERT_EQ(byte, std::byte{2});
  for (const std::byte byte : source) ASSERT_EQ(byte, std::byte{1});
  // The connection is as good as before.
  EXPECT_TRUE(pair.run(WorkRequest::put({local, 0}, {pair.import(target), 0}, 8, nullptr)).ok());
  EXPECT_EQ(local->uses() + target->uses(), 0U);
}

TEST(TcpRefusalTest, UnalignedAtomicsAreRefusedAtTheTargetToo) {
  Pair pair;
  alignas(8) std::array<std::byte, 64> words{};
  std::array<std::byte, 8> old{};
  Region* local = pair.a.add(old);
  Region* target = pair.b.add(std::span(words).subspan(4, 40));
  RemoteKey key = target->key();
  key.address += 4;
  const RemoteRegion* remote = value_or_throw(pair.channel->import(key));
  EXPECT_EQ(pair.run(WorkRequest::fetch_add({remote, 0}, 1, {local, 0}, nullptr)).code, Errc::invalid_argument);
  for (const std::byte byte : words) EXPECT_EQ(byte, std::byte{0});
}

TEST(TcpRefusalTest, AccessIsCheckedAtTheTarget) {
  Pair pair;
  std::vector<std::byte> source(64);
  std::vector<std::byte> sink(64, std::byte{2});
  Region* local = pair.a.add(source);
  Region* target = pair.b.add(sink, {.access = Access::read});
  RemoteKey key = target->key();
  EXPECT_EQ(pair.run(WorkRequest::put({local, 0}, {pair.import(target), 0}, 8, nullptr)).code, Errc::permission_denied);
  key.access = Access::all;
  const RemoteRegion* forged = value_or_throw(pair.channel->import(key));
  EXPECT_EQ(pair.run(WorkRequest::put({local, 0}, {forged, 0}, 8, nullptr)).code, Errc::permission_denied);
  EXPECT_EQ(pair.run(WorkRequest::put_notify({local, 0}, {forged, 0}, 8, 1, 1, nullptr)).code, Errc::permission_denied);
  EXPECT_TRUE(pair.run(WorkRequest::get({forged, 0}, {local, 0}, 8, nullptr)).ok());
  EXPECT_EQ(sink[0], std::byte{2});
  EXPECT_TRUE(pair.b.recorder.notifications.empty()) << "a refused put must not notify";
}

TEST(TcpRefusalTest, ManyRefusalsAmongGoodRequestsEndEachInItsOwnWay) {
  Pair pair;
  constexpr std::size_t kCount = 3000;
  auto source = pattern(kCount * 8, 1);
  std::vector<std::byte> sink(kCount * 8);
  Region* local = pair.a.add(source);
  Region* target = pair.b.add(sink);
  const RemoteRegion* good = pair.import(target);
  RemoteKey key = target->key();
  ++key.secret;
  const RemoteRegion* bad = value_or_throw(pair.channel->import(key));
  std::vector<Completion> done(kCount);
  std::vector<WorkRequest> requests;
  for (std::size_t i = 0; i < kCount; ++i) {
    done[i].arm(1);
    requests.push_back(WorkRequest::put({local, i * 8}, {i % 3 == 0 ? bad : good, i * 8}, 8, &done[i]));
  }
  pair.post(requests);
  ASSERT_TRUE(
      pair.drive([&] { return std::all_of(done.begin(), done.end(), [](const Completion& c) { return c.done(); }); }));
  for (std::size_t i = 0; i < kCount; ++i) {
    ASSERT_EQ(done[i].status().code, i % 3 == 0 ? Errc::not_registered : Errc::ok) << i;
    const bool landed = std::memcmp(sink.data() + i * 8, source.data() + i * 8, 8) == 0;
    ASSERT_EQ(landed, i % 3 != 0) << i;
  }
}

TEST(TcpRefusalTest, ARegionRevokedInMidPutIsLetGoAndTheRestGoesNowhere) {
  Pair pair({.socket_buffer_bytes = 16384});
  constexpr std::size_t kSize = 16 << 20;
  auto source = pattern(kSize, 1);
  std::vector<std::byte> sink(kSize);
  Region* target = pair.b.add(sink);
  Completion done;
  done.arm(1);
  const auto request = WorkRequest::put({pair.a.add(source), 0}, {pair.import(target), 0}, kSize, &done);
  ASSERT_EQ(pair.channel->post(std::span(&request, 1), Deadline(scaled(20s))).accepted, 1U);
  ASSERT_TRUE(pair.drive([&] { return target->uses() > 0; }));
  // The initiator stops in mid-put; the target takes its memory back all the same.
  pair.b.regions->revoke(*target);
  ASSERT_TRUE(drive_until(
      5s, [&] { return pair.b.transport->drained(*target); }, pair.b));
  pair.b.regions->remove(*target);
  const auto frozen = sink;
  ASSERT_TRUE(pair.drive([&] { return done.done(); }));
  EXPECT_EQ(done.status().code, Errc::revoked);
  EXPECT_TRUE(sink == frozen);
  EXPECT_TRUE(pair.run(WorkRequest::flush(nullptr)).ok());
}

TEST(TcpRefusalTest, WhatTheInitiatorCanSeeItselfIsRefusedBeforeAnythingIsSent) {
  Pair pair;
  std::vector<std::byte> memory(64);
  Region* local = pair.a.add(memory);
  std::vector<std::byte> gpu(64);
  Region* device = pair.a.add(gpu, {.kind = MemoryKind::cuda});
  std::vector<std::byte> sink(64);
  const RemoteRegion* remote = pair.import(pair.b.add(sink));
  const std::vector<std::byte> large(4097);
  const std::array<std::pair<WorkRequest, Errc>, 4> cases{{
      {WorkRequest::put({local, 60}, {remote, 0}, 8, nullptr), Errc::out_of_range},
      {WorkRequest::put({device, 0}, {remote, 0}, 8, nullptr), Errc::unsupported},
      {WorkRequest::send(1, large, nullptr), Errc::out_of_range},
      {WorkRequest::put({}, {remote, 0}, 8, nullptr), Errc::not_registered},
  }};
  for (const auto& [request, code] : cases) {
    const auto result = pair.channel->post(std::span(&request, 1), Deadline(1s));
    EXPECT_EQ(result.accepted, 0U);
    EXPECT_EQ(result.status.code, code);
  }
  EXPECT_FALSE(pair.a.transport->moves(MemoryKind::cuda));
  EXPECT_TRUE(pair.a.transport->moves(MemoryKind::pinned));
}

TEST(TcpRefusalTest, OptionsOutOfRangeAreRefusedWithWords) {
  const fabric::Identity identity{};
  const auto regions = value_or_throw(RegionTable::create());
  Recorder recorder;
  const fabric::TransportContext context{.identity = identity, .regions = *regions, .receiver = recorder};
  for (const auto& [options, words] :
       {std::pair<fabric::tcp::TcpOptions, const char*>{{.queue_depth = 100}, "queue_depth"},
        {{.bind_address = "no-such-nic"}, "no-such-nic"},
        {{.eager_bytes = 2 << 20}, "eager_bytes"},
        {{.max_pending_handshakes = 0}, "max_pending_handshakes"}}) {
    const auto made = fabric::tcp::make_tcp(context, options);
    ASSERT_FALSE(made) << words;
    EXPECT_EQ(made.error().code, Errc::invalid_argument);
    EXPECT_NE(made.error().message.find(words), std::string::npos) << made.error().to_string();
  }
  Node taken(0, 1);
  const auto address = taken.transport->address();
  std::uint16_t port = 0;
  std::memcpy(&port, address.data() + 2, sizeof port);
  const auto again = fabric::tcp::make_tcp(context, {.bind_address = "127.0.0.1", .port = port});
  ASSERT_FALSE(again);
  EXPECT_NE(again.error().message.find(std::to_string(port)), std::string::npos) << again.error().to_string();
}

}  // namespace
}  // namespace dtr::testing
