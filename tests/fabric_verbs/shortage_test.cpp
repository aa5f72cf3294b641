// Credits and buffers: what runs short waits for what ends the shortage, and nothing is sent that nobody can take.
#include <array>

#include <gtest/gtest.h>

#include "dtr/fabric/verbs/message_pool.hpp"
#include "fabric_verbs/nics.hpp"
#include "fabric_verbs/traffic.hpp"

namespace dtr::testing {
namespace {

constexpr fabric::Port kPort = 42;

std::vector<WorkRequest> messages(const std::vector<std::uint32_t>& values) {
  std::vector<WorkRequest> made;
  for (const std::uint32_t& value : values) {
    made.push_back(WorkRequest::send(kPort, std::as_bytes(std::span(&value, 1)), nullptr));
  }
  return made;
}

std::vector<std::uint32_t> numbers(std::uint32_t count) {
  std::vector<std::uint32_t> values(count);
  for (std::uint32_t i = 0; i < count; ++i) values[i] = i;
  return values;
}

TEST(VerbsShortageTest, ReceiversAreAlwaysReadyWhateverEachRankKeeps) {
  Nics nics({.verbs = {.eager_world = 0, .credits = 4},
             .adjust = [](std::uint32_t rank, fabric::verbs::VerbsOptions& options) {
               if (rank == 1) options.credits = 48;
             }});
  World world(nics.transport_case());
  Tally first(3000);
  Tally second(3000);
  ASSERT_TRUE(world.rank(0).open_port(kPort, first));
  ASSERT_TRUE(world.rank(1).open_port(kPort, second));
  // Who has not been answered within some time connects anew: on a busy machine that is no loss.
  ASSERT_TRUE(run(world.rank(0), 1, {WorkRequest::flush(nullptr)}, 60s));
  ASSERT_TRUE(run(world.rank(1), 0, {WorkRequest::flush(nullptr)}, 60s));
  const std::array made{nics.nic(0).calls(Call::create_qp), nics.nic(1).calls(Call::create_qp)};
  const auto values = numbers(3000);
  std::thread other([&] { EXPECT_TRUE(run(world.rank(1), 0, messages(values), 60s)); });
  EXPECT_TRUE(run(world.rank(0), 1, messages(values), 60s));
  other.join();
  EXPECT_TRUE(first.wait_for(3000));
  EXPECT_TRUE(second.wait_for(3000));
  EXPECT_TRUE(first.each_once());
  EXPECT_TRUE(second.each_once());
  for (const std::uint32_t rank : {0U, 1U}) {
    EXPECT_EQ(nics.nic(rank).not_ready_answers(), 0U);
    EXPECT_EQ(nics.nic(rank).calls(Call::create_qp), made[rank]) << "a queue pair was lost";
  }
  world.rank(0).close_port(kPort);
  world.rank(1).close_port(kPort);
}

/// Takes its time over each message.
class SlowPort final : public fabric::PortHandler {
 public:
  void on_notify(fabric::PeerId, std::uint32_t) noexcept override { take(); }
  void on_message(fabric::PeerId, std::span<const std::byte>) noexcept override { take(); }
  void on_peer_down(fabric::PeerId, const Error&) noexcept override {}

 private:
  static void take() noexcept { std::this_thread::sleep_for(200us); }
};

TEST(VerbsShortageTest, AReceiverThatTakesItsTimeIsReadyAllTheSame) {
  Nics nics({.verbs = {.eager_world = 0, .credits = 64}});
  World world(nics.transport_case());
  SlowPort slow;
  ASSERT_TRUE(world.target().open_port(kPort, slow));
  const auto values = numbers(600);
  EXPECT_TRUE(run(world.initiator(), 1, messages(values), 60s));
  EXPECT_EQ(nics.nic(0).not_ready_answers(), 0U);
  world.target().close_port(kPort);
}

/// Looks at the data at the moment of their notification.
class Witness final : public fabric::PortHandler {
 public:
  explicit Witness(const Memory& memory) : memory_(memory) {}
  void on_notify(fabric::PeerId, std::uint32_t seed) noexcept override {
    wrong_ += memory_.mismatches(seed, 0, memory_.size());
    ++seen_;
  }
  void on_message(fabric::PeerId, std::span<const std::byte>) noexcept override {}
  void on_peer_down(fabric::PeerId, const Error&) noexcept override {}
  [[nodiscard]] std::size_t wrong() const { return wrong_; }
  [[nodiscard]] int seen() const { return seen_; }

