// Faults of the wire, of queue pairs and of ports: nothing is lost, nothing comes twice, everything ends in time.
#include <gmock/gmock.h>

#include "fabric_verbs/nics.hpp"
#include "fabric_verbs/traffic.hpp"

namespace dtr::testing {
namespace {

constexpr fabric::Port kPort = Traffic::kPort;

Memory make(fabric::Fabric& fabric, std::size_t bytes, RegionOptions options = {}) {
  return {fabric, bytes, true, options};
}

class VerbsFaultTest : public ::testing::TestWithParam<ibv_wc_status> {};

TEST_P(VerbsFaultTest, WhatAQueuePairLosesIsSentAgainOnceAndOnlyOnce) {
  for (const bool landed : {false, true}) {
    Nics nics({.verbs = {.send_queue = 32, .credits = 8}});
    World world(nics.transport_case());
    Traffic traffic(world, 300);
    for (std::uint64_t nth = 20; nth < 500; nth += 77) {
      nics.nic(0).fail_request({.nth = nth, .status = GetParam(), .landed = landed});
    }
    traffic.start();
    const auto result = traffic.finish();
    EXPECT_TRUE(result) << result.error().to_string();
    traffic.expect_everything_once();
  }
}

INSTANTIATE_TEST_SUITE_P(Verbs, VerbsFaultTest,
                         ::testing::Values(IBV_WC_RETRY_EXC_ERR, IBV_WC_GENERAL_ERR, IBV_WC_RNR_RETRY_EXC_ERR),
                         [](const auto& status) { return "status" + std::to_string(status.param); });

TEST(VerbsFailureTest, AShortOutageIsSurvivedWithoutAnError) {
  Nics nics({.verbs = {.failure_detect = scaled(10s)}});
  World world(nics.transport_case());
  Traffic traffic(world, 300);
  nics.network().cut({}, {}, scaled(300ms));
  traffic.start();
  const auto result = traffic.finish();
  EXPECT_TRUE(result) << result.error().to_string();
  traffic.expect_everything_once();
}

TEST(VerbsFailureTest, LossAndDelayChangeNothing) {
  Nics nics;
  World world(nics.transport_case());
  nics.network().set_wire("", "", {.jitter = std::chrono::microseconds(50), .loss = 0.02});
  Traffic traffic(world, 150);
  traffic.start(60s);
  const auto result = traffic.finish(60s);
  EXPECT_TRUE(result) << result.error().to_string();
  traffic.expect_everything_once();
}

TEST(VerbsFailureTest, APeerThatNoRailReachesHasFailedWithinTheBound) {
  Nics nics({.verbs = {.failure_detect = scaled(500ms)}});
  World world(nics.transport_case());
  ASSERT_TRUE(run(world.initiator(), 1, {WorkRequest::notify(kPort, 1, nullptr)}));
  nics.network().cut();
  const auto from = std::chrono::steady_clock::now();
  const auto result = run(world.initiator(), 1, {WorkRequest::notify(kPort, 2, nullptr)}, 60s);
  EXPECT_LT(std::chrono::steady_clock::now() - from, scaled(10s));
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code, Errc::peer_failed) << result.error().to_string();
  EXPECT_EQ(result.error().peer, 1);
  EXPECT_THAT(result.error().message, ::testing::HasSubstr("rail"));
}

TEST(VerbsFailureTest, TheLossOfOneRailOfTwoIsNotNoticed) {
  Nics nics({.rails = 2, .verbs = {.slice_bytes = 16 << 10, .failure_detect = scaled(1s)}});
  World world(nics.transport_case());
  Memory source = make(world.initiator(), 8 << 20);
  Memory sink = make(world.target(), 8 << 20);
  const auto* remote = value_or_throw(world.initiator().import(1, sink.region()->key()));
  for (int round = 0; round < 6; ++round) {
    if (round == 2) nics.network().cut("rank0/soft1", "rank1/soft1");
    source.pattern(static_cast<std::uint64_t>(round));
    const auto result =
        run(world.initiator(), 1, {WorkRequest::put({source.region(), 0}, {remote, 0}, source.size(), nullptr)}, 30s);
    ASSERT_TRUE(result) << result.error().to_string();
    EXPECT_EQ(sink.mismatches(static_cast<std::uint64_t>(round), 0, sink.size()), 0U) << round;
  }
  Traffic traffic(world, 200);
  traffic.start();
  EXPECT_TRUE(traffic.finish());
  traffic.expect_everything_once();
}

TEST(VerbsFailureTest, APortThatComesBackIsUsedAgain) {
  Nics nics({.verbs = {.failure_detect = scaled(10s)}});
  World world(nics.transport_case());
  Traffic traffic(world, 200);
  nics.nic(0).set_port(false);
  traffic.start();
  std::this_thread::sleep_for(100ms);
  nics.nic(0).set_port(true);
  const auto result = traffic.finish();
  EXPECT_TRUE(result) << result.error().to_string();
  traffic.expect_everything_once();
}

TEST(VerbsFailureTest, AnAddressThatChangesIsFollowed) {
  Nics nics({.verbs = {.failure_detect = scaled(10s)}});
  World world(nics.transport_case());
  ASSERT_TRUE(run(world.initiator(), 1, {WorkRequest::notify(kPort + 1, 1, nullptr)}));
  // The entry that connections are made from, wherever it stands in the table.
  for (std::uint32_t index = 0; index < 4; ++index) {
    nics.nic(0).set_gid(index, {.address = "10.77.0.2" + std::to_string(index),
                                .type = index % 2 == 0 ? IBV_GID_TYPE_ROCE_V1 : IBV_GID_TYPE_ROCE_V2});
  }
  Traffic traffic(world, 100);
  traffic.start();
  const auto result = traffic.finish();
  EXPECT_TRUE(result) << result.error().to_string();
  traffic.expect_everything_once();
}

TEST(VerbsFailureTest, AnAtomicOfTheDeviceWhoseFateIsUnknownIsNotRepeated) {
  for (const bool landed : {false, true}) {
    Nics nics;
    World world(nics.transport_case());
    Memory word = make(world.target(), 64, {.polled = true, .atomic_home = AtomicHome::device});
    word.fill(std::byte{0});
    Memory old = make(world.initiator(), 64);
    const auto* remote = value_or_throw(world.initiator().import(1, word.region()->key()));
    const auto add = [&] {
      return run(world.initiator(), 1, {WorkRequest::fetch_add({remote, 8}, 1, {old.region(), 0}, nullptr)});
    };
    ASSERT_TRUE(add());
    nics.nic(0).fail_request({.nth = 1, .status = IBV_WC_RETRY_EXC_ERR, .landed = landed});
    const auto result = add();
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error().code, Errc::device_error);
    EXPECT_THAT(result.error().message, ::testing::HasSubstr("unknown"));
    ASSERT_TRUE(add());
    std::uint64_t before = 0;
    std::memcpy(&before, old.data(), sizeof before);
    EXPECT_EQ(before, landed ? 2U : 1U);
  }
}

