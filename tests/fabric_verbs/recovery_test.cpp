// What happens around a loss: requests that have ended already, both ends' agreement, order, rails that go and come.
#include <array>
#include <set>

#include <gmock/gmock.h>

#include "fabric_verbs/nics.hpp"
#include "fabric_verbs/traffic.hpp"

namespace dtr::testing {
namespace {

constexpr fabric::Port kPort = Traffic::kPort;

Memory make(fabric::Fabric& fabric, std::size_t bytes, RegionOptions options = {}) {
  return {fabric, bytes, true, options};
}

template <class Condition>
bool comes_true(Condition&& condition, std::chrono::milliseconds bound = 30s) {
  const Deadline deadline(scaled(bound));
  while (!condition() && !deadline.passed()) std::this_thread::sleep_for(1ms);
  return condition();
}

TEST(VerbsRecoveryTest, ARequestThatWasCancelledIsNotToldAgainWhenTheTargetRefusesIt) {
  Nics nics;
  World world(nics.transport_case());
  Memory source = make(world.initiator(), 4096);
  Memory sink = make(world.target(), 4096);
  const auto* remote = value_or_throw(world.initiator().import(1, sink.region()->key()));
  const WorkRequest put = WorkRequest::put({source.region(), 0}, {remote, 0}, 4096, nullptr);
  ASSERT_TRUE(run(world.initiator(), 1, {put}));
  nics.nic(0).freeze();
  nics.nic(0).fail_request({.nth = 1, .status = IBV_WC_REM_ACCESS_ERR});
  Completion done;
  WorkRequest refused = put;
  refused.completion = &done;
  world.initiator().submit(1, std::array{refused}, scaled(30s));
  EXPECT_EQ(world.initiator().cancel(1, done), 1U);
  EXPECT_EQ(done.status().code, Errc::cancelled);
  EXPECT_FALSE(done.status().quiesced);
  nics.nic(0).thaw();
  ASSERT_TRUE(world.initiator().quiesce(1, scaled(20s)));
  ASSERT_TRUE(run(world.initiator(), 1, {put}));
  EXPECT_EQ(done.pending(), 0U);
  EXPECT_EQ(source.region()->uses(), 0U);
}

TEST(VerbsRecoveryTest, WhatTheTargetRefusesIsQuiescedAndItsNeighboursArrive) {
  Nics nics;
  World world(nics.transport_case());
  Memory source = make(world.initiator(), 64 << 10);
  Memory sink = make(world.target(), 64 << 10);
  Memory gone = make(world.target(), 4096);
  const auto* remote = value_or_throw(world.initiator().import(1, sink.region()->key()));
  const auto* revoked = value_or_throw(world.initiator().import(1, gone.region()->key()));
  source.pattern(3);
  ASSERT_TRUE(run(world.initiator(), 1, {WorkRequest::put({source.region(), 0}, {remote, 0}, 64, nullptr)}));
  ASSERT_TRUE(gone.unregister());
  std::array<Completion, 16> done;
  std::vector<WorkRequest> batch;
  for (std::uint64_t i = 0; i < done.size(); ++i) {
    const auto* to = i == 5 ? revoked : remote;
    batch.push_back(WorkRequest::put({source.region(), i * 4096}, {to, i == 5 ? 0 : i * 4096}, 4096, &done[i]));
  }
  world.initiator().submit(1, batch, scaled(30s));
  for (std::size_t i = 0; i < done.size(); ++i) {
    const auto result = world.initiator().wait(done[i], 1, "put", scaled(30s));
    EXPECT_EQ(result.has_value(), i != 5) << i;
  }
  EXPECT_EQ(done[5].status().code, Errc::revoked);
  EXPECT_TRUE(done[5].status().quiesced);
  EXPECT_TRUE(done[5].status().fenced);
  for (std::size_t i = 0; i < done.size(); ++i) {
    const std::size_t at = i * 4096;
    EXPECT_EQ(std::memcmp(sink.data() + at, source.data() + at, 4096) == 0, i != 5) << i;
  }
}

TEST(VerbsRecoveryTest, AMessageFencedBehindDataThatTheTargetRefusesIsNotSent) {
  Nics nics;
  World world(nics.transport_case());
  Inbox inbox;
  ASSERT_TRUE(world.target().open_port(kPort, inbox));
  Memory source = make(world.initiator(), 4096);
  Memory sink = make(world.target(), 4096);
  const auto* remote = value_or_throw(world.initiator().import(1, sink.region()->key()));
  const WorkRequest put = WorkRequest::put({source.region(), 0}, {remote, 0}, 4096, nullptr);
  const std::array<std::byte, 8> word{};
  ASSERT_TRUE(run(world.initiator(), 1, {put, WorkRequest::send(kPort, word, nullptr).fenced()}));
  EXPECT_TRUE(inbox.next());
  ASSERT_TRUE(sink.unregister());
  const auto result = run(world.initiator(), 1, {put, WorkRequest::send(kPort, word, nullptr).fenced()});
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code, Errc::revoked) << result.error().to_string();
  ASSERT_TRUE(run(world.initiator(), 1, {WorkRequest::notify(kPort, 7, nullptr)}));
  const auto next = inbox.next();
  ASSERT_TRUE(next);
  EXPECT_FALSE(next->is_message) << "a message about data that did not arrive";
  world.target().close_port(kPort);
}

TEST(VerbsRecoveryTest, MessagesKeepTheirOrderOverALostRail) {
  constexpr std::uint32_t kMessages = 600;
  for (const bool landed : {false, true}) {
    Nics nics({.rails = 2, .verbs = {.send_queue = 32, .credits = 8}});
    World world(nics.transport_case());
    Inbox inbox;
    ASSERT_TRUE(world.target().open_port(kPort, inbox));
    ASSERT_TRUE(run(world.initiator(), 1, {WorkRequest::flush(nullptr)}));
    for (std::uint64_t nth = 30; nth < kMessages; nth += 90) {
      nics.nic(0).fail_request({.nth = nth, .status = IBV_WC_RETRY_EXC_ERR, .landed = landed});
    }
    std::vector<WorkRequest> messages;
    for (std::uint32_t i = 0; i < kMessages; ++i) messages.push_back(WorkRequest::notify(kPort, i, nullptr));
    const auto result = run(world.initiator(), 1, messages, 60s);
    ASSERT_TRUE(result) << result.error().to_string();
    std::vector<std::uint32_t> values;
    for (auto next = inbox.next(); next; next = inbox.next()) {
      values.push_back(next->value);
      if (values.size() == kMessages) break;
    }
    world.target().close_port(kPort);
    EXPECT_EQ(inbox.size(), 0U);
    EXPECT_EQ(values.size(), kMessages);
    EXPECT_TRUE(std::is_sorted(values.begin(), values.end()));
  }
}

TEST(VerbsRecoveryTest, WhatADoorbellRefusesGoesAgainOnceAndOnlyOnce) {
  Nics nics({.verbs = {.send_queue = 32, .credits = 8}});
  World world(nics.transport_case());
  Traffic traffic(world, 300);
  for (std::uint64_t nth = 3; nth < 60; nth += 9) {
    nics.nic(0).fail_call({.call = Call::post_send, .nth = nth, .error = ENOMEM});
  }
  traffic.start();
  const auto result = traffic.finish();
  EXPECT_TRUE(result) << result.error().to_string();
  traffic.expect_everything_once();
}

TEST(VerbsRecoveryTest, ADoorbellThatIsRefusedLeavesNoHoleInTheCountOfMessages) {
  Nics nics;
  World world(nics.transport_case(), {.progress_threads = false});
  fabric::Fabric& from = world.initiator();
  fabric::Fabric& to = world.target();
  Tally tally(4);
  ASSERT_TRUE(to.open_port(kPort, tally));
  Completion done;
  const auto post = [&](std::uint32_t value) {
    from.submit(1, std::array{WorkRequest::notify(kPort, value, &done)}, scaled(60s));
  };
  const auto arrives = [&](std::uint64_t count) {
    return comes_true([&] {
      from.progress().poll();
      to.progress().poll();
      return done.done() && tally.total() >= count;
    });
  };
  post(0);
  ASSERT_TRUE(arrives(1));
  // The second is refused at its doorbell, and what comes behind it arrives without an answer: before progress has
  // looked at the first, or on the next queue pair.
  nics.nic(0).fail_call({.call = Call::post_send, .nth = 2, .error = ENOMEM});
  nics.nic(0).fail_request({.nth = 3, .status = IBV_WC_RETRY_EXC_ERR, .landed = true});
  post(1);
  post(2);
  post(3);
  ASSERT_TRUE(arrives(4));
  EXPECT_TRUE(done.status().ok());
  EXPECT_EQ(tally.total(), 4U);
  EXPECT_TRUE(tally.each_once());
  to.close_port(kPort);
}

TEST(VerbsRecoveryTest, AFlushWaitsForWhatALostRailHasBrought) {
  Nics nics({.rails = 2, .verbs = {.slice_bytes = 4096, .failure_detect = scaled(60s)}});
  World world(nics.transport_case(), {.progress_threads = false});
  fabric::Fabric& from = world.initiator();
  fabric::Fabric& to = world.target();
  Memory source = make(from, 64 << 10);
  Memory sink = make(to, 64 << 10);
  const auto* remote = value_or_throw(from.import(1, sink.region()->key()));
  const auto ends = [&](Completion& done) {
    return comes_true([&] {
      from.progress().poll();
      to.progress().poll();
      return done.done();
    });
  };
  Completion done;
  from.submit(1, std::array{WorkRequest::flush(&done)}, scaled(60s));
  ASSERT_TRUE(ends(done));
  from.submit(1, std::array{WorkRequest::put({source.region(), 0}, {remote, 0}, source.size(), &done)}, scaled(60s));
  ASSERT_TRUE(ends(done));
  // The target does nothing, so it does not say that its end is drained.
  nics.nic(0).set_port(false, "soft1");
  ASSERT_TRUE(comes_true([&] {
    from.progress().poll();
    return nics.nic(0).calls(Call::destroy_qp) > 0;
  }));
  Completion flushed;
  from.submit(1, std::array{WorkRequest::flush(&flushed)}, scaled(60s));
  for (int i = 0; i < 200; ++i) {
    from.progress().poll();
    std::this_thread::sleep_for(100us);
  }
  EXPECT_FALSE(flushed.done());
  EXPECT_TRUE(ends(flushed));
  EXPECT_TRUE(flushed.status().ok());
}

TEST(VerbsRecoveryTest, EveryQueuePairStartsWithAPacketNumberOfItsOwn) {
  Nics nics;
  World world(nics.transport_case());
  for (int loss = 0; loss < 4; ++loss) {
    ASSERT_TRUE(run(world.initiator(), 1, {WorkRequest::notify(kPort, 1, nullptr)}));
    nics.nic(0).fail_request({.nth = 1, .status = IBV_WC_RETRY_EXC_ERR});
    ASSERT_TRUE(run(world.initiator(), 1, {WorkRequest::notify(kPort, 2, nullptr)}));
  }
  const auto psns = nics.nic(0).psns();
  EXPECT_GE(psns.size(), 5U);
  EXPECT_EQ(std::set(psns.begin(), psns.end()).size(), psns.size());
}

TEST(VerbsRecoveryTest, AQueuePairOfTheStartThatOneEndCannotConnectIsMadeAnew) {
  for (const std::uint32_t broken : {0U, 1U}) {
    Nics nics({.made = [broken](std::uint32_t rank, SoftwareNic& nic) {
      if (rank == broken) nic.fail_call({.call = Call::modify_qp, .nth = 1, .error = EIO});
    }});
    World world(nics.transport_case());
    Traffic traffic(world, 60);
    traffic.start();
    const auto result = traffic.finish();
    EXPECT_TRUE(result) << result.error().to_string();
    traffic.expect_everything_once();
  }
}

TEST(VerbsRecoveryTest, APeerThatAnswersLateIsConnectedAllTheSame) {
  Nics nics({.verbs = {.eager_world = 0, .failure_detect = scaled(30s)}});
  World world(nics.transport_case(), {.progress_threads = false});
  Completion done;
  std::vector<WorkRequest> requests{WorkRequest::notify(kPort, 1, &done)};
  fabric::Fabric& from = world.initiator();
  fabric::Fabric& to = world.target();
  from.submit(1, requests, scaled(60s));
  // The first word reaches the target, which then stops until it has been asked again.
  ASSERT_TRUE(comes_true([&] {
    from.progress().poll();
    to.progress().poll();
    return nics.nic(1).calls(Call::create_qp) > 0;
  }));
  ASSERT_TRUE(comes_true([&] {
    from.progress().poll();
    return nics.nic(0).calls(Call::create_qp) >= 2 || done.done();
  }));
  ASSERT_TRUE(comes_true([&] {
    from.progress().poll();
    to.progress().poll();
    return done.done();
  }));
  EXPECT_TRUE(done.status().ok()) << to_string(done.status().code);
}

TEST(VerbsRecoveryTest, ADeviceThatDiesIsLeftOutAndTheOtherCarriesOn) {
  for (const char* device : {"soft0", "soft1"}) {
    for (const std::uint32_t side : {0U, 1U}) {
      Nics nics({.rails = 2, .verbs = {.slice_bytes = 16 << 10, .failure_detect = scaled(5s)}});
      World world(nics.transport_case());
      Traffic before(world, 60);
      before.start();
      nics.nic(side).break_device(device);
      EXPECT_TRUE(before.finish());
      before.expect_everything_once();
    }
  }
}

TEST(VerbsRecoveryTest, WhatIsCancelledWhileNoRailIsUpIsQuiescedAndLeavesNothingBehind) {
  Nics nics({.verbs = {.queue_depth = 8, .failure_detect = scaled(30s)}});
  World world(nics.transport_case());
  fabric::Fabric& from = world.initiator();
  Memory source = make(from, 64 << 10);
  Memory sink = make(world.target(), 64 << 10);
  const auto* remote = value_or_throw(from.import(1, sink.region()->key()));
  const auto put = [&](Completion* done) {
    return WorkRequest::put({source.region(), 0}, {remote, 0}, source.size(), done);
  };
  ASSERT_TRUE(run(from, 1, {put(nullptr)}));
  // Under way when the wire goes: its pieces wait for a rail.
  nics.network().cut();
  Completion lost;
  from.submit(1, std::array{put(&lost)}, scaled(60s));
  nics.nic(0).set_port(false);
  ASSERT_TRUE(comes_true([&] { return nics.nic(1).calls(Call::destroy_qp) > 0; }));
  EXPECT_EQ(from.cancel(1, lost), 1U);
  EXPECT_TRUE(from.quiesce(1, scaled(5s)));
  EXPECT_EQ(source.region()->uses(), 0U);
  // More ends of fenced requests than there are places.
  for (int i = 0; i < 100; ++i) {
    Completion ended;
    from.submit(1, std::array{put(&ended), put(&ended).fenced(), WorkRequest::flush(&ended)}, scaled(60s));
    EXPECT_EQ(from.cancel(1, ended), 3U);
    EXPECT_EQ(ended.pending(), 0U);
  }
  nics.network().heal();
  nics.nic(0).set_port(true);
  const auto result = run(from, 1, {put(nullptr), put(nullptr).fenced(), WorkRequest::flush(nullptr)}, 30s);
  EXPECT_TRUE(result) << result.error().to_string();
}

TEST(VerbsRecoveryTest, AnOutageLongAgoDoesNotCountForTheNext) {
  const auto detect = scaled(1500ms);
  Nics nics({.verbs = {.failure_detect = detect}});
  World world(nics.transport_case());
  ASSERT_TRUE(run(world.initiator(), 1, {WorkRequest::notify(kPort, 1, nullptr)}));
  const auto flap = [&] {
    const auto before = nics.nic(0).psns().size();
    nics.nic(0).set_port(false);
    ASSERT_TRUE(comes_true([&] { return nics.nic(0).calls(Call::destroy_qp) >= before; }));
    nics.nic(0).set_port(true);
    ASSERT_TRUE(comes_true([&] { return nics.nic(0).psns().size() > before; }));
  };
  flap();
  std::this_thread::sleep_for(detect + 200ms);  // and nothing is sent
  flap();
  const auto result = run(world.initiator(), 1, {WorkRequest::notify(kPort, 2, nullptr)}, 20s);
  EXPECT_TRUE(result) << result.error().to_string();
}

TEST(VerbsRecoveryTest, APeerThatWasGivenUpIsTold) {
  Nics nics({.verbs = {.failure_detect = scaled(500ms)}});
  World world(nics.transport_case());
  Inbox inbox;
  ASSERT_TRUE(world.target().open_port(kPort, inbox));
  ASSERT_TRUE(run(world.initiator(), 1, {WorkRequest::notify(kPort + 1, 1, nullptr)}));
  nics.nic(0).break_device();  // at the initiator: the target's own is well
  const auto down = inbox.next_down(30s);
  ASSERT_TRUE(down);
  EXPECT_EQ(down->peer, 0);
  EXPECT_TRUE(down->code == Errc::fenced || down->code == Errc::peer_failed) << down->to_string();
  world.target().close_port(kPort);
}

}  // namespace
}  // namespace dtr::testing