 private:
  const Memory& memory_;
  std::atomic<std::size_t> wrong_{0};
  std::atomic<int> seen_{0};
};

TEST(VerbsShortageTest, ANotificationComesAfterItsDataOverTheSlowestRail) {
  Nics nics({.rails = 2, .verbs = {.slice_bytes = 16 << 10}});
  World world(nics.transport_case());
  Memory source(world.initiator(), 256 << 10, true);
  Memory sink(world.target(), 256 << 10, true);
  Witness witness(sink);
  ASSERT_TRUE(world.target().open_port(kPort, witness));
  const auto* remote = value_or_throw(world.initiator().import(1, sink.region()->key()));
  ASSERT_TRUE(run(world.initiator(), 1, {WorkRequest::flush(nullptr)}));
  nics.network().set_wire("rank0/soft1", "rank1/soft1", {.delay = std::chrono::milliseconds(5)});
  for (std::uint32_t seed = 0; seed < 5; ++seed) {
    source.pattern(seed);
    ASSERT_TRUE(run(world.initiator(), 1,
                    {WorkRequest::put_notify({source.region(), 0}, {remote, 0}, source.size(), kPort, seed, nullptr)}));
    const Deadline deadline(scaled(20s));
    while (witness.seen() <= static_cast<int>(seed) && !deadline.passed()) std::this_thread::sleep_for(1ms);
  }
  world.target().close_port(kPort);
  EXPECT_EQ(witness.seen(), 5);
  EXPECT_EQ(witness.wrong(), 0U);
}

TEST(VerbsShortageTest, TwoRanksThatFillTheirPoolsWithMessagesToEachOtherBothGetThemAll) {
  Nics nics({.verbs = {.credits = 4, .message_pool = 1}});
  World world(nics.transport_case());
  constexpr std::uint32_t kCount = 500;
  Tally first(kCount);
  Tally second(kCount);
  ASSERT_TRUE(world.rank(0).open_port(kPort, first));
  ASSERT_TRUE(world.rank(1).open_port(kPort, second));
  const auto values = numbers(kCount);
  std::thread other([&] { EXPECT_TRUE(run(world.rank(1), 0, messages(values), 60s)); });
  EXPECT_TRUE(run(world.rank(0), 1, messages(values), 60s));
  other.join();
  EXPECT_TRUE(first.wait_for(kCount));
  EXPECT_TRUE(second.wait_for(kCount));
  world.rank(0).close_port(kPort);
  world.rank(1).close_port(kPort);
}

TEST(VerbsShortageTest, APoolThatMayNotGrowAsksForNothingUntilABufferComesBack) {
  const std::vector<std::unique_ptr<fabric::verbs::Nic>> none;
  fabric::verbs::MessagePool pool(none, 64, 1);
  constexpr auto kNone = fabric::verbs::MessagePool::kNone;
  constexpr auto kNever = std::numeric_limits<std::int64_t>::max();
  EXPECT_EQ(pool.take(), kNone);
  EXPECT_TRUE(pool.may_grow());
  EXPECT_EQ(pool.relieve(1), kNever);
  std::vector<std::uint32_t> taken;
  for (std::uint32_t buffer = pool.take(); buffer != kNone; buffer = pool.take()) taken.push_back(buffer);
  EXPECT_EQ(taken.size(), 64U);
  EXPECT_FALSE(pool.may_grow()) << "looking again would be in vain";
  EXPECT_EQ(pool.relieve(2), kNever);
  EXPECT_TRUE(pool.give(taken.back())) << "somebody waits for it";
  EXPECT_FALSE(pool.give(taken.front())) << "and is told once";
}

TEST(VerbsShortageTest, APoolThatTheDeviceRefusesIsTriedAgainLater) {
  Nics nics({.verbs = {.eager_world = 0}});
  World world(nics.transport_case());
  Tally tally(200);
  ASSERT_TRUE(world.target().open_port(kPort, tally));
  const auto values = numbers(200);
  ASSERT_TRUE(run(world.initiator(), 1, {WorkRequest::notify(kPort, 0, nullptr)}));
  nics.nic(0).fail_call({.call = Call::reg_mr, .nth = 1, .error = ENOMEM, .times = 2});
  const auto result = run(world.initiator(), 1, messages(values), 30s);
  EXPECT_TRUE(result) << result.error().to_string();
  EXPECT_TRUE(tally.wait_for(201));
  world.target().close_port(kPort);
}

TEST(VerbsShortageTest, WhatWaitedForRoomGoesOutInChains) {
  Nics nics({.verbs = {.queue_depth = 64}});
  World world(nics.transport_case());
  constexpr std::uint64_t kPuts = 4096;
  Memory source(world.initiator(), 64 * kPuts, true);
  Memory sink(world.target(), 64 * kPuts, true);
  source.pattern(9);
  const auto* remote = value_or_throw(world.initiator().import(1, sink.region()->key()));
  std::vector<WorkRequest> batch;
  for (std::uint64_t i = 0; i < kPuts; ++i) {
    batch.push_back(WorkRequest::put({source.region(), 64 * i}, {remote, 64 * i}, 64, nullptr));
  }
  const auto& nic = nics.nic(0);
  const auto doorbells = nic.calls(Call::post_send);
  ASSERT_TRUE(run(world.initiator(), 1, batch, 60s));
  EXPECT_LT(nic.calls(Call::post_send) - doorbells, batch.size() / 4);
  EXPECT_EQ(sink.mismatches(9, 0, sink.size()), 0U);
}

}  // namespace
}  // namespace dtr::testing
