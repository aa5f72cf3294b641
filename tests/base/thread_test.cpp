#include "dtr/base/thread.hpp"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <mutex>

#include <gtest/gtest.h>
#include <pthread.h>
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include "dtr/base/clock.hpp"
#include "dtr/base/fork_guard.hpp"
#include "dtr/base/log.hpp"
#include "support/test_support.hpp"

namespace dtr {
namespace {

using namespace std::chrono_literals;

int first_allowed_cpu() {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  ::sched_getaffinity(0, sizeof(allowed), &allowed);
  for (unsigned cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &allowed)) return static_cast<int>(cpu);
  }
  return -1;
}

std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Exception& e) {
    return e.what();
  }
  return "no exception";
}

TEST(ThreadTest, BlocksEverySignalThatCanBeBlocked) {
  sigset_t mask;
  sigemptyset(&mask);
  Thread([&](const std::stop_token&) { ::pthread_sigmask(SIG_BLOCK, nullptr, &mask); }).join();
  for (int signal = 1; signal < NSIG; ++signal) {
    if (signal == SIGKILL || signal == SIGSTOP || (signal > SIGSYS && signal < SIGRTMIN)) continue;
    EXPECT_EQ(sigismember(&mask, signal), 1) << signal;
  }
  sigset_t mine;
  ::pthread_sigmask(SIG_BLOCK, nullptr, &mine);
  EXPECT_EQ(sigismember(&mine, SIGUSR1), 0) << "the creator's own mask came back changed";
}

TEST(ThreadTest, HasItsNameCutToWhatTheKernelKeeps) {
  char name[32] = {};
  Thread([&](const std::stop_token&) { ::pthread_getname_np(::pthread_self(), name, sizeof(name)); },
         {.name = "dtr-progress-of-rank-7"})
      .join();
  EXPECT_STREQ(name, "dtr-progress-of");
}

TEST(ThreadTest, RunsOnTheCpusAskedForOnly) {
  const int cpu = first_allowed_cpu();
  ASSERT_GE(cpu, 0);
  int count = 0;
  bool on_it = false;
  Thread(
      [&](const std::stop_token&) {
        cpu_set_t set;
        CPU_ZERO(&set);
        ::sched_getaffinity(0, sizeof(set), &set);
        count = CPU_COUNT(&set);
        on_it = CPU_ISSET(static_cast<unsigned>(cpu), &set);
      },
      {.cpus = {cpu}})
      .join();
  EXPECT_EQ(count, 1);
  EXPECT_TRUE(on_it);
}

TEST(ThreadTest, ACpuThatIsNotThereIsAnErrorNamingIt) {
  EXPECT_EQ(message_of([] { Thread([](const std::stop_token&) {}, {.name = "t", .cpus = {CPU_SETSIZE - 1}}); }),
            "start thread t: invalid_argument: this process may not run on CPU 1023");
  EXPECT_EQ(message_of([] { Thread([](const std::stop_token&) {}, {.name = "t", .cpus = {CPU_SETSIZE}}); }),
            "start thread t: invalid_argument: no such CPU: 1024");
}

TEST(ThreadTest, AnEmptyBodyIsAnError) {
  EXPECT_EQ(message_of([] { Thread(Thread::Body{}); }), "start thread dtr: invalid_argument: no body");
}

TEST(ThreadTest, DestructorRequestsStopAndJoins) {
  std::atomic<bool> ended{false};
  {
    const Thread thread([&](const std::stop_token& stop) {
      std::mutex mutex;
      std::condition_variable_any wake;
      std::unique_lock lock(mutex);
      wake.wait_for(lock, stop, testing::scaled(20s), [] { return false; });
      ended = stop.stop_requested();
    });
  }
  EXPECT_TRUE(ended);
}

