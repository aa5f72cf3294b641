// Which memory a link reaches, by which key, and that it lets go of it again.
#include <algorithm>
#include <atomic>
#include <cerrno>
#include <thread>

#include "fabric_shm/node.hpp"

namespace dtr::testing {
namespace {

using fabric::RemoteRegion;
using fabric::WorkRequest;
using fabric::shm::CmaUse;

TEST(ShmMemoryTest, SegmentMadeAfterConnectingIsMappedOnImport) {
  Node target(0);
  Node node(1);
  const auto channel = open_channel(node, target);
  for (int i = 0; i < 3; ++i) {
    Region& region = target.memory(8192);
    const RemoteRegion* remote = value_or_throw(channel->import(region.key()));
    EXPECT_EQ(remote, value_or_throw(channel->import(region.key())));
    ASSERT_TRUE(pump_until({&node, &target}, 5s, [&] { return remote->mapped.load() != nullptr; }));
    region.data()[8191] = std::byte{77};
    EXPECT_EQ(remote->mapped.load()[8191], std::byte{77});
  }
}

TEST(ShmMemoryTest, ManyRegionsImportedAtOnceAreAllMapped) {
  Node target(0);
  Node node(1);
  const auto channel = open_channel(node, target);
  std::vector<const RemoteRegion*> remotes;
  for (int i = 0; i < 300; ++i) remotes.push_back(value_or_throw(channel->import(target.memory(64).key())));
  ASSERT_TRUE(pump_until({&node, &target}, 20s, [&] {
    return std::all_of(remotes.begin(), remotes.end(), [](const auto* remote) { return remote->mapped.load(); });
  }));
}

TEST(ShmMemoryTest, SegmentIsUnmappedByPeersOnceNothingIsRegisteredInIt) {
  Node target(0);
  Node node(1);
  const auto channel = open_channel(node, target);
  const std::size_t before = mapped_segments();
  Region& region = target.memory(1 << 20);
  const RemoteRegion* remote = value_or_throw(channel->import(region.key()));
  ASSERT_TRUE(pump_until({&node, &target}, 5s, [&] { return remote->mapped.load() != nullptr; }));
  EXPECT_EQ(mapped_segments(), before + 2);
  target.regions->revoke(region);
  ASSERT_TRUE(pump_until({&node, &target}, 5s, [&] { return target.transport->drained(region); }));
  target.forget(region);
  EXPECT_TRUE(pump_until({&node, &target}, 5s, [&] { return mapped_segments() == before; }));
  EXPECT_EQ(remote->mapped.load(), nullptr);
  Region& local = node.memory(8);
  const WorkRequest put = WorkRequest::put({&local, 0}, {remote, 0}, 8, nullptr);
  EXPECT_EQ(channel->post({&put, 1}, 1s).status.code, Errc::revoked);
}

TEST(ShmMemoryTest, SegmentThatIsRegisteredAgainIsReachedByTheNewKeyOnly) {
  Node target(0);
  Node node(1);
  const auto channel = open_channel(node, target);
  auto segment = value_or_throw(Segment::create(99, 4096));
  const RemoteRegion* old = nullptr;
  Region& local = node.memory(8);
  for (int round = 0; round < 20; ++round) {
    Region& region = *value_or_throw(target.regions->add({segment->data(), 4096}, {}, segment));
    value_or_throw(target.transport->register_region(region));
    const RemoteRegion* remote = value_or_throw(channel->import(region.key()));
    ASSERT_TRUE(pump_until({&node, &target}, 5s, [&] { return remote->mapped.load() != nullptr; })) << round;
    const WorkRequest put = WorkRequest::put({&local, 0}, {remote, 0}, 8, nullptr);
    EXPECT_EQ(channel->post({&put, 1}, 1s).finished, 1U);
    if (old != nullptr) {
      const WorkRequest late = WorkRequest::put({&local, 0}, {old, 0}, 8, nullptr);
      EXPECT_EQ(channel->post({&late, 1}, 1s).status.code, Errc::revoked);
    }
    old = remote;
    target.regions->revoke(region);
    ASSERT_TRUE(pump_until({&node, &target}, 5s, [&] { return target.transport->drained(region); }));
    target.forget(region);
  }
}

// The peer reads the word to unmap it while it copies into what has been registered there since.
TEST(ShmMemoryTest, ALateWordToUnmapASegmentDisturbsNoCopyIntoWhatIsRegisteredThereNow) {
  constexpr std::size_t kBytes = 4 << 20;
  Node target(0);
  Node node(1);
  const auto channel = open_channel(node, target);
  auto segment = value_or_throw(Segment::create(99, kBytes));
  Region& local = node.memory(kBytes);
  std::memset(local.data(), 7, kBytes);
  const auto add = [&]() -> Region& {
    Region& region = *value_or_throw(target.regions->add({segment->data(), kBytes}, {}, segment));
    value_or_throw(target.transport->register_region(region));
    return region;
  };
  Region* region = &add();
  const RemoteRegion* remote = value_or_throw(channel->import(region->key()));
  ASSERT_TRUE(pump_until({&node, &target}, 5s, [&] { return remote->mapped.load() != nullptr; }));
  const std::size_t mapped = mapped_segments();
  for (int round = 0; round < 20; ++round) {
    target.regions->revoke(*region);
    ASSERT_TRUE(pump_until({&target}, 5s, [&] { return target.transport->drained(*region); }));
    target.forget(*region);
    target.pump();  // says so; the node does not look yet
    region = &add();
    remote = value_or_throw(channel->import(region->key()));
    const std::byte* const first = remote->mapped.load();
    ASSERT_NE(first, nullptr);
    std::atomic<bool> over{false};
    std::atomic<int> copied{0};
    std::thread copies([&] {
      const WorkRequest put = WorkRequest::put({&local, 0}, {remote, 0}, kBytes, nullptr);
      while (!over.load()) {
        const auto status = channel->post({&put, 1}, 10s).status;
        EXPECT_TRUE(status.ok() || status.code == Errc::again) << to_string(status.code);
        ++copied;
      }
    });
    EXPECT_TRUE(pump_until({&target}, 10s, [&] { return copied.load() > 2; }));
    EXPECT_TRUE(pump_until({&node, &target}, 10s, [&] { return remote->mapped.load() != first; })) << round;
    const int then = copied.load();
    EXPECT_TRUE(pump_until({&node, &target}, 10s, [&] { return copied.load() > then + 2; }));
    over = true;
    copies.join();
    ASSERT_TRUE(pump_until({&node, &target}, 10s, [&] { return remote->mapped.load() != nullptr; }));
    EXPECT_EQ(segment->data()[kBytes - 1], std::byte{7});
  }
  EXPECT_TRUE(pump_until({&node, &target}, 5s, [&] { return mapped_segments() == mapped; }));
}

TEST(ShmMemoryTest, KeyThatWasTamperedWithIsRefusedOnEveryPath) {
  for (const CmaUse cma : {CmaUse::automatic, CmaUse::off}) {
    Node target(0, {.cma = cma});
    Node node(1, {.cma = cma});
    const auto channel = open_channel(node, target);
    Region& region = target.memory(4096);
    std::memset(region.data(), 0, 4096);
    Region& local = node.memory(4096);
    std::memset(local.data(), 1, 4096);
    const auto attempt = [&](auto&& change) {
      RemoteKey key = region.key();
      change(key);
      const RemoteRegion* remote = value_or_throw(channel->import(key));
      const WorkRequest put = WorkRequest::put({&local, 0}, {remote, 0}, 8, nullptr);
      const auto result = channel->post({&put, 1}, 1s);
      EXPECT_EQ(result.accepted, 0U);
      return result.status.code;
    };
    EXPECT_EQ(attempt([](RemoteKey& key) { key.secret ^= 1; }), Errc::not_registered);
    EXPECT_EQ(attempt([](RemoteKey& key) { key.length *= 2; }), Errc::not_registered);
    EXPECT_EQ(attempt([](RemoteKey& key) { key.address += 64; }), Errc::not_registered);
    EXPECT_EQ(attempt([](RemoteKey& key) { key.segment_offset += 64; }), Errc::not_registered);
    EXPECT_EQ(attempt([](RemoteKey& key) { key.segment = 0; }), Errc::not_registered);
    EXPECT_EQ(attempt([](RemoteKey& key) { key.generation += 1; }), Errc::revoked);
    EXPECT_EQ(attempt([](RemoteKey& key) { key.generation += 2; }), Errc::revoked);
    EXPECT_EQ(attempt([](RemoteKey& key) { key.slot += 1; }), Errc::revoked);
    EXPECT_EQ(attempt([](RemoteKey& key) { key.slot = 0xFFFFFFFF; }), Errc::not_registered);
    EXPECT_EQ(std::count(region.data(), region.data() + 4096, std::byte{0}), 4096);
    RemoteKey gpu = region.key();
    gpu.kind = MemoryKind::cuda;
    EXPECT_EQ(channel->import(gpu).error().code, Errc::unsupported);
  }
}

TEST(ShmMemoryTest, ForeignMemoryThatIsNotThereIsOutOfRangeAndNotACrash) {
  Node target(0, {.cma = CmaUse::on});
  Node node(1, {.cma = CmaUse::on});
  const auto channel = open_channel(node, target);
  constexpr std::size_t kBytes = 1 << 16;
  void* hole = ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(hole, MAP_FAILED);
  Region& region = *value_or_throw(target.regions->add({static_cast<std::byte*>(hole), kBytes}, {}));
  ASSERT_EQ(::mprotect(hole, kBytes, PROT_NONE), 0);
  Region& local = node.memory(kBytes);
  const RemoteRegion* remote = value_or_throw(channel->import(region.key()));
  const WorkRequest put = WorkRequest::put({&local, 0}, {remote, 0}, kBytes, nullptr);
  const auto result = channel->post({&put, 1}, 1s);
  EXPECT_EQ(result.status.code, Errc::out_of_range);
  EXPECT_EQ(
      channel->explain(result.status),
      "put of 65536 bytes at offset 0 of the peer's region: memory of the region cannot be reached: 65536 bytes at "
      "offset 0 of a region of 65536 bytes (copy: Bad address)");
  ::munmap(hole, kBytes);
}

TEST(ShmMemoryTest, MoreThreadsThanFlagLinesMayCopyAndTheirLinesAreUsedAgain) {
  Node target(0);
  Node node(1);
  const auto channel = open_channel(node, target);
  constexpr std::size_t kThreads = 300;
  Region& region = target.memory(8 * kThreads);
  Region& local = node.memory(8);
  const RemoteRegion* remote = value_or_throw(channel->import(region.key()));
  ASSERT_TRUE(pump_until({&node, &target}, 5s, [&] { return remote->mapped.load() != nullptr; }));
  for (int wave = 0; wave < 2; ++wave) {
    std::atomic<std::size_t> copied{0};
    std::atomic<bool> leave{false};
    std::vector<std::thread> threads;
    for (std::size_t i = 0; i < kThreads; ++i) {
      threads.emplace_back([&, i] {
        const WorkRequest put = WorkRequest::put({&local, 0}, {remote, 8 * i}, 8, nullptr);
        for (int k = 0; k < 10; ++k) copied += channel->post({&put, 1}, scaled(10s)).finished;
        while (!leave) std::this_thread::sleep_for(1ms);  // keeps its line
      });
    }
    const Deadline deadline(scaled(20s));
    while (copied < 10 * kThreads && !deadline.passed()) std::this_thread::sleep_for(1ms);
    leave = true;
    for (auto& thread : threads) thread.join();
    EXPECT_EQ(copied, 10 * kThreads);
  }
  target.regions->revoke(region);
  EXPECT_TRUE(pump_until({&node, &target}, 5s, [&] { return target.transport->drained(region); }));
}

TEST(ShmMemoryTest, LinksLeaveNeitherDescriptorsNorMappingsBehind) {
  const auto life = [] {
    Node target(0);
    Node node(1);
    const auto forth = open_channel(node, target);
    const auto back = open_channel(target, node);
    const RemoteRegion* remote = value_or_throw(forth->import(target.memory(4096).key()));
    ASSERT_TRUE(pump_until({&node, &target}, 5s, [&] { return remote->mapped.load() != nullptr; }));
    open_channel(node, target).reset();
  };
  life();
  const std::size_t descriptors = open_descriptors();
  const std::size_t segments = mapped_segments();
  for (int i = 0; i < 10; ++i) life();
  EXPECT_EQ(open_descriptors(), descriptors);
  // This thread's flag line keeps the last transport's page until it next takes one.
  EXPECT_LE(mapped_segments(), segments + 1);
}

TEST(ShmMemoryTest, OptionsOutsideOfReasonAreAnError) {
  fabric::Identity identity{.self = 0, .world = 2, .host_id = "h", .token = {}};
  auto regions = value_or_throw(RegionTable::create());
  Events events;
  const auto complaint = [&](const fabric::shm::ShmOptions& options) {
    const auto made = fabric::shm::make_shm({identity, *regions, events}, options);
    return made ? std::string() : made.error().message;
  };
  EXPECT_NE(complaint({.ring_bytes = 4ULL << 30}).find("ring_bytes 4294967296"), std::string::npos);
  EXPECT_NE(complaint({.max_handshakes = 0}).find("max_handshakes 0"), std::string::npos);
  EXPECT_EQ(complaint({.ring_bytes = 1, .eager_bytes = 1 << 20}), "");  // the ring grows with what it must hold
}

}  // namespace
}  // namespace dtr::testing
