#include "dtr/runtime/runtime.hpp"

#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "dtr/base/file.hpp"
#include "dtr/bootstrap/local.hpp"
#include "support/test_support.hpp"

namespace dtr {
namespace {

using namespace std::chrono_literals;
using ::testing::HasSubstr;

RuntimeOptions alone() {
  RuntimeOptions options;
  options.bootstrap = std::move(local_bootstraps(1).front());
  return options;
}

TEST(RuntimeTest, OneRankIsTheOnlyWorker) {
  Runtime rt(alone());
  EXPECT_EQ(rt.rank(), 0);
  EXPECT_EQ(rt.size(), 1);
  EXPECT_TRUE(rt.is_worker());
  EXPECT_FALSE(rt.is_server());
  EXPECT_TRUE(rt.barrier());
  EXPECT_TRUE(rt.finalize());
  EXPECT_TRUE(rt.finalize()) << "a second finalize does nothing";
}

TEST(RuntimeTest, AllgatherOfOneReturnsTheContribution) {
  Runtime rt(alone());
  const Bytes mine(100000, std::byte{5});
  const auto all = rt.allgather("t", mine, testing::scaled(5s));
  ASSERT_TRUE(all) << all.error().to_string();
  ASSERT_EQ(all->size(), 1U);
  EXPECT_EQ(all->front(), mine);
}

TEST(RuntimeTest, WithoutAWorkerThereIsNoRuntime) {
  RuntimeOptions options = alone();
  options.servers = 1;
  const auto made = Runtime::init(std::move(options));
  ASSERT_FALSE(made);
  EXPECT_EQ(made.error().code, Errc::invalid_argument);
  EXPECT_THAT(made.error().message, HasSubstr("leave no worker"));
}

TEST(RuntimeTest, ColocatedWithServersIsAnError) {
  RuntimeOptions options = alone();
  options.servers = 1;
  options.colocated = true;
  EXPECT_EQ(Runtime::init(std::move(options)).error().code, Errc::invalid_argument);
}

TEST(RuntimeTest, TransfersHaveADeadlineThatGrowsWithTheirSizeUntilOneIsSet) {
  const auto left = [](const Runtime& rt, std::uint64_t bytes) {
    const auto now = Deadline::Clock::now();  // before: the deadline counts from a moment that is later
    return std::chrono::duration<double>(rt.transfer_deadline(bytes).at() - now).count();
  };
  const double late = std::chrono::duration<double>(testing::scaled(10s)).count();
  {
    Runtime rt(alone());
    EXPECT_GE(left(rt, 0), 30);
    EXPECT_LT(left(rt, 0), 30 + late);
    EXPECT_GE(left(rt, 100'000'000'000), 130);
    EXPECT_LT(left(rt, 100'000'000'000), 130 + late);
  }
  RuntimeOptions options = alone();
  options.config.overrides = {{"transfer.timeout_s", "500"}};
  Runtime rt(std::move(options));
  EXPECT_GE(left(rt, 100'000'000'000), 500) << "fixed once it is set";
  EXPECT_LT(left(rt, 100'000'000'000), 500 + late);
}

TEST(RuntimeTest, MetricsHaveWhatTheFabricDid) {
  const testing::TemporaryFolder folder;
  const std::string file = (folder / "metrics.prom").string();
  {
    RuntimeOptions options = alone();
    options.config.overrides = {{"metrics.file", file}};
    Runtime rt(std::move(options));
    const Buffer buffer = rt.allocate(4096).value();
    const auto* mine = rt.fabric().import(0, buffer.region()->key()).value();
    const auto put = [&](std::uint64_t offset) {
      fabric::Completion done;
      const auto request = fabric::WorkRequest::put({buffer.region(), buffer.offset()}, {mine, offset}, 64, &done);
      rt.fabric().submit(0, std::span(&request, 1), testing::scaled(5s));
      return rt.fabric().wait(done, 0, "put", testing::scaled(5s)).has_value();
    };
    EXPECT_TRUE(put(buffer.offset() + 64));
    EXPECT_TRUE(put(buffer.offset() + 128));
    EXPECT_FALSE(put(~std::uint64_t{0}));
    EXPECT_THAT(rt.metrics().text(),
                HasSubstr("dtr_fabric_operations_total{rank=\"0\",transport=\"loopback\",operation=\"put\"} 2\n"));
  }
  const std::string text = read_file((folder / "metrics.0.prom").string()).value();
  EXPECT_THAT(text, HasSubstr("dtr_fabric_bytes_total{rank=\"0\",transport=\"loopback\",operation=\"put\"} 128\n"));
  EXPECT_THAT(text,
              HasSubstr("dtr_fabric_failures_total{rank=\"0\",transport=\"loopback\",code=\"out_of_range\"} 1\n"));
}

TEST(RuntimeTest, ConfigErrorsComeThrough) {
  RuntimeOptions options = alone();
  options.config.overrides = {{"progress.spin", "1"}};
  const auto made = Runtime::init(std::move(options));
  ASSERT_FALSE(made);
  EXPECT_EQ(made.error().code, Errc::config_error);
  EXPECT_THAT(made.error().message, HasSubstr("progress.spin_us"));
}

RuntimeOptions alone_with_finalize_ms(const std::string& bound) {
  RuntimeOptions options = alone();
  options.config.overrides = {{"timeout.finalize_ms", bound}};
  return options;
}

void wait_in_vain(Runtime& rt, std::chrono::nanoseconds most) {
  const EndWait in_vain(rt, most);
  std::this_thread::sleep_until(in_vain.deadline().at());
}

TEST(RuntimeTest, WaitsOfTheEndThatAreInVainShareOneBudget) {
  Runtime rt(alone_with_finalize_ms("3600000"));
  EXPECT_GT(rt.end_deadline().left(), 59min);
  {
    const EndWait answered(rt, 30min);
    EXPECT_LE(answered.deadline().left(), 30min);
    const EndWait longer(rt, 24h);
    EXPECT_LE(longer.deadline().left(), 45min) << "a quarter is the Runtime's own";
  }
  EXPECT_GT(rt.end_deadline().left(), 59min) << "it did not come to its deadline";
  wait_in_vain(rt, 50ms);
  EXPECT_LE(rt.end_deadline().left(), 60min - 50ms);
  EXPECT_TRUE(rt.finalize());
}

TEST(RuntimeTest, WaitsInVainSideBySideAllCount) {
  Runtime rt(alone_with_finalize_ms("3600000"));
  {
    std::vector<std::jthread> ends;
    for (int i = 0; i < 8; ++i) ends.emplace_back([&] { wait_in_vain(rt, 50ms); });
  }
  EXPECT_LE(rt.end_deadline().left(), 60min - 8 * 50ms);
  EXPECT_TRUE(rt.finalize());
}

TEST(RuntimeTest, WhereTheBudgetOfTheEndIsSpentNobodyWaits) {
  Runtime rt(alone_with_finalize_ms("3000"));
  wait_in_vain(rt, 1h);
  const EndWait next(rt, 1h);
  EXPECT_TRUE(next.deadline().passed());
}

TEST(RuntimeTest, WhatWasWaitedInVainLongBeforeTheEndIsForgotten) {
  Runtime rt(alone_with_finalize_ms("100"));
  wait_in_vain(rt, 1h);
  std::this_thread::sleep_for(100ms);
  const auto now = Deadline::Clock::now();
  EXPECT_GE(rt.end_deadline().at() - now, 100ms);
}

TEST(RuntimeTest, BuffersComeFromAPoolThatMergesAndGrows) {
  RuntimeOptions options = alone();
  options.config.overrides = {{"memory.pool_bytes", "1MiB"}, {"memory.pool_max_bytes", "4MiB"}};
  Runtime rt(std::move(options));
  auto small = rt.allocate(100);
  ASSERT_TRUE(small);
  EXPECT_EQ(small->size(), 100U);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(small->data()) % 4096, 0U);
  EXPECT_TRUE(rt.allocate(2 << 20)) << "the pool grows";
  EXPECT_EQ(rt.allocate(0).error().code, Errc::invalid_argument);
  const auto too_much = rt.allocate(3 << 20);
  ASSERT_FALSE(too_much);
  EXPECT_EQ(too_much.error().code, Errc::resource_exhausted);
  EXPECT_THAT(too_much.error().message, HasSubstr("memory.pool_max_bytes"));
  small->reset();
  std::vector<Buffer> all;
  for (int i = 0; i < 256; ++i) all.push_back(value_or_throw(rt.allocate(4096)));
}

TEST(RuntimeTest, BuffersMayOutliveTheRuntime) {
  Buffer buffer;
  {
    Runtime rt(alone());
    buffer = value_or_throw(rt.allocate(100));
  }
  buffer.reset();
}

TEST(RuntimeTest, BarrierOfARoleThatThisRankLacksIsAnError) {
  Runtime rt(alone());
  EXPECT_EQ(rt.barrier({.servers = false, .workers = false}, 1s).error().code, Errc::invalid_argument);
  EXPECT_TRUE(rt.finalize());
  EXPECT_EQ(rt.barrier({}, 1s).error().code, Errc::closed);
}

TEST(RuntimeTest, ServicePortsAreDisjoint) {
  Runtime rt(alone());
  EXPECT_EQ(value_or_throw(rt.service_port("pushpull worker", 1)),
            value_or_throw(rt.service_port("pushpull worker", 0)) + 1);
  EXPECT_EQ(rt.service_port("pushpull worker", 64).error().code, Errc::out_of_range);
  EXPECT_EQ(rt.service_port("no such", 0).error().code, Errc::not_found);
}

TEST(RuntimeTest, RuntimesDoNotLeakDescriptors) {
  { Runtime warm_up(alone()); }
  const std::size_t before = testing::open_descriptors();
  for (int i = 0; i < 3; ++i) Runtime rt(alone());
  EXPECT_EQ(testing::open_descriptors(), before);
}

}  // namespace
}  // namespace dtr