TEST(ThreadTest, AnEscapingExceptionIsToldOnceAndGoesNoFurther) {
  set_log_level(LogLevel::off);
  std::vector<std::string> told;
  const auto tell = [&](const Error& error) { told.push_back(error.to_string()); };
  Thread([](const std::stop_token&) { throw std::runtime_error("boom"); }, {.name = "a", .on_failure = tell}).join();
  Thread([](const std::stop_token&) { throw 7; }, {.name = "b", .on_failure = tell}).join();
  Thread([](const std::stop_token&) { throw 7; }, {.on_failure = [](const Error&) { throw 8; }}).join();
  set_log_level(LogLevel::warn);
  EXPECT_EQ(told, (std::vector<std::string>{"thread a: internal: boom",
                                            "thread b: internal: an exception that is no std::exception"}));
}

TEST(ThreadTest, MoveAssignmentEndsTheOldThreadFirst) {
  std::atomic<int> running{0};
  const auto body = [&](const std::stop_token& stop) {
    ++running;
    while (!stop.stop_requested()) ::usleep(200);
    --running;
  };
  Thread thread(body);
  thread = Thread();
  EXPECT_EQ(running, 0);
  EXPECT_FALSE(thread.joinable());
  thread = Thread(body);
  EXPECT_TRUE(thread.joinable());
}

TEST(ThreadTest, AnObjectDestroyedOnItsOwnThreadDoesNotDeadlock) {
  std::atomic<Thread*> handed_over{nullptr};
  std::atomic<bool> ended{false};
  auto* thread = new Thread([&](const std::stop_token&) {
    while (handed_over == nullptr) ::usleep(200);
    {
      const std::unique_ptr<Thread> mine(handed_over.load());
      EXPECT_TRUE(mine->is_current());
    }
    ended = true;
  });
  EXPECT_FALSE(thread->is_current());
  handed_over = thread;
  const Stopwatch watch;
  while (!ended && watch.elapsed_ns() < testing::scaled(10s) / 1ns) ::usleep(200);
  ASSERT_TRUE(ended);
}

TEST(ThreadTest, InAForkedChildTheDestructorDoesNothing) {
  auto thread = std::make_unique<Thread>([](const std::stop_token& stop) {
    while (!stop.stop_requested()) ::usleep(200);
  });
  const pid_t child = ::fork();
  if (child == 0) {
    ::alarm(120);  // a join would wait for ever
    thread.reset();
    ::_exit(0);
  }
  int status = -1;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
}

TEST(ForkGuardTest, KnowsTheChildAndTheChildsOwnObjects) {
  const ForkGuard guard;
  EXPECT_FALSE(guard.in_forked_child());
  EXPECT_TRUE(guard.check("put"));
  const pid_t child = ::fork();
  if (child == 0) {
    const ForkGuard fresh;
    const auto checked = guard.check("put");
    const bool good = guard.in_forked_child() && !fresh.in_forked_child() && !checked &&
                      checked.error().to_string() ==
                          "put: forked: called in a child of fork; use exec there, or make new objects after it";
    ::_exit(good ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  EXPECT_FALSE(guard.in_forked_child());
}

TEST(CpuListTest, NumbersAndRangesInOrder) {
  EXPECT_EQ(parse_cpu_list("0-3,8").value(), (std::vector<int>{0, 1, 2, 3, 8}));
  EXPECT_EQ(parse_cpu_list("5").value(), std::vector<int>{5});
  EXPECT_TRUE(parse_cpu_list("").value().empty());
}

TEST(CpuListTest, NonsenseIsAnErrorNamingThePart) {
  const auto words = [](std::string_view text) { return parse_cpu_list(text).error().message; };
  EXPECT_EQ(words("0,x"), "'x' in CPU list '0,x' is no CPU number from 0 to 1023");
  EXPECT_EQ(words("1,,2"), "'' in CPU list '1,,2' is no CPU number from 0 to 1023");
  EXPECT_EQ(words("1024"), "'1024' in CPU list '1024' is no CPU number from 0 to 1023");
  EXPECT_EQ(words("2-"), "'' in CPU list '2-' is no CPU number from 0 to 1023");
  EXPECT_EQ(words("-2"), "'' in CPU list '-2' is no CPU number from 0 to 1023");
  EXPECT_EQ(words("3-1"), "'3-1' in CPU list '3-1' runs backwards");
  EXPECT_EQ(words("3,"), "CPU list '3,' ends in a comma");
}

}  // namespace
}  // namespace dtr
