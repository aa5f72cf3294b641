// A job in one process: each rank is a thread with a Runtime of its own, over the transport under test.
#pragma once

#include <chrono>
#include <functional>
#include <ostream>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "dtr/pushpull/reducer.hpp"
#include "dtr/pushpull/server.hpp"
#include "dtr/pushpull/worker.hpp"
#include "support/test_support.hpp"

namespace dtr::testing {

using namespace std::chrono_literals;

struct Job {
  std::string transport = "shm";  ///< between ranks
  int workers = 2;
  int servers = 1;
  bool colocated = false;  ///< `workers` ranks are servers too
  ConfigPairs config{};

  [[nodiscard]] int ranks() const { return colocated ? workers : workers + servers; }
};
std::ostream& operator<<(std::ostream& out, const Job& job);

/// Runs `rank` on every rank; what it throws is a test failure. Runtimes are finalized before it returns.
void run(const Job& job, const std::function<void(Runtime&)>& rank);

/// Workers run `worker`, every server a Reducer that has to end well.
void run_reduced(const Job& job, const std::function<void(Runtime&, Worker&)>& worker, WorkerOptions options = {});

/// The workers wait for each other.
void meet(Runtime& rt, const char* where);

/// All the ways that a round may take. Each test suite with it shows that the contract holds on every one.
[[nodiscard]] std::vector<Job> all_ways();
[[nodiscard]] std::string name_of(const ::testing::TestParamInfo<Job>& info);

/// Numbers whose sum in f32 depends on the order, different for each worker and seed.
[[nodiscard]] std::vector<float> numbers(std::size_t count, int worker, std::uint64_t seed = 0);

/// ((w0 + w1) + w2) + ... of numbers(), the plain way.
[[nodiscard]] std::vector<float> sum_of_numbers(std::size_t count, int workers, std::uint64_t seed = 0);

/// The same bits? Says where not.
[[nodiscard]] ::testing::AssertionResult same_bits(const std::vector<float>& got, const std::vector<float>& wanted);

}  // namespace dtr::testing

// The value of a Result, or a test failure with its Error.
#define DTR_ASSERT_OK(expression)                                      \
  do {                                                                 \
    const auto& outcome_ = (expression);                               \
    ASSERT_TRUE(outcome_.has_value()) << outcome_.error().to_string(); \
  } while (false)
#define DTR_EXPECT_OK(expression)                                      \
  do {                                                                 \
    const auto& outcome_ = (expression);                               \
    EXPECT_TRUE(outcome_.has_value()) << outcome_.error().to_string(); \
  } while (false)
