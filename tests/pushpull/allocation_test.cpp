// A round in the steady state allocates nothing, at no rank and on no thread.
#include <array>
#include <atomic>
#include <barrier>
#include <cstdlib>
#include <new>
#include <thread>

#include "pushpull/job.hpp"

namespace {
std::atomic<bool> counting{false};
std::atomic<std::size_t> allocations{0};

void count() noexcept {
  if (counting.load(std::memory_order_relaxed)) allocations.fetch_add(1, std::memory_order_relaxed);
}
}  // namespace

// Not inlined: g++ warns of mismatched functions where it sees into one of a pair only.
[[gnu::noinline]] void* operator new(std::size_t size) {
  count();
  if (void* memory = std::malloc(size > 0 ? size : 1)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  count();
  return std::malloc(size > 0 ? size : 1);
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace dtr {
namespace {

using namespace testing;

class AllocationTest : public ::testing::TestWithParam<Job> {};

INSTANTIATE_TEST_SUITE_P(Ways, AllocationTest,
                         ::testing::Values(Job{.transport = "shm", .workers = 2, .servers = 2},
                                           Job{.transport = "tcp", .workers = 2, .servers = 2},
                                           Job{.transport = "shm", .workers = 2, .colocated = true}),
                         name_of);

TEST(AllocationCountTest, TheCountWorks) {
  counting = true;
  static_cast<void>(std::make_unique<std::string>(100, 'x'));
  counting = false;
  EXPECT_GE(allocations.exchange(0), 2U);
}

TEST_P(AllocationTest, ARoundInTheSteadyStateAllocatesNothing) {
  constexpr int kWarmUp = 400;
  constexpr int kCounted = 200;
  Job job = GetParam();
  job.config.emplace_back("pushpull.slots", "6");
  std::barrier<> meeting(job.workers);
  std::atomic<bool> quiet{false};
  std::atomic<std::size_t> found{0};
  run_reduced(job,
              [&](Runtime& rt, Worker& worker) {
                const bool first = rt.worker_index() == 0;
                // Within a message, beside it, in place, only one way, and cut into parts over all servers.
                const std::vector<float> small(100, 1.0F);
                std::vector<float> small_sum(100);
                const std::vector<float> large(40000, 2.0F);
                std::vector<float> large_sum(40000);
                std::vector<float> in_place(5000, 1.0F);
#if defined(__SANITIZE_THREAD__)
                // It sees the read by a send only after the call, and no order between the sockets of one process: the
                // sum that comes back into the tensor looks like a race to it.
                std::vector<float> in_place_sum(5000);
#else
                std::vector<float>& in_place_sum = in_place;
#endif
                const std::array<PushPull, 4> tensors{{{.key = 1, .push = small, .pull = small_sum},
                                                       {.key = 2, .push = large, .pull = large_sum},
                                                       {.key = 3, .push = in_place, .pull = in_place_sum},
                                                       {.key = 4, .push = large}}};
                const std::array<PushPull, 4> one_way{{{.key = 1, .push = small},
                                                       {.key = 2, .push = large},
                                                       {.key = 3, .push = in_place},
                                                       {.key = 4, .push = large}}};
                const auto rounds = [&](int count) {
                  for (int i = 0; i < count; ++i) {
                    auto round = worker.push_pull(tensors);
                    DTR_ASSERT_OK(round);
                    DTR_ASSERT_OK(worker.wait(*round, scaled(20s)));
                  }
                };
                rounds(kWarmUp);
                // One worker far ahead of the other, in turn: more is open than ever will be again.
                for (int turn = 0; turn < 8; ++turn) {
                  const bool ahead = first == (turn % 2 == 0);
                  if (!ahead) meeting.arrive_and_wait();
                  std::vector<RoundHandle> open;
                  for (int i = 0; i < 4; ++i) {
                    auto round = worker.push_pull(one_way);
                    DTR_ASSERT_OK(round);
                    open.push_back(*round);
                  }
                  if (ahead) {
                    std::this_thread::sleep_for(10ms);
                    meeting.arrive_and_wait();
                  }
                  for (const RoundHandle round : open) DTR_ASSERT_OK(worker.wait(round, scaled(20s)));
                }
                rounds(kWarmUp);
                // A new peak of what is open at once may still ask for memory, so one quiet window of several is the
                // proof; what is allocated each round, or each hundredth, is in all of them.
                for (int window = 0; window < 5 && !quiet; ++window) {
                  meeting.arrive_and_wait();
                  if (first) counting = true;
                  meeting.arrive_and_wait();
                  rounds(kCounted);
                  meeting.arrive_and_wait();
                  if (first) {
                    counting = false;
                    found = allocations.exchange(0);
                    quiet = found == 0;
                  }
                  meeting.arrive_and_wait();
                }
                EXPECT_EQ(large_sum[7], 4.0F);
              },
              {.split_bytes = 64 << 10, .rounds = 64});
  EXPECT_TRUE(quiet) << found << " allocations in " << kCounted << " rounds";
}

}  // namespace
}  // namespace dtr
