// Many threads on one channel while things go wrong: every request ends once, and nothing races.
#include <array>
#include <atomic>
#include <random>
#include <thread>

#include <sys/epoll.h>

#include "fabric_tcp/node.hpp"

namespace dtr::testing {
namespace {

constexpr int kHang = 30000;  ///< ms; who sleeps so long was not woken

TEST(TcpThreadTest, PostsCancelsAndResetsFromAllSidesEndEveryRequestOnce) {
  Pair pair({.queue_depth = 256});
  constexpr std::size_t kThreads = 3;
  constexpr std::size_t kRounds = 150;
  constexpr std::size_t kBytes = 30000;
  std::vector<std::byte> sink(kThreads * kBytes);
  const RemoteRegion* remote = pair.import(pair.b.add(sink));
  std::atomic<bool> stop{false};
  std::thread drive_a([&] {
    while (!stop) {
      if (pair.a.transport->progress(256) == 0) std::this_thread::yield();
    }
  });
  std::thread drive_b([&] {
    while (!stop) {
      if (pair.b.transport->progress(256) == 0) std::this_thread::yield();
    }
  });
  std::array<std::uint64_t, kThreads> ended_well{};
  std::array<std::uint64_t, kThreads> ended_otherwise{};
  std::vector<std::thread> posters;
  for (std::size_t t = 0; t < kThreads; ++t) {
    posters.emplace_back([&, t] {
      auto source = pattern(kBytes, t);
      std::vector<std::byte> back(kBytes);
      Region* local = pair.a.add(source);
      Region* returned = pair.a.add(back);
      std::mt19937 random(static_cast<std::uint32_t>(t));
      for (std::size_t round = 0; round < kRounds; ++round) {
        Completion done;
        const std::array requests{WorkRequest::put({local, 0}, {remote, t * kBytes}, kBytes, &done),
                                  WorkRequest::notify(static_cast<Port>(t), static_cast<std::uint32_t>(round), &done),
                                  WorkRequest::get({remote, t * kBytes}, {returned, 0}, kBytes, &done)};
        std::span<const WorkRequest> left(requests);
        const Deadline give_up(scaled(30s));
        while (!left.empty() && !give_up.passed()) {
          done.arm(static_cast<std::uint32_t>(left.size()));
          const auto result = pair.channel->post(left, Deadline(scaled(20s)));
          const auto refused = static_cast<std::uint32_t>(left.size() - result.accepted);
          if (refused > 0) done.finish(refused, {});
          left = left.subspan(result.accepted);
          if (!left.empty()) std::this_thread::yield();
        }
        const auto whim = random() % 20;
        if (whim == 0) pair.channel->reset();
        if (whim == 1) static_cast<void>(pair.channel->cancel(done));
        while (!done.done() && !give_up.passed()) std::this_thread::yield();
        ASSERT_TRUE(done.done());
        ++(done.status().ok() ? ended_well : ended_otherwise)[t];
        if (!done.status().ok()) {
          ASSERT_EQ(done.status().code, Errc::cancelled) << pair.channel->explain(done.status());
          while (!pair.channel->quiesced() && !give_up.passed()) std::this_thread::yield();
        } else {
          ASSERT_TRUE(back == source);
        }
      }
      // Nothing of these lives on: the memory goes away now.
      const Deadline give_up(scaled(10s));
      while (local->uses() + returned->uses() > 0 && !give_up.passed()) std::this_thread::yield();
      ASSERT_EQ(local->uses() + returned->uses(), 0U);
      pair.a.regions->revoke(*local);
      pair.a.regions->revoke(*returned);
      pair.a.regions->remove(*local);
      pair.a.regions->remove(*returned);
    });
  }
  for (auto& poster : posters) poster.join();
  Completion last;
  last.arm(1);
  const auto flush = WorkRequest::flush(&last);
  ASSERT_EQ(pair.channel->post(std::span(&flush, 1), Deadline(scaled(20s))).accepted, 1U);
  const Deadline give_up(scaled(20s));
  while (!last.done() && !give_up.passed()) std::this_thread::yield();
  EXPECT_TRUE(last.status().ok());
  stop = true;
  drive_a.join();
  drive_b.join();
  for (std::size_t t = 0; t < kThreads; ++t) {
    EXPECT_EQ(ended_well[t] + ended_otherwise[t], kRounds);
    EXPECT_GT(ended_well[t], kRounds / 2);
    std::uint64_t notified = 0;
    std::uint32_t previous = 0;
    for (const auto& notification : pair.b.recorder.notifications) {
      if (notification.port != t) continue;
      EXPECT_TRUE(notified == 0 || notification.value > previous) << "once and in order";
      previous = notification.value;
      ++notified;
    }
    EXPECT_GE(notified, ended_well[t]);
    EXPECT_LE(notified, kRounds);
  }
}

TEST(TcpThreadTest, ASleeperIsWokenByADeadlineThatComesAfterItFellAsleep) {
  Pair pair;
  ASSERT_TRUE(pair.run(WorkRequest::flush(nullptr)).ok());
  drive_for(50ms, pair.a, pair.b);
  // The order of the engine: arm, ask for the deadline, sleep. Then somebody posts with an earlier one.
  ASSERT_TRUE(pair.a.transport->prepare_sleep());
  const auto planned = pair.a.transport->next_deadline();
  Completion done;
  done.arm(1);
  const auto request = WorkRequest::notify(1, 1, &done);
  ASSERT_EQ(pair.channel->post(std::span(&request, 1), Deadline(30ms)).accepted, 1U);
  EXPECT_LT(pair.a.transport->next_deadline(), planned);
  epoll_event event{};
  EXPECT_EQ(::epoll_wait(pair.a.transport->wait_descriptor(), &event, 1, kHang), 1) << "nobody rang";
  EXPECT_TRUE(pair.drive([&] { return done.done(); }));
}

TEST(TcpThreadTest, AnIdleTransportSleeps) {
  Pair pair;
  ASSERT_TRUE(pair.run(WorkRequest::flush(nullptr)).ok());
  drive_for(50ms, pair.a, pair.b);
  for (Node* node : {&pair.a, &pair.b}) {
    ASSERT_TRUE(node->transport->prepare_sleep());
    epoll_event event{};
    EXPECT_EQ(::epoll_wait(node->transport->wait_descriptor(), &event, 1, 20), 0) << "it rings for nothing";
  }
  // And what arrives wakes it.
  const auto request = WorkRequest::notify(1, 1, nullptr);
  ASSERT_EQ(pair.channel->post(std::span(&request, 1), Deadline(scaled(5s))).accepted, 1U);
  epoll_event event{};
  EXPECT_EQ(::epoll_wait(pair.b.transport->wait_descriptor(), &event, 1, kHang), 1);
}

}  // namespace
}  // namespace dtr::testing
