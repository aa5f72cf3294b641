// A sender is stopped by SIGSTOP in the middle of a message: the recv ends at its deadline, its buffer is at rest from
// then on, and once the sender runs again messages go as before.
#include <chrono>
#include <csignal>
#include <thread>

#include <unistd.h>

#include "messaging/data.hpp"
#include "support/mpi_test.hpp"

namespace dtr {
namespace {

using namespace testing;

constexpr std::size_t kLarge = 64 << 20;

/// Stopped from outside until somebody puts up the sign; a child does it, for who is stopped cannot wake himself.
void stop_until(const std::string& sign) {
  const pid_t me = ::getpid();
  const pid_t waker = ::fork();
  if (waker == 0) {
    ::kill(me, SIGSTOP);
    put_sign("stopped");
    const bool seen = wait_for_sign(sign, scaled(60s));
    ::kill(me, SIGCONT);
    ::_exit(seen ? 0 : 1);
  }
  while (!wait_for_sign(sign, 10ms)) {  // the stop comes in here
  }
}

TEST(StoppedSenderTest, TheRecvEndsAtItsDeadlineAndItsBufferIsAtRest) {
  RuntimeOptions options;
  options.config.overrides = {
      {"progress.mode", "inline"}, {"messages.slot_count", "2"}, {"messages.slot_bytes", "4096"}};
  auto made = Runtime::init(std::move(options));
  ASSERT_TRUE(made) << made.error().to_string();
  Runtime& rt = **made;
  Bytes large(kLarge, std::byte{7});
  Messenger messenger(rt);
  if (rt.rank() == 1) {
    const auto sent = value_or_throw(messenger.send(0, 1, large, scaled(120s)));
    while (!wait_for_sign("first piece", 1ms)) rt.progress();
    ASSERT_FALSE(messenger.done(sent));
    stop_until("timed out");
    const auto outcome = messenger.wait(sent);
    ASSERT_FALSE(outcome) << "the receiver has given up";
    EXPECT_EQ(outcome.error().code, Errc::cancelled) << outcome.error().to_string();
  } else {
    std::fill(large.begin(), large.end(), std::byte{0});
    // Its deadline is one that a message which moves does not need.
    const auto came = value_or_throw(messenger.recv(1, 1, large, scaled(12s)));
    const volatile std::byte& first = large.front();
    while (first == std::byte{0} && !messenger.done(came)) rt.progress();
    ASSERT_TRUE(first == std::byte{7});
    put_sign("first piece");
    ASSERT_TRUE(wait_for_sign("stopped", scaled(30s)));
    const auto outcome = messenger.wait(came);
    ASSERT_FALSE(outcome);
    EXPECT_EQ(outcome.error().code, Errc::timed_out) << outcome.error().to_string();
    EXPECT_EQ(outcome.error().peer, 1);
    std::fill(large.begin(), large.end(), std::byte{9});
    put_sign("timed out");
  }
  // What follows is whole, and nothing of the message before is written any more.
  Bytes next = rt.rank() == 1 ? data_of(100000, 4) : Bytes(100000);
  const auto follows = value_or_throw(rt.rank() == 1 ? messenger.send(0, 2, next, scaled(60s))
                                                     : messenger.recv(1, 2, next, scaled(60s)));
  DTR_ASSERT_OK(messenger.wait(follows));
  EXPECT_EQ(next, data_of(100000, 4));
  if (rt.rank() == 0) {
    EXPECT_EQ(std::count(large.begin(), large.end(), std::byte{9}), static_cast<std::ptrdiff_t>(kLarge));
  }
}

}  // namespace
}  // namespace dtr
