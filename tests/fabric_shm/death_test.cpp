// Peers that die, leave, or stand still: what the survivor is told, and how soon.
#include <algorithm>
#include <atomic>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>

#include "fabric_shm/node.hpp"

namespace dtr::testing {
namespace {

using fabric::ChannelState;
using fabric::Completion;
using fabric::RemoteRegion;
using fabric::WorkRequest;
using fabric::shm::CmaUse;

constexpr std::size_t kBytes = 1 << 20;

struct PeerPage {
  std::atomic<int> stage{0};
  std::atomic<std::uint64_t> heard{0};
  std::byte address[24] = {};
  RemoteKey key{};
};

void publish_address(PeerPage& page, const Node& node) {
  const auto address = node.transport->address();
  std::memcpy(page.address, address.data(), sizeof page.address);
}

/// A target in another process: shows a region, and drives its transport until killed or told to leave.
int serve(PeerPage& page, const fabric::shm::ShmOptions& options) {
  Node node(1, options);
  Region& region = node.memory(kBytes);
  std::memset(region.data(), 0, kBytes);
  page.key = region.key();
  publish_address(page, node);
  page.stage = 1;
  while (page.stage < 2) {
    if (node.pump() == 0) std::this_thread::yield();
    page.heard = node.events.messages.load();
  }
  node.transport->leave();
  return 0;
}

std::unique_ptr<fabric::Channel> connect(Node& node, PeerPage& page) {
  EXPECT_TRUE(wait_for(page.stage, 1));
  auto channel = value_or_throw(node.transport->connect(1, page.address, scaled(10s)));
  EXPECT_TRUE(pump_until({&node}, 10s, [&] { return channel->state() == ChannelState::open; }));
  return channel;
}

Errc run(Node& node, fabric::Channel& channel, WorkRequest request, std::chrono::milliseconds bound) {
  Completion done;
  request.completion = &done;
  done.arm(1);
  const Deadline deadline(scaled(bound));
  while (true) {
    const auto result = channel.post({&request, 1}, deadline);
    if (result.accepted == 1) {
      if (result.finished == 1) return Errc::ok;
      break;
    }
    if (result.status.code != Errc::again) return result.status.code;
    if (deadline.passed()) return Errc::timed_out;
    node.pump();
  }
  EXPECT_TRUE(pump_until({&node}, bound + 5s, [&] { return done.done(); }));
  return done.status().code;
}

TEST(DeathTest, KilledTargetIsReportedOnceAndRefusesRequestsOfEveryKind) {
  for (const CmaUse cma : {CmaUse::automatic, CmaUse::off}) {
    SharedPage<PeerPage> page;
    Child target([&] { return serve(*page, {.cma = cma}); });
    Node node(0, {.cma = cma});
    const auto channel = connect(node, *page);
    const RemoteRegion* remote = value_or_throw(channel->import(page->key));
    Region& local = node.memory(kBytes);
    ASSERT_TRUE(pump_until({&node}, 10s, [&] { return remote->mapped.load() != nullptr; }));
    const WorkRequest put = WorkRequest::put({&local, 0}, {remote, 0}, kBytes, nullptr);
    ASSERT_EQ(run(node, *channel, put, 10s), Errc::ok);

    target.stop();
    target.kill(SIGKILL);
    const auto start = std::chrono::steady_clock::now();
    ASSERT_TRUE(pump_until({&node}, 5s, [&] { return !node.events.downs().empty(); }));
    EXPECT_LT(std::chrono::steady_clock::now() - start, scaled(3s));  // the kernel's part of it included
    EXPECT_EQ(channel->state(), ChannelState::failed);
    for (const WorkRequest& request :
         {put, WorkRequest::get({remote, 0}, {&local, 0}, 8, nullptr), WorkRequest::notify(1, 1, nullptr),
          WorkRequest::fetch_add({remote, 0}, 1, {&local, 0}, nullptr), WorkRequest::flush(nullptr)}) {
      const auto result = channel->post({&request, 1}, scaled(1s));
      EXPECT_EQ(result.accepted, 0U);
      EXPECT_EQ(result.status.code, Errc::peer_failed);
      EXPECT_TRUE(result.status.quiesced && result.status.fenced);
    }
    for (int i = 0; i < 1000; ++i) node.pump();
    EXPECT_EQ(node.events.downs(), (std::vector{std::pair(fabric::PeerId{1}, Errc::peer_failed)}));
    EXPECT_EQ(target.wait(), -SIGKILL);
  }
}

TEST(DeathTest, RequestsThatNeedTheTargetEndWhenItDies) {
  SharedPage<PeerPage> page;
  Child target([&] {
    Node node(1, {.cma = CmaUse::off});
    Region& region = node.memory(kBytes, false);
    page->key = region.key();
    publish_address(*page, node);
    page->stage = 1;
    while (true) node.pump();
    return 0;
  });
  Node node(0, {.cma = CmaUse::off});
  const auto channel = connect(node, *page);
  const RemoteRegion* remote = value_or_throw(channel->import(page->key));
  Region& local = node.memory(4 << 20);
  ASSERT_EQ(run(node, *channel, WorkRequest::put({&local, 0}, {remote, 0}, kBytes, nullptr), 10s), Errc::ok);
  target.stop();
  Completion done;
  const std::vector<WorkRequest> requests{WorkRequest::put({&local, 0}, {remote, 0}, kBytes, &done),
                                          WorkRequest::get({remote, 0}, {&local, 0}, kBytes, &done),
                                          WorkRequest::fetch_add({remote, 0}, 1, {&local, 0}, &done),
                                          WorkRequest::put({&local, 0}, {remote, 0}, 8, &done).fenced(),
                                          WorkRequest::flush(&done)};
  done.arm(5);
  const auto posted = channel->post(requests, scaled(30s));
  ASSERT_EQ(posted.accepted, 5U);
  EXPECT_EQ(posted.finished, 0U);
  for (int i = 0; i < 1000; ++i) node.pump();
  EXPECT_EQ(done.pending(), 5U);
  EXPECT_GT(local.uses(), 0U);
  target.kill(SIGKILL);
  ASSERT_TRUE(pump_until({&node}, 5s, [&] { return done.done(); }));
  EXPECT_EQ(done.status().code, Errc::peer_failed);
  EXPECT_EQ(local.uses(), 0U);
}

TEST(DeathTest, SilentTargetEndsItsRequestsAtTheirDeadlineAndIsNotDeclaredDead) {
  SharedPage<PeerPage> page;
  Child target([&] { return serve(*page, {.cma = CmaUse::off}); });
  Node node(0, {.cma = CmaUse::off});
  const auto channel = connect(node, *page);
  const RemoteRegion* remote = value_or_throw(channel->import(page->key));
  Region& local = node.memory(kBytes);
  ASSERT_TRUE(pump_until({&node}, 10s, [&] { return remote->mapped.load() != nullptr; }));
  target.stop();
  // Mapped memory needs nobody; a full ring does.
  EXPECT_EQ(run(node, *channel, WorkRequest::put({&local, 0}, {remote, 0}, kBytes, nullptr), 5s), Errc::ok);
  const std::vector<std::byte> payload(4096);
  Errc code = Errc::ok;
  std::uint64_t sent = 0;
  while (code == Errc::ok) {
    code = run(node, *channel, WorkRequest::send(1, payload, nullptr), 200ms);
    sent += code == Errc::ok ? 1 : 0;
  }
  EXPECT_EQ(code, Errc::timed_out);
  EXPECT_TRUE(node.events.downs().empty());
  target.kill(SIGCONT);
  EXPECT_EQ(run(node, *channel, WorkRequest::send(1, payload, nullptr), 10s), Errc::ok);
  EXPECT_TRUE(wait_for(page->heard, sent + 1));
  page->stage = 2;
  EXPECT_EQ(target.wait(), 0);
}

TEST(DeathTest, PeerThatLeavesIsNotReportedAsDead) {
  SharedPage<PeerPage> page;
  Child target([&] { return serve(*page, {}); });
  Node node(0);
  const auto channel = connect(node, *page);
  page->stage = 2;
  ASSERT_TRUE(pump_until({&node}, 5s, [&] { return !node.events.downs().empty(); }));
  EXPECT_EQ(node.events.downs().front(), std::pair(fabric::PeerId{1}, Errc::peer_left));
  EXPECT_EQ(run(node, *channel, WorkRequest::notify(1, 1, nullptr), 1s), Errc::peer_left);
  EXPECT_EQ(target.wait(), 0);
}

TEST(DeathTest, WhatADeadPeerSentBeforeIsStillDelivered) {
  SharedPage<PeerPage> page;
  Child sender([&] {
    if (!wait_for(page->stage, 1)) return 5;
    Node child(1);
    auto channel = value_or_throw(child.transport->connect(0, page->address, scaled(10s)));
    if (!pump_until({&child}, 10s, [&] { return channel->state() == ChannelState::open; })) return 1;
    page->stage = 2;
    if (!wait_for(page->stage, 3)) return 2;
    const std::vector<std::byte> payload(100);
    for (int i = 0; i < 50; ++i) {
      if (run(child, *channel, WorkRequest::send(1, payload, nullptr), 5s) != Errc::ok) return 3;
    }
    ::kill(::getpid(), SIGKILL);
    return 4;
  });
  Node node(0);  // after the fork: its thread must not be there then
  publish_address(*page, node);
  page->stage = 1;
  ASSERT_TRUE(pump_until({&node}, 10s, [&] { return page->stage == 2; }));
  page->stage = 3;
  EXPECT_EQ(sender.wait(), -SIGKILL);
  ASSERT_TRUE(pump_until({&node}, 5s, [&] { return !node.events.downs().empty(); }));
  EXPECT_EQ(node.events.messages, 50U);
  EXPECT_EQ(node.events.message_bytes, 5000U);
}

TEST(DeathTest, DeathIsSeenAlthoughAChildOfThePeerHoldsItsSocketsOpen) {
  SharedPage<PeerPage> page;
  std::atomic<int>& heir = page->stage;
  Child target([&] {
    Node node(1);
    publish_address(*page, node);
    page->stage = 1;
    const Deadline deadline(scaled(20s));
    while (page->stage < 2 && !deadline.passed()) node.pump();
    if (::fork() == 0) {
      page->stage = 3;
      while (page->stage < 4 && !deadline.passed()) ::usleep(1000);
      ::_exit(0);
    }
    while (true) node.pump();
    return 0;
  });
  Node node(0);
  const auto channel = connect(node, *page);
  page->stage = 2;
  ASSERT_TRUE(wait_for(heir, 3));
  target.kill(SIGKILL);
  EXPECT_TRUE(pump_until({&node}, 5s, [&] { return !node.events.downs().empty(); }));
  page->stage = 4;
}

TEST(DeathTest, ConnectingToAProcessThatIsGoneFailsAtOnce) {
  Node node(0);
  std::vector<std::byte> address;
  {
    Node gone(1);
    address = gone.transport->address();
  }
  const auto channel = value_or_throw(node.transport->connect(1, address, scaled(20s)));
  const auto start = std::chrono::steady_clock::now();
  ASSERT_TRUE(pump_until({&node}, 5s, [&] { return channel->state() == ChannelState::failed; }));
  EXPECT_LT(std::chrono::steady_clock::now() - start, scaled(1s));
  EXPECT_EQ(node.events.downs(), (std::vector{std::pair(fabric::PeerId{1}, Errc::peer_failed)}));
  EXPECT_NE(channel->explain({.code = Errc::peer_failed}).find("nobody listens"), std::string::npos);
}

TEST(DeathTest, ConnectingToASilentProcessEndsAtTheDeadline) {
  Node node(0);
  Node silent(1);  // nobody drives it
  const auto channel = value_or_throw(node.transport->connect(1, silent.transport->address(), 100ms));
  ASSERT_TRUE(pump_until({&node}, 5s, [&] { return channel->state() == ChannelState::failed; }));
  const WorkRequest request = WorkRequest::flush(nullptr);
  EXPECT_EQ(channel->post({&request, 1}, 1s).status.code, Errc::timed_out);
  EXPECT_TRUE(node.events.downs().empty());
}

TEST(FenceTest, ShutOutPeerIsToldSoAtOnceAndWhenItComesBack) {
  Node owner(0);
  Node outcast(1);
  auto channel = open_channel(outcast, owner);
  Region& region = owner.memory(4096);
  Region& local = outcast.memory(4096);
  const RemoteRegion* remote = value_or_throw(channel->import(region.key()));
  const WorkRequest put = WorkRequest::put({&local, 0}, {remote, 0}, 8, nullptr);
  ASSERT_EQ(channel->post({&put, 1}, 1s).finished, 1U);
  owner.transport->fence(1);
  owner.pump();
  // Even before its progress has read the farewell.
  EXPECT_EQ(channel->post({&put, 1}, 1s).status.code, Errc::fenced);
  ASSERT_TRUE(pump_until({&owner, &outcast}, 5s, [&] { return channel->state() == ChannelState::failed; }));
  EXPECT_EQ(outcast.events.downs(), (std::vector{std::pair(fabric::PeerId{0}, Errc::fenced)}));
  channel = value_or_throw(outcast.transport->connect(0, owner.transport->address(), scaled(10s)));
  ASSERT_TRUE(pump_until({&owner, &outcast}, 5s, [&] { return channel->state() == ChannelState::failed; }));
  EXPECT_EQ(channel->post({&put, 1}, 1s).status.code, Errc::fenced);
}

TEST(CloseTest, ClosedChannelFinishesWhatIsOpenAndTellsThePeer) {
  Node target(0, {.cma = CmaUse::off});
  Node node(1, {.cma = CmaUse::off});
  const auto channel = open_channel(node, target);
  Region& region = target.memory(kBytes, false);
  Region& local = node.memory(kBytes);
  std::memset(local.data(), 0x42, kBytes);
  const RemoteRegion* remote = value_or_throw(channel->import(region.key()));
  Completion done;
  done.arm(1);
  const WorkRequest put = WorkRequest::put({&local, 0}, {remote, 0}, kBytes, &done);
  ASSERT_EQ(channel->post({&put, 1}, scaled(10s)).accepted, 1U);
  channel->close();
  EXPECT_EQ(channel->post({&put, 1}, scaled(10s)).status.code, Errc::closed);
  ASSERT_TRUE(pump_until({&node, &target}, 10s, [&] { return channel->state() == ChannelState::closed; }));
  EXPECT_TRUE(done.done());
  EXPECT_TRUE(done.status().ok());
  EXPECT_EQ(region.data()[kBytes - 1], std::byte{0x42});
  ASSERT_TRUE(pump_until({&node, &target}, 5s, [&] { return !target.events.downs().empty(); }));
  EXPECT_EQ(target.events.downs().front(), std::pair(fabric::PeerId{1}, Errc::peer_left));
}

TEST(CloseTest, DroppedChannelDoesNotMakeThePeerBelieveThatTheProcessDied) {
  Node target(0);
  Node node(1);
  open_channel(node, target).reset();
  for (int i = 0; i < 1000; ++i) {
    node.pump();
    target.pump();
  }
  EXPECT_TRUE(target.events.downs().empty());
  const auto again = open_channel(node, target);
  const WorkRequest notify = WorkRequest::notify(1, 7, nullptr);
  EXPECT_EQ(again->post({&notify, 1}, 1s).finished, 1U);
  EXPECT_TRUE(pump_until({&node, &target}, 5s, [&] { return target.events.notifications == 1; }));
}

std::size_t threads_called(const std::string& name) {
  std::size_t count = 0;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
    std::ifstream file(task.path() / "comm");
    std::string comm;
    std::getline(file, comm);
    count += comm == name ? 1U : 0U;
  }
  return count;
}

TEST(ForkTest, ChildOfForkIsRefusedAndDisturbsNothing) {
  Node target(0);
  Node node(1);
  const auto channel = open_channel(node, target);
  // What threads the start had are gone, and joined, before the fork.
  ASSERT_TRUE(pump_until({&node, &target}, 10s, [] { return threads_called("dtr-shm-start") == 0; }));
  ASSERT_TRUE(pump_until({&node, &target}, 10s, [rounds = 0]() mutable { return ++rounds > 10; }));
  Child child([&] {
    const WorkRequest notify = WorkRequest::notify(1, 7, nullptr);
    if (channel->post({&notify, 1}, 1s).status.code != Errc::forked) return 1;
    if (channel->import({}).error().code != Errc::forked) return 2;
    if (node.pump() != 0 || channel->cancel(*std::make_unique<Completion>()) != 0) return 3;
    channel->close();
    channel->abort(Errc::internal);
    node.transport.reset();
    target.transport.reset();
    return 0;
  });
  EXPECT_EQ(child.wait(), 0);
  const WorkRequest notify = WorkRequest::notify(1, 7, nullptr);
  EXPECT_EQ(channel->post({&notify, 1}, 1s).finished, 1U);
  EXPECT_TRUE(pump_until({&node, &target}, 5s, [&] { return target.events.notifications == 1; }));
  EXPECT_TRUE(node.transport->prepare_sleep());
}

}  // namespace
}  // namespace dtr::testing
