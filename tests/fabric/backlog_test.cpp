#include <algorithm>
#include <array>
#include <atomic>
#include <thread>

#include <gtest/gtest.h>

#include "dtr/fabric/fabric.hpp"
#include "support/test_support.hpp"

namespace dtr::fabric {
namespace {

using namespace std::chrono_literals;
using testing::scaled;

/// Has no room at every other look, and nothing ever rings.
class FullAtFirst final : public Channel {
 public:
  PostResult post(std::span<const WorkRequest> requests, Deadline) noexcept override {
    if (++looks_ % 2 == 1) return {.accepted = 0, .finished = 0, .status = {.code = Errc::again}};
    const auto count = static_cast<std::uint32_t>(requests.size());
    return {.accepted = count, .finished = count, .status = {}};
  }
  Result<const RemoteRegion*> import(const RemoteKey&) override { return fail(Errc::unsupported, "no memory"); }
  std::uint32_t cancel(Completion&) noexcept override { return 0; }
  bool quiesced() const noexcept override { return true; }
  void reset() noexcept override {}
  void close() noexcept override { state_ = ChannelState::closed; }
  void abort(Errc) noexcept override { state_ = ChannelState::failed; }
  ChannelState state() const noexcept override { return state_; }
  std::string path() const override { return "full at first"; }
  std::string explain(const Status&) const override { return {}; }

 private:
  std::atomic<std::uint64_t> looks_{0};
  std::atomic<ChannelState> state_{ChannelState::open};
};

class FullAtFirstTransport final : public Transport {
 public:
  explicit FullAtFirstTransport(std::atomic<std::uint64_t>& sleeps) : sleeps_(sleeps) {}
  std::string_view name() const noexcept override { return "full"; }
  std::string domain() const override { return "everywhere"; }
  bool moves(MemoryKind) const noexcept override { return true; }
  std::size_t max_message() const noexcept override { return 4096; }
  std::vector<std::byte> address() const override { return {}; }
  Result<void> register_region(Region&) override { return {}; }
  bool drained(const Region&) noexcept override { return true; }
  void deregister_region(Region&) noexcept override {}
  Result<std::unique_ptr<Channel>> connect(PeerId, std::span<const std::byte>, Deadline) override {
    return std::make_unique<FullAtFirst>();
  }
  void leave() noexcept override {}
  void fence(PeerId) noexcept override {}
  int progress(int) noexcept override { return 0; }
  int wait_descriptor() const noexcept override { return -1; }
  bool prepare_sleep() noexcept override {
    ++sleeps_;
    return true;
  }
  Deadline::Clock::time_point next_deadline() const noexcept override { return Deadline::Clock::time_point::max(); }

 private:
  std::atomic<std::uint64_t>& sleeps_;
};

/// With or without somebody who waits for something else, and sleeps in place of the thread.
class BacklogTest : public ::testing::TestWithParam<bool> {};

TEST_P(BacklogTest, WhatFindsNoRoomWakesWhoeverSleeps) {
  std::atomic<std::uint64_t> sleeps{0};
  Completion done;  // outlives the fabric, should a round fail
  FabricOptions options;
  options.identity = {.self = 0, .world = 2};
  options.transports.push_back({.name = "full", .make = [&](const TransportContext&) {
                                  return Result<std::unique_ptr<Transport>>(
                                      std::make_unique<FullAtFirstTransport>(sleeps));
                                }});
  const auto fabric = value_or_throw(Fabric::create(std::move(options)));
  ASSERT_TRUE(fabric->start(std::vector(2, fabric->address()), {}));
  std::atomic<bool> over{false};
  std::thread waiter([&] {
    if (GetParam()) static_cast<void>(fabric->progress().wait([&]() noexcept { return over.load(); }, scaled(120s)));
  });
  const Deadline patience(scaled(60s));
  // Asleep one would look after half a second only. A busy machine may delay some rounds, not most of them.
  int at_once = 0;
  std::uint64_t slept = 0;
  for (int round = 0; round < 10; ++round) {
    while (sleeps == slept && !patience.passed()) std::this_thread::sleep_for(1ms);
    std::this_thread::sleep_for(10ms);  // from the look before the sleep to the sleep
    slept = sleeps;
    const auto start = Deadline::Clock::now();
    fabric->submit(1, std::array{WorkRequest::flush(&done)}, scaled(60s));
    while (!done.done() && !patience.passed()) std::this_thread::sleep_for(100us);
    EXPECT_TRUE(done.done());
    at_once += Deadline::Clock::now() - start < 200ms ? 1 : 0;
  }
  EXPECT_GE(at_once, 5);
  over = true;
  fabric->progress().announce();
  waiter.join();
  EXPECT_TRUE(fabric->stop(scaled(5s)));
}

INSTANTIATE_TEST_SUITE_P(, BacklogTest, ::testing::Bool());

}  // namespace
}  // namespace dtr::fabric