TEST(VerbsFailureTest, AtomicsOfTheTargetsCpuAreExecutedOnceWhateverTheQueuePairsDo) {
  Nics nics({.verbs = {.send_queue = 16, .credits = 4}});
  World world(nics.transport_case());
  Memory word = make(world.target(), 64);
  word.fill(std::byte{0});
  Memory old = make(world.initiator(), 8 * 400);
  const auto* remote = value_or_throw(world.initiator().import(1, word.region()->key()));
  for (std::uint64_t nth = 10; nth < 400; nth += 61) {
    nics.nic(0).fail_request({.nth = nth, .status = IBV_WC_RETRY_EXC_ERR, .landed = nth % 2 == 0});
    nics.nic(1).fail_request({.nth = nth + 5, .status = IBV_WC_RETRY_EXC_ERR, .landed = nth % 2 == 1});
  }
  std::vector<WorkRequest> requests;
  for (std::uint64_t i = 0; i < 400; ++i) {
    requests.push_back(WorkRequest::fetch_add({remote, 8}, 1, {old.region(), 8 * i}, nullptr));
  }
  const auto result = run(world.initiator(), 1, requests, 40s);
  ASSERT_TRUE(result) << result.error().to_string();
  std::vector<bool> seen(400);
  for (std::size_t i = 0; i < 400; ++i) {
    std::uint64_t value = 0;
    std::memcpy(&value, old.data() + 8 * i, 8);
    ASSERT_LT(value, 400U);
    EXPECT_FALSE(seen[value]);
    seen[value] = true;
  }
}

TEST(VerbsFailureTest, ADeadDeviceEndsItsRequestsWithAnError) {
  Nics nics({.verbs = {.failure_detect = scaled(500ms)}});
  World world(nics.transport_case());
  ASSERT_TRUE(run(world.initiator(), 1, {WorkRequest::notify(kPort, 1, nullptr)}));
  nics.nic(0).break_device();
  const auto from = std::chrono::steady_clock::now();
  const auto result = run(world.initiator(), 1, {WorkRequest::notify(kPort, 2, nullptr)}, 60s);
  EXPECT_LT(std::chrono::steady_clock::now() - from, scaled(10s));
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code, Errc::peer_failed) << result.error().to_string();
}

TEST(VerbsFailureTest, ADeviceThatExecutesNothingEndsRequestsAtTheirDeadlineAndLosesNothing) {
  Nics nics({.verbs = {.failure_detect = scaled(30s)}});
  World world(nics.transport_case());
  Memory source = make(world.initiator(), 4096);
  Memory sink = make(world.target(), 4096);
  source.pattern(1);
  const auto* remote = value_or_throw(world.initiator().import(1, sink.region()->key()));
  const WorkRequest put = WorkRequest::put({source.region(), 0}, {remote, 0}, 4096, nullptr);
  ASSERT_TRUE(run(world.initiator(), 1, {put}));
  nics.nic(0).freeze();
  const auto late = run(world.initiator(), 1, {put}, 100ms);
  ASSERT_FALSE(late);
  EXPECT_EQ(late.error().code, Errc::timed_out);
  EXPECT_GT(source.region()->uses(), 0U) << "the NIC may still read it";
  nics.nic(0).thaw();
  EXPECT_TRUE(world.initiator().quiesce(1, scaled(10s)));
  EXPECT_EQ(source.region()->uses(), 0U);
  EXPECT_TRUE(run(world.initiator(), 1, {put}));
}

}  // namespace
}  // namespace dtr::testing
