// Taking memory back from peers that are writing to it.
#include <atomic>
#include <thread>

#include "fabric_shm/node.hpp"

namespace dtr::testing {
namespace {

using fabric::Completion;
using fabric::RemoteRegion;
using fabric::WorkRequest;
using fabric::shm::CmaUse;

struct Way {
  std::string name;
  CmaUse cma;
  bool managed;
};

class RevocationTest : public ::testing::TestWithParam<Way> {};

TEST_P(RevocationTest, NoByteChangesAfterTheRegionIsDrained) {
  Node owner(0, {.cma = GetParam().cma});
  Node writer(1, {.cma = GetParam().cma});
  const auto channel = open_channel(writer, owner);
  Region& source = writer.memory(1 << 20);
  std::memset(source.data(), 0x11, source.length());

  constexpr std::size_t kBytes = 1 << 20;
  constexpr int kRounds = 30;
  std::atomic<const RemoteRegion*> target{nullptr};
  std::atomic<bool> stop{false};
  std::atomic<int> written{0};
  std::atomic<int> refused{0};
  std::atomic<int> surprises{0};
  std::atomic<int> ended{0};
  std::vector<std::thread> threads;
  constexpr std::size_t kSmall = 8;
  constexpr std::size_t kMedium = 5000;
  constexpr std::size_t kRest = kBytes - kSmall - kMedium;
  for (const auto& [offset, bytes] :
       {std::pair{std::size_t{0}, kSmall}, std::pair{kSmall, kMedium}, std::pair{kSmall + kMedium, kRest}}) {
    threads.emplace_back([&, offset = offset, bytes = bytes] {
      Completion done;
      while (!stop) {
        const RemoteRegion* remote = target.load();
        if (remote == nullptr) {
          std::this_thread::yield();
          continue;
        }
        done.arm(1);
        const WorkRequest request = WorkRequest::put({&source, 0}, {remote, offset}, bytes, &done);
        const auto result = channel->post({&request, 1}, scaled(10s));
        Errc code = result.status.code;
        if (result.accepted == 0 || result.finished == 1) {
          done.finish(1, {});
        } else {
          while (!done.done()) std::this_thread::yield();
          code = done.status().code;
          done.reset();
        }
        if (code == Errc::ok) ++written;
        if (code == Errc::revoked) ++refused;
        if (code != Errc::ok && code != Errc::revoked && code != Errc::again) ++surprises;
        if (code != Errc::ok) std::this_thread::yield();
      }
      ++ended;
    });
  }
  for (int round = 0; round < kRounds; ++round) {
    Region& region = owner.memory(kBytes, GetParam().managed);
    target = value_or_throw(channel->import(region.key()));
    const int before = written;
    ASSERT_TRUE(pump_until({&owner, &writer}, 20s, [&] { return written > before + 20; }));
    owner.regions->revoke(region);
    ASSERT_TRUE(pump_until({&owner, &writer}, 20s, [&] { return owner.transport->drained(region); }));
    std::memset(region.data(), 0x77, kBytes);
    const Deadline later(3ms);
    while (!later.passed()) {
      owner.pump();
      writer.pump();
    }
    std::size_t changed = 0;
    for (std::size_t i = 0; i < kBytes; ++i) changed += region.data()[i] != std::byte{0x77} ? 1 : 0;
    ASSERT_EQ(changed, 0U) << "round " << round;
    const int refused_before = refused;
    ASSERT_TRUE(pump_until({&owner, &writer}, 20s, [&] { return refused > refused_before; }));
    owner.forget(region);
  }
  stop = true;
  // A thread that looked just before may still post: it needs progress until it is out.
  const auto all = static_cast<int>(threads.size());
  EXPECT_TRUE(pump_until({&owner, &writer}, 20s, [&] { return ended == all; }));
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(source.uses(), 0U);
  EXPECT_EQ(surprises, 0);
}

INSTANTIATE_TEST_SUITE_P(Shm, RevocationTest,
                         ::testing::Values(Way{"mapped", CmaUse::automatic, true}, Way{"foreign", CmaUse::on, false},
                                           Way{"bounce", CmaUse::off, false}),
                         [](const auto& way) { return way.param.name; });

struct StopPage {
  std::atomic<int> stage{0};
  std::atomic<std::uint64_t> puts{0};
  std::atomic<std::uint64_t> refusals{0};
  std::atomic<std::uint64_t> round{0};
  std::byte address[24] = {};
  RemoteKey key{};
};

TEST(StoppedInitiatorTest, MemoryStaysInUseUntilTheStoppedWriterGoesOn) {
  SharedPage<StopPage> page;
  constexpr std::size_t kBytes = 32 << 20;
  Child writer([&] {
    if (!wait_for(page->stage, 1)) return 1;
    Node node(1);
    auto channel = value_or_throw(node.transport->connect(0, page->address, scaled(10s)));
    Region& source = node.memory(kBytes);
    const RemoteRegion* remote = nullptr;
    std::uint64_t round = 0;
    while (page->stage < 2) {
      node.pump();
      if (page->round > round) {
        round = page->round;
        remote = value_or_throw(channel->import(page->key));
      }
      if (remote == nullptr) continue;
      const WorkRequest request = WorkRequest::put({&source, 0}, {remote, 0}, kBytes, nullptr);
      const auto result = channel->post({&request, 1}, scaled(10s));
      if (result.finished == 1) ++page->puts;
      if (result.status.code == Errc::revoked) {
        ++page->refusals;
        remote = nullptr;
      }
    }
    return 0;
  });
  Node owner(0);
  const auto address = owner.transport->address();
  ASSERT_EQ(address.size(), sizeof page->address);
  std::memcpy(page->address, address.data(), address.size());
  page->stage = 1;

  bool caught_inside = false;
  const Deadline give_up(scaled(30s));
  for (int attempt = 0; !caught_inside && !give_up.passed(); ++attempt) {
    Region& region = owner.memory(kBytes);
    page->key = region.key();
    ++page->round;
    const std::uint64_t puts = page->puts;
    ASSERT_TRUE(pump_until({&owner}, 30s, [&] { return page->puts > puts + 2; }));
    // Right after the end of a put it is between two copies: another moment each time.
    std::this_thread::sleep_for(attempt * 300us);
    writer.stop();
    owner.regions->revoke(region);
    const Deadline while_stopped(100ms);
    bool drained = false;
    while (!while_stopped.passed() && !drained) {
      owner.pump();
      drained = owner.transport->drained(region);
    }
    caught_inside = !drained;
    writer.kill(SIGCONT);
    ASSERT_TRUE(pump_until({&owner}, 20s, [&] { return owner.transport->drained(region); }));
    std::memset(region.data(), 0x33, kBytes);
    ASSERT_TRUE(pump_until({&owner}, 20s, [&] { return page->refusals > static_cast<std::uint64_t>(attempt); }));
    EXPECT_EQ(region.data()[kBytes - 1], std::byte{0x33});
    EXPECT_EQ(region.data()[0], std::byte{0x33});
    owner.forget(region);
  }
  EXPECT_TRUE(caught_inside) << "the writer was never stopped inside a copy";
  page->stage = 2;
  EXPECT_EQ(writer.wait(), 0);
}

TEST(StoppedInitiatorTest, WriterKilledInsideACopyDoesNotHoldTheMemory) {
  for (int attempt = 0; attempt < 5; ++attempt) {
    SharedPage<StopPage> page;
    constexpr std::size_t kBytes = 32 << 20;
    Child writer([&] {
      if (!wait_for(page->stage, 1)) return 1;
      Node node(1);
      auto channel = value_or_throw(node.transport->connect(0, page->address, scaled(10s)));
      const RemoteRegion* remote = value_or_throw(channel->import(page->key));
      Region& source = node.memory(kBytes);
      while (true) {
        node.pump();
        const WorkRequest request = WorkRequest::put({&source, 0}, {remote, 0}, kBytes, nullptr);
        if (channel->post({&request, 1}, scaled(10s)).finished == 1) ++page->puts;
      }
    });
    Node owner(0);
    Region& region = owner.memory(kBytes);
    page->key = region.key();
    const auto address = owner.transport->address();
    std::memcpy(page->address, address.data(), address.size());
    page->stage = 1;
    ASSERT_TRUE(pump_until({&owner}, 30s, [&] { return page->puts > 2; }));
    writer.kill(SIGKILL);
    owner.regions->revoke(region);
    ASSERT_TRUE(pump_until({&owner}, 5s, [&] { return owner.transport->drained(region); }));
    ASSERT_TRUE(pump_until({&owner}, 5s, [&] { return !owner.events.downs().empty(); }));
    EXPECT_EQ(owner.events.downs().front(), std::pair(fabric::PeerId{1}, Errc::peer_failed));
    owner.forget(region);
  }
}

}  // namespace
}  // namespace dtr::testing
