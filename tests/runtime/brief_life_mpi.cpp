// Runtimes that end as soon as they are made: their connections are still being set up.
#include <chrono>

#include <gtest/gtest.h>

#include "dtr/runtime/runtime.hpp"
#include "support/test_support.hpp"

namespace dtr {
namespace {

using namespace std::chrono_literals;
using testing::scaled;

TEST(BriefLifeTest, RuntimesThatEndAtOnceEndWellOnEveryRank) {
  auto mpi = world_bootstrap();  // or the first Runtime's end would be MPI's
  ASSERT_TRUE(mpi) << mpi.error().to_string();
  for (int round = 0; round < 10; ++round) {
    // A connection that nobody answers any more must not count as ended before finalize looks at it.
    auto rt = Runtime::init({.config = {.overrides = {{"timeout.connect_ms", "600s"}}}});
    ASSERT_TRUE(rt) << rt.error().to_string();
    const auto ended = (*rt)->finalize(scaled(20s));
    // Nobody's Runtime goes before all have ended: one that is gone refuses what one that idles leaves waiting.
    EXPECT_TRUE((*mpi)->barrier(scaled(60s)));
    ASSERT_TRUE(ended) << "round " << round << ": " << ended.error().to_string();
  }
  EXPECT_TRUE((*mpi)->finalize(true, scaled(20s)));
}

}  // namespace
}  // namespace dtr
