#include "dtr/fabric/progress.hpp"

#include <algorithm>
#include <atomic>
#include <random>
#include <thread>

#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <unistd.h>

#include "support/test_support.hpp"

namespace dtr::fabric {
namespace {

using namespace std::chrono_literals;
using testing::scaled;

/// A source that hands out what was put into it, rings only while armed, and notices if two threads poll it at once.
class Mailbox final : public ProgressSource {
 public:
  int progress(int) noexcept override {
    if (inside_.fetch_add(1) != 0) overlapped = true;
    const std::uint32_t taken = waiting_.exchange(0);
    std::uint64_t count = 0;
    if (taken > 0) [[maybe_unused]]
      const auto drained = ::read(bell_.get(), &count, sizeof count);
    delivered += taken;
    inside_.fetch_sub(1);
    return static_cast<int>(taken);
  }
  int wait_descriptor() const noexcept override { return bell_.get(); }
  bool prepare_sleep() noexcept override {
    armed_.store(true);
    return waiting_.load() == 0;
  }
  Deadline::Clock::time_point next_deadline() const noexcept override { return Deadline::Clock::time_point::max(); }

  void put() {
    waiting_.fetch_add(1);
    if (!armed_.exchange(false)) return;
    ++rings;
    const std::uint64_t one = 1;
    [[maybe_unused]] const auto rung = ::write(bell_.get(), &one, sizeof one);
  }

  std::atomic<std::uint64_t> delivered{0};
  std::atomic<std::uint64_t> rings{0};
  std::atomic<bool> overlapped{false};

 private:
  UniqueFd bell_{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
  std::atomic<std::uint32_t> waiting_{0};
  std::atomic<bool> armed_{false};
  std::atomic<int> inside_{0};
};

/// Waits for what somebody else causes. False: it was caused and did not come within a time far below the longest sleep
/// of the engine, so that a lost wake-up shows. How long it takes to be caused is the machine's affair.
template <class Come, class Caused>
bool comes_soon(ProgressEngine& engine, const Come& come, const Caused& caused) {
  const Deadline give_up(scaled(60s));
  while (!give_up.passed()) {
    const bool was_caused = caused();
    if (engine.wait(come, scaled(400ms)) == Errc::ok) return true;
    if (was_caused) return false;
  }
  return false;
}

/// A source without a bell: the engine finds its work when it looks.
class Quiet final : public ProgressSource {
 public:
  int progress(int) noexcept override {
    const std::uint32_t taken = waiting.exchange(0);
    delivered += taken;
    return static_cast<int>(taken);
  }
  int wait_descriptor() const noexcept override { return -1; }
  bool prepare_sleep() noexcept override {
    ++sleeps;
    return waiting.load() == 0;
  }
  Deadline::Clock::time_point next_deadline() const noexcept override { return Deadline::Clock::time_point::max(); }

  std::atomic<std::uint32_t> waiting{0};
  std::atomic<std::uint64_t> delivered{0};
  std::atomic<std::uint64_t> sleeps{0};
};

TEST(ProgressTest, ASleepingThreadThatIsWokenLooksAgain) {
  Quiet quiet;
  ProgressEngine engine({.waiting = {.spin = 0us}});
  ASSERT_TRUE(engine.add(quiet));
  ASSERT_TRUE(engine.start());
  const Deadline patience(scaled(60s));
  // Asleep it would look after half a second only. A busy machine may delay one, not all of them.
  auto quickest = Deadline::Clock::duration::max();
  std::uint64_t slept = 0;
  for (std::uint64_t i = 1; i <= 10; ++i) {
    while (quiet.sleeps == slept && !patience.passed()) std::this_thread::sleep_for(1ms);
    std::this_thread::sleep_for(10ms);  // from the look before the sleep to the sleep
    slept = quiet.sleeps;
    const auto start = Deadline::Clock::now();
    ++quiet.waiting;
    engine.wake();
    while (quiet.delivered < i && !patience.passed()) std::this_thread::sleep_for(100us);
    ASSERT_EQ(quiet.delivered, i);
    quickest = std::min(quickest, Deadline::Clock::now() - start);
  }
  EXPECT_LT(quickest, 200ms);
  engine.stop();
}

/// As transports do, it takes a look as a sign that somebody is awake: until the next prepare_sleep it does not ring.
class Silenced final : public ProgressSource {
 public:
  int progress(int) noexcept override {
    armed_ = false;
    std::uint64_t count = 0;
    const std::uint32_t taken = waiting_.exchange(0);
    if (taken > 0) [[maybe_unused]]
      const auto drained = ::read(bell_.get(), &count, sizeof count);
    delivered += taken;
    return static_cast<int>(taken);
  }
  int wait_descriptor() const noexcept override { return bell_.get(); }
  bool prepare_sleep() noexcept override {
    armed_ = true;
    return waiting_ == 0;
  }
  Deadline::Clock::time_point next_deadline() const noexcept override { return Deadline::Clock::time_point::max(); }

