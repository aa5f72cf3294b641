// What is on the hot path of every operation allocates nothing, cannot throw and takes no lock.
#include <cstdlib>
#include <new>

#include <gtest/gtest.h>

#include "dtr/base/fork_guard.hpp"
#include "dtr/base/log.hpp"
#include "dtr/base/metrics.hpp"
#include "dtr/base/trace.hpp"
#include "support/test_support.hpp"

namespace {
thread_local std::size_t allocations = 0;
}

// Not inlined: g++ warns of mismatched functions where it sees into one of a pair only.
[[gnu::noinline]] void* operator new(std::size_t size) {
  ++allocations;
  if (void* memory = std::malloc(size > 0 ? size : 1)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  ++allocations;
  return std::malloc(size > 0 ? size : 1);
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace dtr {
namespace {

template <class Work>
std::size_t allocations_of(const Work& work) {
  const std::size_t before = allocations;
  work();
  return allocations - before;
}

TEST(HotPathTest, TheCountOfAllocationsWorks) {
  EXPECT_EQ(allocations_of([] { static_cast<void>(std::make_unique<std::string>(100, 'x')); }), 2U);
}

TEST(HotPathTest, MetricsAllocateAndThrowNothing) {
  MetricsRegistry registry;
  auto& counter = registry.counter("c", "C.");
  auto& gauge = registry.gauge("g", "G.");
  auto& histogram = registry.histogram("h", "H.");
  static_assert(noexcept(counter.add())&& noexcept(gauge.set(1))&& noexcept(histogram.record(1)));
  static_assert(std::atomic<std::uint64_t>::is_always_lock_free && std::atomic<double>::is_always_lock_free);
  EXPECT_EQ(allocations_of([&] {
              for (std::uint64_t i = 0; i < 10'000; ++i) {
                counter.add();
                gauge.add(1);
                histogram.record(i * i * i);
              }
            }),
            0U);
}

TEST(HotPathTest, ATraceAllocatesOncePer512EventsAndNotAtAllWithoutATracer) {
  const testing::TemporaryFolder folder;
  Tracer tracer({.path = folder / "t", .flush_interval = std::chrono::milliseconds(0)});
  const auto record = [](Tracer* to) {
    return [to] {
      for (int i = 0; i < 5120; ++i) {
        TraceSpan span(to, "put", "test");
        span.argument("i", i);
      }
    };
  };
  record (&tracer)();  // the thread's first buffer
  EXPECT_EQ(allocations_of(record(&tracer)), 10U);
  EXPECT_EQ(allocations_of(record(nullptr)), 0U);
}

TEST(HotPathTest, ALogLineBelowTheLevelAllocatesNothing) {
  EXPECT_EQ(allocations_of([] {
              for (int i = 0; i < 100; ++i) DTR_LOG_DEBUG("a text that would not fit into a small string: ", i);
            }),
            0U);
}

TEST(HotPathTest, AForkGuardAllocatesNothing) {
  const ForkGuard guard;
  static_assert(noexcept(guard.in_forked_child()));
  EXPECT_EQ(allocations_of([&] { EXPECT_FALSE(guard.in_forked_child()); }), 0U);
}

}  // namespace
}  // namespace dtr
