// What a device does not have enough of: an Error that says which limit it is, never a hang. And what is not used up.
#include <gmock/gmock.h>

#include "fabric_verbs/nics.hpp"
#include "fabric_verbs/traffic.hpp"

namespace dtr::testing {
namespace {

using ::testing::HasSubstr;

constexpr fabric::Port kPort = 41;

/// The Error of the first transfer between two ranks whose devices have these limits.
Error first_error(software_nic::DeviceOptions device, fabric::verbs::VerbsOptions verbs = {}) {
  verbs.eager_world = 0;
  Nics nics({.verbs = verbs, .device = std::move(device)});
  World world(nics.transport_case());
  const auto result = run(world.initiator(), 1, {WorkRequest::notify(kPort, 1, nullptr)}, 20s);
  return result ? Error{.code = Errc::ok} : result.error();
}

TEST(VerbsLimitsTest, TooFewQueuePairsAreNamed) {
  const Error error = first_error({.max_qp = 0});
  EXPECT_EQ(error.code, Errc::resource_exhausted) << error.to_string();
  EXPECT_THAT(error.message, HasSubstr("max_qp 0"));
}

TEST(VerbsLimitsTest, TooSmallCompletionQueuesAreNamedWithTheSettingsThatHelp) {
  const Error error = first_error({.max_cqe = 64});
  EXPECT_EQ(error.code, Errc::resource_exhausted) << error.to_string();
  EXPECT_THAT(error.message, HasSubstr("max_cqe 64"));
  EXPECT_THAT(error.message, HasSubstr("verbs.send_queue"));
  EXPECT_EQ(first_error({.max_cqe = 64}, {.send_queue = 8, .credits = 4}).code, Errc::ok);
}

TEST(VerbsLimitsTest, TooSmallReceiveQueuesAreNamedWithTheSettingThatHelps) {
  const Error error = first_error({.max_srq_wr = 16});
  EXPECT_EQ(error.code, Errc::resource_exhausted) << error.to_string();
  EXPECT_THAT(error.message, HasSubstr("max_srq_wr 16"));
  EXPECT_THAT(error.message, HasSubstr("verbs.credits"));
}

TEST(VerbsLimitsTest, SmallSendQueuesAreUsedAsTheyAre) { EXPECT_EQ(first_error({.max_qp_wr = 20}).code, Errc::ok); }

TEST(VerbsLimitsTest, MemoryBeyondTheLimitsIsRefusedNamingThem) {
  for (const auto& [device, words] : {std::pair{software_nic::DeviceOptions{.max_locked_bytes = 64 << 20}, "ulimit -l"},
                                      std::pair{software_nic::DeviceOptions{.max_mr = 12}, "max_mr 12"},
                                      std::pair{software_nic::DeviceOptions{.max_mr_size = 4 << 20}, "max_mr_size"}}) {
    Nics nics({.device = device});
    World world(nics.transport_case());
    std::vector<Region*> regions;
    Result<Region*> region = nullptr;
    while ((region = world.initiator().allocate_segment(33 << 20)) && regions.size() < 20) regions.push_back(*region);
    ASSERT_FALSE(region);
    EXPECT_EQ(region.error().code, Errc::resource_exhausted) << region.error().to_string();
    EXPECT_THAT(region.error().message, HasSubstr(words));
    for (Region* each : regions) EXPECT_TRUE(world.initiator().unregister_memory(*each, scaled(5s)));
  }
}

TEST(VerbsLimitsTest, ACallThatFailsNowAndThenIsTriedAgain) {
  Nics nics({.verbs = {.eager_world = 0}});
  World world(nics.transport_case());
  nics.nic(0).fail_call({.call = Call::create_qp, .nth = 1, .error = ENOMEM, .times = 3});
  nics.nic(1).fail_call({.call = Call::modify_qp, .nth = 2, .error = EIO});
  const auto result = run(world.initiator(), 1, {WorkRequest::notify(kPort, 1, nullptr)}, 20s);
  EXPECT_TRUE(result) << result.error().to_string();
  nics.nic(0).fail_call({.call = Call::post_send, .nth = 1, .error = ENOMEM});
  const auto again = run(world.initiator(), 1, {WorkRequest::notify(kPort, 2, nullptr)}, 20s);
  EXPECT_TRUE(again) << again.error().to_string();
}

TEST(VerbsLimitsTest, QueuePairsAreMadeForPeersThatAreUsedAndNoOthers) {
  constexpr std::uint32_t kRanks = 64;
  Nics nics;
  World world(nics.transport_case(), {.ranks = kRanks, .progress_threads = true});
  for (std::uint32_t rank = 0; rank < kRanks; ++rank) EXPECT_EQ(nics.nic(rank).calls(Call::create_qp), 0U);
  for (const fabric::PeerId peer : {5U, 17U, 63U}) {
    const auto result = run(world.initiator(), peer, {WorkRequest::notify(kPort, 1, nullptr)}, 30s);
    ASSERT_TRUE(result) << result.error().to_string();
  }
  // Who has not been answered in time asks again with a new one, and drops the old.
  const auto kept = [&](std::uint32_t rank) {
    return nics.nic(rank).calls(Call::create_qp) - nics.nic(rank).calls(Call::destroy_qp);
  };
  const Deadline deadline(scaled(20s));
  while ((kept(0) != 3 || kept(5) != 1) && !deadline.passed()) std::this_thread::sleep_for(1ms);
  EXPECT_EQ(kept(0), 3U);
  EXPECT_EQ(kept(5), 1U);
  for (std::uint32_t rank = 1; rank < kRanks; ++rank) {
    if (rank == 5 || rank == 17 || rank == 63) continue;
    EXPECT_EQ(nics.nic(rank).calls(Call::create_qp), 0U) << rank;
  }
}

TEST(VerbsLimitsTest, ABatchIsOneDoorbellAndTheSteadyStateMakesNothing) {
  Nics nics;
  World world(nics.transport_case());
  Memory source(world.initiator(), 1 << 16, true);
  Memory sink(world.target(), 1 << 16, true);
  const auto* remote = value_or_throw(world.initiator().import(1, sink.region()->key()));
  std::vector<WorkRequest> batch;
  for (std::uint64_t i = 0; i < 200; ++i) {
    batch.push_back(WorkRequest::put({source.region(), 64 * i}, {remote, 64 * i}, 64, nullptr));
  }
  ASSERT_TRUE(run(world.initiator(), 1, batch));
  const auto& nic = nics.nic(0);
  const auto made = nic.calls(Call::reg_mr) + nic.calls(Call::create_qp) + nic.calls(Call::create_cq);
  const auto doorbells = nic.calls(Call::post_send);
  const auto requests = nic.posted_requests();
  constexpr std::uint64_t kBatches = 20;
  for (std::uint64_t i = 0; i < kBatches; ++i) ASSERT_TRUE(run(world.initiator(), 1, batch));
  EXPECT_EQ(nic.posted_requests() - requests, kBatches * batch.size());
  EXPECT_EQ(nic.calls(Call::post_send) - doorbells, kBatches);
  EXPECT_EQ(nic.calls(Call::reg_mr) + nic.calls(Call::create_qp) + nic.calls(Call::create_cq), made);
}

TEST(VerbsLimitsTest, NothingOfTheDeviceIsLeftBehind) {
  Nics nics({.rails = 2});
  {
    World world(nics.transport_case());
    Memory source(world.initiator(), 1 << 16, true);
    Memory sink(world.target(), 1 << 16, true);
    const auto* remote = value_or_throw(world.initiator().import(1, sink.region()->key()));
    ASSERT_TRUE(run(world.initiator(), 1, {WorkRequest::put({source.region(), 0}, {remote, 0}, 1 << 16, nullptr)}));
  }
  EXPECT_EQ(nics.nic(0).objects(), 0U);
  EXPECT_EQ(nics.nic(1).objects(), 0U);
}

TEST(VerbsLimitsTest, AMachineWithoutAnActivePortSaysSo) {
  Nics nics({.device = {.ports = {{.state = IBV_PORT_DOWN}}}});
  EXPECT_THROW(World world(nics.transport_case()), Exception);
  EXPECT_THAT(nics.refusal(0), HasSubstr("soft0:1 is not active"));
}

}  // namespace
}  // namespace dtr::testing
