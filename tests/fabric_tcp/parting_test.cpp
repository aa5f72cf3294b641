// How peers part: goodbye, death, being declared dead; with real processes where it takes one.
#include <array>
#include <csignal>

#include <sys/wait.h>
#include <unistd.h>

#include "dtr/base/fd.hpp"
#include "fabric_tcp/node.hpp"

namespace dtr::testing {
namespace {

/// Rank 1 in a process of its own: registers memory, serves until it is killed.
class Child {
 public:
  static constexpr std::size_t kMemory = 4 << 20;

  /// If `back_to` is given, the child also connects to it and sends one notification.
  explicit Child(const Node* back_to = nullptr) {
    std::array<int, 2> ends{};
    if (::pipe(ends.data()) != 0) throw std::runtime_error("pipe");
    const auto parent_address = back_to != nullptr ? back_to->transport->address() : std::vector<std::byte>{};
    pid_ = ::fork();
    if (pid_ == 0) {
      serve(ends[1], parent_address);
      ::_exit(0);
    }
    ::close(ends[1]);
    const UniqueFd from(ends[0]);
    std::uint32_t bytes = 0;
    read_all(from.get(), &bytes, sizeof bytes);
    address.resize(bytes);
    read_all(from.get(), address.data(), bytes);
    read_all(from.get(), &key, sizeof key);
  }
  ~Child() { kill(SIGKILL); }

  /// Returns once it stands still.
  void stop() {
    kill(SIGSTOP);
    ::waitpid(pid_, nullptr, WUNTRACED);
  }
  void kill(int signal) {
    if (pid_ < 0) return;
    ::kill(pid_, signal);
    if (signal != SIGKILL) return;
    ::waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }

  std::vector<std::byte> address;
  RemoteKey key{};

 private:
  static void read_all(int fd, void* into, std::size_t bytes) {
    for (std::size_t got = 0; got < bytes;) {
      const auto n = ::read(fd, static_cast<char*>(into) + got, bytes - got);
      if (n <= 0) throw std::runtime_error("the child did not start");
      got += static_cast<std::size_t>(n);
    }
  }
  static void serve(int to, const std::vector<std::byte>& parent_address) {
    Node node(1, 2);
    std::vector<std::byte> memory(kMemory);
    const RemoteKey mine = node.add(memory)->key();
    const auto own = node.transport->address();
    const auto bytes = static_cast<std::uint32_t>(own.size());
    if (::write(to, &bytes, sizeof bytes) < 0 || ::write(to, own.data(), own.size()) < 0 ||
        ::write(to, &mine, sizeof mine) < 0) {
      return;
    }
    std::unique_ptr<Channel> channel;
    if (!parent_address.empty()) {
      channel = value_or_throw(node.transport->connect(0, parent_address, Deadline(scaled(10s))));
      static_cast<void>(drive_until(
          10s, [&] { return channel->state() == ChannelState::open; }, node));
      const auto request = WorkRequest::notify(1, 1, nullptr);
      static_cast<void>(channel->post(std::span(&request, 1), Deadline(scaled(10s))));
    }
    drive_for(std::chrono::duration_cast<std::chrono::milliseconds>(60s), node);
  }

  pid_t pid_ = -1;
};

struct Parent {
  explicit Parent(const Child& child, const fabric::tcp::TcpOptions& options = {}) : node(0, 2, options) {
    memory = pattern(Child::kMemory, 1);
    region = node.add(memory);
    channel = value_or_throw(node.transport->connect(1, child.address, Deadline(scaled(10s))));
    EXPECT_TRUE(drive_until(
        10s, [&] { return channel->state() == ChannelState::open; }, node));
    remote = value_or_throw(channel->import(child.key));
  }
  Status run(WorkRequest request, std::chrono::milliseconds timeout) {
    Completion done;
    done.arm(1);
    request.completion = &done;
    const auto result = channel->post(std::span(&request, 1), Deadline(timeout));
    if (result.accepted == 0) return result.status;
    EXPECT_TRUE(drive_until(
        timeout + 10s, [&] { return done.done(); }, node));
    return done.status();
  }