  /// True: somebody was there to be woken.
  bool put() {
    ++waiting_;
    if (!armed_.exchange(false)) return false;
    const std::uint64_t one = 1;
    [[maybe_unused]] const auto rung = ::write(bell_.get(), &one, sizeof one);
    return true;
  }
  std::atomic<std::uint64_t> delivered{0};

 private:
  UniqueFd bell_{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
  std::atomic<std::uint32_t> waiting_{0};
  std::atomic<bool> armed_{false};
};

TEST(ProgressEngineTest, LooksOfOthersLeaveASleepingWaiterItsBells) {
  for (const bool somebody_polls : {false, true}) {
    Silenced source;
    ProgressEngine engine({.waiting = {.spin = 0us}});
    ASSERT_TRUE(engine.add(source));
    ASSERT_TRUE(engine.start());
    constexpr std::uint64_t kPuts = 30;
    std::atomic<bool> stop{false};
    std::thread waiter([&] {
      for (std::uint64_t i = 1; i <= kPuts; ++i) {
        const auto waited = engine.wait([&]() noexcept { return source.delivered >= i; }, scaled(60s));
        EXPECT_EQ(waited, Errc::ok);
      }
    });
    std::thread other([&] {
      for (; !stop && somebody_polls; std::this_thread::sleep_for(1ms)) engine.poll();
    });
    std::uint64_t rung = 0;
    for (std::uint64_t i = 1; i <= kPuts; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(6 + i % 5));  // the thread looks every 4 ms
      rung += source.put() ? 1 : 0;
    }
    waiter.join();
    stop = true;
    other.join();
    EXPECT_GT(rung, kPuts / 2) << (somebody_polls ? "beside poll()" : "beside the thread");
    engine.stop();
  }
}

/// Puts something each time after `disturb` has been at the engine whose thread sleeps.
template <class Disturb>
void expect_that_the_thread_hears(const Disturb& disturb) {
  Silenced source;
  ProgressEngine engine({.waiting = {.spin = 0us}});
  ASSERT_TRUE(engine.add(source));
  ASSERT_TRUE(engine.start());
  const Deadline patience(scaled(60s));
  int at_once = 0;
  for (std::uint64_t round = 1; round <= 10; ++round) {
    std::this_thread::sleep_for(30ms);  // the thread falls asleep
    disturb(engine, patience);
    const auto start = Deadline::Clock::now();
    source.put();
    while (source.delivered < round && !patience.passed()) std::this_thread::sleep_for(100us);
    ASSERT_EQ(source.delivered, round);
    // A deaf one would hear it after half a second. A busy machine may delay some rounds, not most of them.
    at_once += Deadline::Clock::now() - start < 200ms ? 1 : 0;
  }
  EXPECT_GE(at_once, 5);
  engine.stop();
}

TEST(ProgressEngineTest, APollThatFindsNothingDoesNotLeaveTheThreadDeaf) {
  expect_that_the_thread_hears([](ProgressEngine& engine, const Deadline&) { engine.poll(); });
}

// The waiter's look has silenced the bells on which the thread sleeps, and it cannot arm them while another acts.
TEST(ProgressEngineTest, AWaiterWhoLeavesDuringAnExclusiveActDoesNotLeaveTheThreadDeaf) {
  expect_that_the_thread_hears([](ProgressEngine& engine, const Deadline& patience) {
    std::atomic<bool> looked{false};
    std::atomic<bool> acts{false};
    std::atomic<bool> left{false};
    std::thread other([&] {
      while (!looked && !patience.passed()) std::this_thread::yield();
      engine.exclusively([&] {
        acts = true;
        while (!left && !patience.passed()) std::this_thread::yield();
      });
    });
    int asked = 0;
    const auto waited = engine.wait(
        [&]() noexcept {
          if (++asked == 1) return false;  // before the first look
          looked = true;
          while (!acts && !patience.passed()) std::this_thread::yield();
          return true;
        },
        scaled(60s));
    EXPECT_EQ(waited, Errc::ok);
    left = true;
    other.join();
    std::this_thread::sleep_for(30ms);
  });
}

struct Driven {
  explicit Driven(ProgressOptions options) : engine(std::move(options)) {
    value_or_throw(engine.add(mailbox));
    value_or_throw(engine.start());
  }
  ~Driven() { engine.stop(); }
  Mailbox mailbox;
  ProgressEngine engine;
};

/// Has something to do at every look, once it has begun.
class Endless final : public ProgressSource {
 public:
  int progress(int) noexcept override {
    if (!runs) return 0;
    ++looks;
    looks_of_maker += std::this_thread::get_id() == maker ? 1 : 0;
    return 1;
  }
  int wait_descriptor() const noexcept override { return -1; }
  bool prepare_sleep() noexcept override { return !runs; }
  Deadline::Clock::time_point next_deadline() const noexcept override { return Deadline::Clock::time_point::max(); }

