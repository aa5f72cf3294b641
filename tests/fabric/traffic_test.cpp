#include "dtr/fabric/traffic.hpp"

#include <thread>
#include <vector>

#include <gtest/gtest.h>

namespace dtr {
namespace {

using fabric::Opcode;
using fabric::TrafficMeter;
using fabric::WorkRequest;

std::uint64_t of(const std::array<std::uint64_t, fabric::kOpcodes>& numbers, Opcode opcode) {
  return numbers[static_cast<std::size_t>(opcode)];
}

std::uint64_t failures(const TrafficMeter& meter, Errc code) {
  return meter.totals().failures[static_cast<std::size_t>(-static_cast<int>(code))];
}

TEST(TrafficMeterTest, WhatThreadsCountedStaysWhenTheyEnd) {
  const auto meter = std::make_shared<TrafficMeter>();
  constexpr std::uint64_t kThreads = 6;
  constexpr std::uint64_t kEach = 10000;
  for (int wave = 1; wave <= 3; ++wave) {  // later threads take over the places of those that ended
    std::vector<std::thread> threads;
    for (std::uint64_t t = 0; t < kThreads; ++t) {
      threads.emplace_back([&] {
        for (std::uint64_t i = 0; i < kEach; ++i) meter->count(WorkRequest::put({}, {}, 8, nullptr));
        meter->count_failure(Errc::timed_out, 2);
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(of(meter->totals().operations, Opcode::put), kThreads * kEach * static_cast<std::uint64_t>(wave));
    EXPECT_EQ(of(meter->totals().bytes, Opcode::put), 8 * kThreads * kEach * static_cast<std::uint64_t>(wave));
    EXPECT_EQ(failures(*meter, Errc::timed_out), 2 * kThreads * static_cast<std::uint64_t>(wave));
  }
  EXPECT_EQ(of(meter->totals().operations, Opcode::get), 0U);
}

TEST(TrafficMeterTest, OneThreadMayCountForSeveralInTurnAndMetersMayGo) {
  for (int round = 0; round < 100; ++round) {
    const auto first = std::make_shared<TrafficMeter>();
    const auto second = std::make_shared<TrafficMeter>();
    const WorkRequest add = WorkRequest::fetch_add({}, 1, {}, nullptr);
    for (int i = 0; i < 5; ++i) {
      first->count(add);
      second->count(WorkRequest::flush(nullptr));
      second->count_failure(Errc::revoked);
    }
    EXPECT_EQ(of(first->totals().operations, Opcode::fetch_add), 5U);
    EXPECT_EQ(of(first->totals().bytes, Opcode::fetch_add), 40U);
    EXPECT_EQ(of(second->totals().operations, Opcode::flush), 5U);
    EXPECT_EQ(of(second->totals().operations, Opcode::fetch_add), 0U);
    EXPECT_EQ(failures(*second, Errc::revoked), 5U);
    first->retire();
    second->retire();
  }
}

TEST(TrafficMeterTest, ARetiredMeterIsForgottenByItsThreads) {
  std::weak_ptr<TrafficMeter> gone;
  {
    const auto meter = std::make_shared<TrafficMeter>();
    meter->count(WorkRequest::flush(nullptr));
    meter->retire();
    gone = meter;
  }
  const auto next = std::make_shared<TrafficMeter>();
  next->count(WorkRequest::flush(nullptr));  // this thread looks for a place, and lets go of the old one
  EXPECT_TRUE(gone.expired());
  next->retire();
}

}  // namespace
}  // namespace dtr