  Node node;
  std::vector<std::byte> memory;
  Region* region = nullptr;
  std::unique_ptr<Channel> channel;
  const RemoteRegion* remote = nullptr;
};

TEST(TcpPartingTest, AKilledPeerIsKnownDeadWithinASecondAndEverythingEndsNamingIt) {
  for (int round = 0; round < 5; ++round) {
    Child child;
    Parent parent(child);
    Completion done;
    done.arm(200);
    const std::vector<WorkRequest> requests(
        200, WorkRequest::put({parent.region, 0}, {parent.remote, 0}, Child::kMemory, &done));
    ASSERT_EQ(parent.channel->post(requests, Deadline(scaled(60s))).accepted, 200U);
    drive_for(std::chrono::milliseconds(round * 5), parent.node);
    child.kill(SIGKILL);
    const auto start = std::chrono::steady_clock::now();
    ASSERT_TRUE(drive_until(
        10s, [&] { return done.done(); }, parent.node));
    EXPECT_LT(std::chrono::steady_clock::now() - start, scaled(1s));
    EXPECT_EQ(done.status().code, Errc::peer_failed);
    EXPECT_TRUE(done.status().quiesced && done.status().fenced);
    EXPECT_EQ(parent.region->uses(), 0U);
    EXPECT_EQ(parent.channel->state(), ChannelState::failed);
    ASSERT_TRUE(drive_until(
        5s, [&] { return !parent.node.recorder.downs.empty(); }, parent.node));
    drive_for(20ms, parent.node);
    ASSERT_EQ(parent.node.recorder.downs.size(), 1U);
    EXPECT_EQ(parent.node.recorder.downs[0].code, Errc::peer_failed);
    EXPECT_EQ(parent.node.recorder.downs[0].peer, 1U);
    const auto later = parent.run(WorkRequest::flush(nullptr), 1s);
    EXPECT_EQ(later.code, Errc::peer_failed);
    EXPECT_NE(parent.channel->explain(later).find("refused"), std::string::npos) << parent.channel->explain(later);
  }
}

TEST(TcpPartingTest, AnIdlePeerThatDiesIsNoticedToo) {
  Child child;
  Parent parent(child);
  child.kill(SIGKILL);
  ASSERT_TRUE(drive_until(
      5s, [&] { return !parent.node.recorder.downs.empty(); }, parent.node));
  EXPECT_EQ(parent.node.recorder.downs[0].code, Errc::peer_failed);
}

TEST(TcpPartingTest, APeerThatOnlyTalksToUsIsNoticedWhenItDies) {
  Node node(0, 2);
  Child child(&node);
  ASSERT_TRUE(drive_until(
      10s, [&] { return node.recorder.notifications.size() == 1; }, node));
  child.kill(SIGKILL);
  ASSERT_TRUE(drive_until(
      5s, [&] { return !node.recorder.downs.empty(); }, node));
  EXPECT_EQ(node.recorder.downs[0].code, Errc::peer_failed);
  EXPECT_EQ(node.recorder.downs[0].peer, 1U);
}

TEST(TcpPartingTest, AStoppedPeerIsNotDeadAndNothingCorruptsWhenItGoesOn) {
  Child child;
  Parent parent(child, {.failure_detect = 1000ms});  // a full window for longer than that is no sign of death
  child.stop();
  std::vector<Completion> done(20);
  for (std::size_t i = 0; i < done.size(); ++i) {
    done[i].arm(1);
    const auto request = i % 2 == 0
                             ? WorkRequest::put({parent.region, 0}, {parent.remote, 0}, Child::kMemory, &done[i])
                             : WorkRequest::get({parent.remote, 0}, {parent.region, 0}, Child::kMemory, &done[i]);
    ASSERT_EQ(parent.channel->post(std::span(&request, 1), Deadline(300ms)).accepted, 1U);
  }
  ASSERT_TRUE(drive_until(
      5s, [&] { return done.front().done() && done.back().done(); }, parent.node));
  for (const Completion& completion : done) EXPECT_EQ(completion.status().code, Errc::timed_out);
  drive_for(4000ms, parent.node);
  EXPECT_TRUE(parent.node.recorder.downs.empty());
  parent.channel->reset();  // also while it is stopped: the kernel takes the new connection
  EXPECT_TRUE(parent.channel->quiesced());
  fill_pattern(parent.memory, 77);
  drive_for(200ms, parent.node);
  EXPECT_TRUE(parent.node.recorder.downs.empty());
  child.kill(SIGCONT);
  ASSERT_TRUE(
      parent.run(WorkRequest::put({parent.region, 0}, {parent.remote, 0}, Child::kMemory, nullptr), scaled(10s)).ok());
  std::fill(parent.memory.begin(), parent.memory.end(), std::byte{0});
  ASSERT_TRUE(
      parent.run(WorkRequest::get({parent.remote, 0}, {parent.region, 0}, Child::kMemory, nullptr), scaled(10s)).ok());
  EXPECT_TRUE(parent.memory == pattern(Child::kMemory, 77));
}

TEST(TcpPartingTest, ConnectingToWhereNobodyListensFailsSoon) {
  std::vector<std::byte> address;
  {
    Node gone(1, 2);
    address = gone.transport->address();
  }
  Node node(0, 2);
  auto channel = value_or_throw(node.transport->connect(1, address, Deadline(scaled(20s))));
  ASSERT_TRUE(drive_until(
      5s, [&] { return channel->state() == ChannelState::failed; }, node));
  const auto request = WorkRequest::flush(nullptr);
  EXPECT_EQ(channel->post(std::span(&request, 1), Deadline(1s)).status.code, Errc::peer_failed);
}

TEST(TcpPartingTest, ConnectingToASilentProcessEndsAtTheDeadline) {
  Node a(0, 2);
  Node b(1, 2);  // listens, and never looks
  auto channel = value_or_throw(a.transport->connect(1, b.transport->address(), Deadline(300ms)));
  const auto request = WorkRequest::flush(nullptr);
  EXPECT_EQ(channel->post(std::span(&request, 1), Deadline(1s)).status.code, Errc::again);
  ASSERT_TRUE(drive_until(
      5s, [&] { return channel->state() == ChannelState::failed; }, a));
  EXPECT_EQ(channel->post(std::span(&request, 1), Deadline(1s)).status.code, Errc::timed_out);
  EXPECT_TRUE(a.recorder.downs.empty()) << "silent is not dead";
}

TEST(TcpPartingTest, CloseFinishesWhatIsOpenAndSaysGoodbye) {
  Pair pair({.reconnect_grace = 400ms});
  constexpr std::size_t kSize = 4 << 20;
  auto source = pattern(kSize, 1);
  std::vector<std::byte> sink(kSize);
  Region* local = pair.a.add(source);
  const RemoteRegion* remote = pair.import(pair.b.add(sink));
  Completion done;
  done.arm(1);
  const auto request = WorkRequest::put({local, 0}, {remote, 0}, kSize, &done);
  ASSERT_EQ(pair.channel->post(std::span(&request, 1), Deadline(scaled(20s))).accepted, 1U);
  pair.channel->close();
  const auto late = pair.channel->post(std::span(&request, 1), Deadline(1s));
  EXPECT_EQ(late.status.code, Errc::closed);
  ASSERT_TRUE(pair.drive([&] { return pair.channel->state() == ChannelState::closed; }));
  EXPECT_TRUE(done.done());
  EXPECT_TRUE(done.status().ok());
  EXPECT_TRUE(sink == source);
  ASSERT_TRUE(pair.drive([&] { return !pair.b.recorder.downs.empty(); }));
  drive_for(1s, pair.a, pair.b);
  ASSERT_EQ(pair.b.recorder.downs.size(), 1U);
  EXPECT_EQ(pair.b.recorder.downs[0].code, Errc::peer_left);
  EXPECT_TRUE(pair.a.recorder.downs.empty());
}

TEST(TcpPartingTest, ATransportThatLeavesTellsThoseWhoAreConnectedToIt) {
  Pair pair;
  ASSERT_TRUE(pair.run(WorkRequest::flush(nullptr)).ok());
  pair.b.transport->leave();
  pair.b.transport.reset();
  ASSERT_TRUE(drive_until(
      5s, [&] { return !pair.a.recorder.downs.empty(); }, pair.a));
  EXPECT_EQ(pair.a.recorder.downs[0].code, Errc::peer_left);
  const auto request = WorkRequest::flush(nullptr);
  EXPECT_EQ(pair.channel->post(std::span(&request, 1), Deadline(1s)).status.code, Errc::peer_left);
}

TEST(TcpPartingTest, ADestroyedChannelIsNoDeath) {
  Pair pair({.reconnect_grace = 400ms});
  ASSERT_TRUE(pair.run(WorkRequest::flush(nullptr)).ok());
  pair.channel.reset();
  drive_for(1s, pair.a, pair.b);
  for (const auto& down : pair.b.recorder.downs) EXPECT_EQ(down.code, Errc::peer_left) << down.why;
}

TEST(TcpPartingTest, AChannelOutlivesItsTransport) {
  Pair pair;
  Completion done;
  done.arm(1);
  const auto request = WorkRequest::notify(1, 1, &done);
  ASSERT_EQ(pair.channel->post(std::span(&request, 1), Deadline(scaled(20s))).accepted, 1U);
  pair.a.transport.reset();
  EXPECT_TRUE(done.done());
  EXPECT_EQ(done.status().code, Errc::closed);
  EXPECT_EQ(pair.channel->state(), ChannelState::closed);
  EXPECT_EQ(pair.channel->post(std::span(&request, 1), Deadline(1s)).status.code, Errc::closed);
  pair.channel->reset();
  pair.channel->close();
}

TEST(TcpPartingTest, AFencedPeerIsShutOutAndIsTold) {
  Pair pair;
  std::vector<std::byte> source(64, std::byte{1});
  std::vector<std::byte> sink(64);
  Region* local = pair.a.add(source);
  const RemoteRegion* remote = pair.import(pair.b.add(sink));
  Completion done;
  done.arm(1);
  const auto request = WorkRequest::put_notify({local, 0}, {remote, 0}, 64, 1, 1, &done);
  ASSERT_EQ(pair.channel->post(std::span(&request, 1), Deadline(scaled(20s))).accepted, 1U);
  pair.b.transport->fence(0);
  ASSERT_TRUE(pair.drive([&] { return done.done(); }));
  EXPECT_EQ(done.status().code, Errc::fenced);
  EXPECT_EQ(pair.channel->state(), ChannelState::failed);
  EXPECT_TRUE(pair.b.recorder.notifications.empty());
  ASSERT_EQ(pair.a.recorder.downs.size(), 1U);
  EXPECT_EQ(pair.a.recorder.downs[0].code, Errc::fenced);
  // A new attempt does not help.
  auto again = pair.a.connect(pair.b);
  ASSERT_TRUE(pair.drive([&] { return again->state() == ChannelState::failed; }));
  EXPECT_EQ(again->post(std::span(&request, 1), Deadline(1s)).status.code, Errc::fenced);
}

}  // namespace
}  // namespace dtr::testing