  const std::thread::id maker = std::this_thread::get_id();
  std::atomic<bool> runs{false};
  std::atomic<std::uint64_t> looks{0};
  std::atomic<std::uint64_t> looks_of_maker{0};
};

// A thread that takes all of it from who is about to look for it costs him the core, and fills memory with what comes.
TEST(ProgressEngineTest, TheThreadLeavesWorkToCallersWhoLookAndGoesOnWhenTheyStop) {
  ProgressEngine engine({.waiting = {.spin = 50us, .thread_spin = 20us}});
  Endless endless;
  endless.runs = true;
  ASSERT_TRUE(engine.add(endless));
  ASSERT_TRUE(engine.start());
  // A busy machine keeps the caller off its core now and then, and the thread is right to go on.
  int left_alone = 0;
  for (int round = 0; round < 20; ++round) {
    const std::uint64_t all = endless.looks;
    const std::uint64_t mine = endless.looks_of_maker;
    const Deadline end(10ms);
    while (!end.passed()) engine.poll();
    const std::uint64_t by_me = endless.looks_of_maker - mine;
    const std::uint64_t by_thread = endless.looks - all - by_me;
    left_alone += by_me > 1000 && by_thread < by_me / 50 ? 1 : 0;
  }
  EXPECT_GE(left_alone, 3);

  const std::uint64_t before = endless.looks;
  const Deadline patience(scaled(60s));
  while (endless.looks < before + 10'000 && !patience.passed()) std::this_thread::sleep_for(1ms);
  EXPECT_FALSE(patience.passed());
  engine.stop();
}

/// Counts the looks in vain.
class Idle final : public ProgressSource {
 public:
  int progress(int) noexcept override {
    ++looks;
    return 0;
  }
  int wait_descriptor() const noexcept override { return -1; }
  bool prepare_sleep() noexcept override { return true; }
  Deadline::Clock::time_point next_deadline() const noexcept override { return Deadline::Clock::time_point::max(); }

  std::atomic<std::uint64_t> looks{0};
};

TEST(ProgressEngineTest, AWaiterWhoIsWokenForNothingSleepsAgainAtOnce) {
  ProgressEngine engine({.thread = false, .waiting = {.spin = 10us}});
  Idle idle;
  ASSERT_TRUE(engine.add(idle));
  std::atomic<bool> enough{false};
  std::thread waiter([&] { EXPECT_EQ(engine.wait([&]() noexcept { return enough.load(); }, scaled(60s)), Errc::ok); });
  std::this_thread::sleep_for(scaled(50ms));
  const std::uint64_t before = idle.looks;
  constexpr std::uint64_t kTimes = 20;
  for (std::uint64_t i = 0; i < kTimes; ++i) {
    engine.wake();
    std::this_thread::sleep_for(5ms);
  }
  const std::uint64_t looks = idle.looks - before;
  enough = true;
  engine.announce();
  waiter.join();
  EXPECT_GE(looks, 1U);
  EXPECT_LE(looks, 4 * kTimes);  // one that decides, and one with the bells armed
}

TEST(ProgressEngineTest, TheThreadWorksForACallerWhoLooksNowAndThenWhileComputing) {
  ProgressEngine engine({.waiting = {.spin = 50us, .thread_spin = 20us}});
  Endless endless;
  ASSERT_TRUE(engine.add(endless));
  ASSERT_TRUE(engine.start());
  endless.runs = true;
  engine.wake();
  // On a busy machine the thread does not run in every round.
  int helped = 0;
  for (int round = 0; round < 20; ++round) {
    const std::uint64_t all = endless.looks;
    const std::uint64_t mine = endless.looks_of_maker;
    for (const Deadline end(10ms); !end.passed();) {
      engine.poll();
      for (const Deadline computes(70us); !computes.passed();) {
      }
    }
    const std::uint64_t by_me = endless.looks_of_maker - mine;
    helped += endless.looks - all - by_me > 10 * by_me ? 1 : 0;
  }
  EXPECT_GE(helped, 3);
  engine.stop();
}

TEST(ProgressEngineTest, AWaiterWhoHasWhatHeWaitedForLeavesEndlessWorkToTheThread) {
  ProgressEngine engine(ProgressOptions{});
  Endless endless;
  ASSERT_TRUE(engine.add(endless));
  ASSERT_TRUE(engine.start());
  std::this_thread::sleep_for(scaled(50ms));  // the thread sleeps
  std::atomic<bool> finished{false};
  std::thread stops([&] {  // else a failure would be a hang
    const Deadline bound(scaled(10s));
    while (!finished && !bound.passed()) std::this_thread::sleep_for(1ms);
    endless.runs = false;
  });
  const auto begun = Deadline::Clock::now();
  const auto over = [&]() noexcept {
    if (endless.looks == 0) endless.runs = true;
    return endless.looks > 3;
  };
  EXPECT_EQ(engine.wait(over, scaled(20s)), Errc::ok);
  EXPECT_LT(Deadline::Clock::now() - begun, scaled(250ms));  // a sleep of the thread is twice as long
  const std::uint64_t seen = endless.looks;
  const Deadline patience(scaled(5s));
  while (endless.looks == seen && !patience.passed()) std::this_thread::sleep_for(1ms);
  EXPECT_GT(endless.looks, seen) << "nobody goes on with it";
  finished = true;
  stops.join();
  engine.stop();
}

TEST(ProgressEngineTest, ThreadDeliversWithoutAnybodyWaiting) {
  Driven driven({});
  for (int i = 0; i < 50; ++i) {
    driven.mailbox.put();
    std::this_thread::sleep_for(2ms);  // long enough for the thread to fall asleep in between
  }
  const auto end = std::chrono::steady_clock::now() + scaled(5s);
  while (driven.mailbox.delivered < 50 && std::chrono::steady_clock::now() < end) std::this_thread::sleep_for(1ms);
  EXPECT_EQ(driven.mailbox.delivered, 50U);
}

TEST(ProgressEngineTest, NoWakeUpIsLostBetweenRandomPauses) {
  for (const bool with_thread : {true, false}) {
    Driven driven({.thread = with_thread});
    std::atomic<std::uint64_t> put{0};
    std::thread sender([&] {
      std::mt19937 random(3);
      for (int i = 0; i < 300; ++i) {
        std::this_thread::sleep_for(std::chrono::microseconds(random() % 3000));
        driven.mailbox.put();
        ++put;
      }
    });
    bool lost = false;
    for (std::uint64_t i = 1; i <= 300 && !lost; ++i) {
      const auto come = [&]() noexcept { return driven.mailbox.delivered >= i; };
      lost = !comes_soon(driven.engine, come, [&] { return put >= i; });
      EXPECT_FALSE(lost) << i << (with_thread ? " with thread" : " inline");
    }
    sender.join();
    EXPECT_FALSE(driven.mailbox.overlapped);
  }
}

TEST(ProgressEngineTest, ManyWaitersAllReturn) {
  Driven driven({});
  constexpr std::uint64_t kEach = 200;
  std::vector<std::thread> waiters;
  std::atomic<int> failed{0};
  for (int w = 0; w < 4; ++w) {
    waiters.emplace_back([&] {
      for (std::uint64_t i = 1; i <= kEach; ++i) {
        const auto come = [&]() noexcept { return driven.mailbox.delivered >= i; };
        if (driven.engine.wait(come, scaled(5s)) != Errc::ok) ++failed;
      }
    });
  }
  for (std::uint64_t i = 0; i < kEach; ++i) {
    driven.mailbox.put();
    if (i % 7 == 0) std::this_thread::sleep_for(1ms);
  }
  for (auto& waiter : waiters) waiter.join();
  EXPECT_EQ(failed, 0);
  EXPECT_FALSE(driven.mailbox.overlapped);
}

TEST(ProgressEngineTest, WaitEndsAtItsDeadline) {
  Driven driven({});
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(driven.engine.wait([]() noexcept { return false; }, 50ms), Errc::timed_out);
  const auto took = std::chrono::steady_clock::now() - start;
  EXPECT_GE(took, 50ms);
  EXPECT_LT(took, scaled(1s));
}

TEST(ProgressEngineTest, WhatHappensOutsideOfPollIsAnnounced) {
  Driven driven({});
  std::atomic<bool> happened{false};
  std::atomic<bool> announced{false};
  std::thread other([&] {
    std::this_thread::sleep_for(30ms);
    happened = true;
    driven.engine.announce();
    announced = true;
  });
  EXPECT_TRUE(comes_soon(
      driven.engine, [&]() noexcept { return happened.load(); }, [&] { return announced.load(); }));
  other.join();
}

TEST(ProgressEngineTest, IdleEngineCostsNoProcessorTime) {
  Driven driven({.waiting = {.thread_spin = 20us}});
  driven.mailbox.put();
  std::this_thread::sleep_for(50ms);
  const auto used = [] {
    rusage usage{};
    ::getrusage(RUSAGE_SELF, &usage);
    return usage.ru_utime.tv_sec * 1000000LL + usage.ru_utime.tv_usec + usage.ru_stime.tv_sec * 1000000LL +
           usage.ru_stime.tv_usec;
  };
  const auto before = used();
  std::this_thread::sleep_for(300ms);
  EXPECT_LT(used() - before, 30000) << "more than a tenth of a core while nothing happens";
}

TEST(ProgressEngineTest, BusyWaitersKeepBellsSilent) {
  Driven driven({.waiting = {.spin = 50ms}});
  // The engine's thread needs a core once, to see that callers wait and to stand by.
  constexpr std::uint64_t kBatch = 1000;
  const Deadline deadline(scaled(20s));
  std::uint64_t rings = kBatch;
  for (std::uint64_t i = 0; rings >= kBatch / 2 && !deadline.passed();) {
    const std::uint64_t before = driven.mailbox.rings;
    for (const std::uint64_t end = i + kBatch; i < end;) {
      driven.mailbox.put();
      ++i;
      ASSERT_EQ(driven.engine.wait([&]() noexcept { return driven.mailbox.delivered >= i; }, scaled(5s)), Errc::ok);
    }
    rings = driven.mailbox.rings - before;
  }
  EXPECT_LT(rings, kBatch / 2) << "each message woke somebody although its receiver was awake";
}

TEST(ProgressEngineTest, WaitInsideProgressIsRefused) {
  class Recursive final : public ProgressSource {
   public:
    explicit Recursive(ProgressEngine& engine) : engine_(engine) {}
    int progress(int) noexcept override {
      outcome = engine_.wait([]() noexcept { return false; }, 1s);
      polled = engine_.poll();
      return 0;
    }
    int wait_descriptor() const noexcept override { return -1; }
    bool prepare_sleep() noexcept override { return true; }
    Deadline::Clock::time_point next_deadline() const noexcept override { return Deadline::Clock::time_point::max(); }
    Errc outcome = Errc::ok;
    bool polled = true;

   private:
    ProgressEngine& engine_;
  };
  ProgressEngine engine({.thread = false});
  Recursive recursive(engine);
  ASSERT_TRUE(engine.add(recursive));
  engine.poll();
  EXPECT_EQ(recursive.outcome, Errc::would_deadlock);
  EXPECT_FALSE(recursive.polled);
}

}  // namespace
}  // namespace dtr::fabric
