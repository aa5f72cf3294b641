// A sender dies by SIGKILL in the middle of a message: everybody who has to do with it ends soon, with its name, and
// the others go on. Run with `-d 1`.
#include <chrono>
#include <thread>

#include "messaging/data.hpp"
#include "support/mpi_test.hpp"

namespace dtr {
namespace {

using namespace testing;

constexpr std::size_t kLarge = 64 << 20;

RuntimeOptions options() {
  RuntimeOptions made;
  // By hand, in small pieces: so that the message is under way, and not yet over, when its sender dies.
  made.config.overrides = {{"progress.mode", "inline"}, {"messages.slot_count", "2"}, {"messages.slot_bytes", "4096"}};
  return made;
}

TEST(DeadSenderTest, InMidMessageEndsItsPeersOperationsSoonAndNobodyElses) {
  auto made = Runtime::init(options());
  ASSERT_TRUE(made) << made.error().to_string();
  Runtime& rt = **made;
  Bytes large(kLarge, std::byte{7});
  Bytes small(100);
  Messenger messenger(rt);
  if (rt.rank() == 1) {
    const auto sent = value_or_throw(messenger.send(0, 1, large, scaled(60s)));
    while (!wait_for_sign("first piece", 1ms)) {
      rt.progress();
      ASSERT_FALSE(messenger.done(sent));
    }
    die_now();
  }
  const int other = 2 - rt.rank();
  if (rt.rank() == 0) {
    std::fill(large.begin(), large.end(), std::byte{0});
    const auto came = value_or_throw(messenger.recv(1, 1, large, scaled(60s)));
    const auto any = value_or_throw(messenger.recv(kAnyRank, 2, small, scaled(60s)));
    const volatile std::byte& first = large.front();
    const Deadline patience(scaled(30s));
    while (first == std::byte{0} && !patience.passed()) rt.progress();
    ASSERT_TRUE(first == std::byte{7});
    put_sign("first piece");
    const auto started = std::chrono::steady_clock::now();
    const auto outcome = messenger.wait(came);
    ASSERT_FALSE(outcome);
    EXPECT_EQ(outcome.error().code, Errc::peer_failed) << outcome.error().to_string();
    EXPECT_EQ(outcome.error().peer, 1);
    EXPECT_LT(std::chrono::steady_clock::now() - started, scaled(5s));
    std::fill(large.begin(), large.end(), std::byte{9});
    const auto message = messenger.wait(any);  // of the one that lives
    DTR_ASSERT_OK(message);
    EXPECT_EQ(message->source, 2);
    EXPECT_EQ(std::count(large.begin(), large.end(), std::byte{9}), static_cast<std::ptrdiff_t>(kLarge));
  } else {
    const auto to_dead = value_or_throw(messenger.send(1, 5, large, scaled(60s)));
    const auto from_dead = value_or_throw(messenger.recv(1, 5, small, scaled(60s)));
    EXPECT_EQ(messenger.wait(to_dead).error().code, Errc::peer_failed);
    EXPECT_EQ(messenger.wait(from_dead).error().code, Errc::peer_failed);
    DTR_EXPECT_OK(messenger.wait(value_or_throw(messenger.send(0, 2, small, scaled(60s)))));
  }
  EXPECT_EQ(messenger.send(1, 1, small).error().code, Errc::peer_failed);
  // The living exchange messages as before.
  Bytes out = data_of(100000, static_cast<std::uint64_t>(rt.rank()));
  Bytes in(out.size());
  const auto sent = value_or_throw(messenger.send(other, 3, out, scaled(60s)));
  const auto came = value_or_throw(messenger.recv(other, 3, in, scaled(60s)));
  DTR_ASSERT_OK(messenger.wait(came));
  DTR_ASSERT_OK(messenger.wait(sent));
  EXPECT_EQ(in, data_of(in.size(), static_cast<std::uint64_t>(other)));
}

}  // namespace
}  // namespace dtr
