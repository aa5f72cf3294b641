// A host that vanishes: no FIN, no RST, packets simply stop. It takes a network namespace to have one here.
#include <csignal>
#include <cstdlib>
#include <memory>
#include <string>

#include <fcntl.h>
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include "dtr/base/fd.hpp"
#include "dtr/fabric/tcp/hub.hpp"
#include "fabric_tcp/node.hpp"

namespace dtr::testing {
namespace {

TEST(TcpSilenceTest, AHostIsGoneOnlyIfItOwedAnAnswerAtEveryLook) {
  fabric::tcp::SilenceWatch watch;
  EXPECT_FALSE(watch.vanished(true, 1000, 500));
  EXPECT_FALSE(watch.vanished(true, 1400, 500));
  EXPECT_FALSE(watch.vanished(false, 1450, 500));  // it answered after all
  EXPECT_FALSE(watch.vanished(true, 1600, 500));
  EXPECT_FALSE(watch.vanished(true, 2099, 500));
  EXPECT_TRUE(watch.vanished(true, 2100, 500));
}

/// A second "host": a network namespace behind a pair of virtual cables.
class OtherHost {
 public:
  OtherHost() : name_("dtr" + std::to_string(::getpid())) {
    // A net of four addresses of its own, out of those kept for tests: several of these may run at once.
    const auto number = static_cast<unsigned>(::getpid());
    const std::string net = "198.18." + std::to_string(number / 64 % 256) + ".";
    here = net + std::to_string(number % 64 * 4 + 1);
    there = net + std::to_string(number % 64 * 4 + 2);
    const std::string near = name_ + "n";
    const std::string far = name_ + "f";
    ready_ = run("ip netns add " + name_) && run("ip link add " + near + " type veth peer name " + far) &&
             run("ip link set " + far + " netns " + name_) && run("ip addr add " + here + "/30 dev " + near) &&
             run("ip link set " + near + " up") && run("ip -n " + name_ + " addr add " + there + "/30 dev " + far) &&
             run("ip -n " + name_ + " link set " + far + " up") && run("ip -n " + name_ + " link set lo up");
  }
  ~OtherHost() {
    run("ip link del " + name_ + "n");
    run("ip netns del " + name_);
  }
  [[nodiscard]] bool ready() const { return ready_; }
  /// This process lives there from now on.
  [[nodiscard]] bool move_in() const {
    const UniqueFd space(::open(("/run/netns/" + name_).c_str(), O_RDONLY | O_CLOEXEC));
    return space && ::setns(space.get(), CLONE_NEWNET) == 0;
  }
  /// Nothing comes back from it any more.
  [[nodiscard]] bool vanish() const { return run("ip -n " + name_ + " route replace blackhole " + here + "/32"); }

  std::string here;
  std::string there;

 private:
  static bool run(const std::string& command) { return std::system((command + " >/dev/null 2>&1").c_str()) == 0; }
  std::string name_;
  bool ready_ = false;
};

void vanish_under(bool traffic) {
  const OtherHost host;
  if (!host.ready()) GTEST_SKIP() << "no network namespaces here";
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    if (!host.move_in()) ::_exit(1);
    Node node(1, 2, {.bind_address = host.there});
    std::vector<std::byte> memory(1 << 20);
    const RemoteKey key = node.add(memory)->key();
    const auto address = node.transport->address();
    if (address.size() != 20 || ::write(ends[1], address.data(), 20) != 20 ||
        ::write(ends[1], &key, sizeof key) != static_cast<ssize_t>(sizeof key)) {
      ::_exit(1);
    }
    drive_for(std::chrono::duration_cast<std::chrono::milliseconds>(60s), node);
    ::_exit(0);
  }
  ::close(ends[1]);
  const UniqueFd from(ends[0]);
  std::vector<std::byte> address(20);
  RemoteKey key;
  const bool told = ::read(from.get(), address.data(), 20) == 20 &&
                    ::read(from.get(), &key, sizeof key) == static_cast<ssize_t>(sizeof key);
  if (told) {
    Node node(0, 2, {.bind_address = host.here, .failure_detect = 1000ms});
    auto channel = value_or_throw(node.transport->connect(1, address, Deadline(scaled(10s))));
    EXPECT_TRUE(drive_until(
        10s, [&] { return channel->state() == ChannelState::open; }, node));
    const RemoteRegion* remote = value_or_throw(channel->import(key));
    std::vector<std::byte> memory(1 << 20);
    Region* local = node.add(memory);
    EXPECT_TRUE(host.vanish());
    Completion done;
    if (traffic) {
      done.arm(1);
      const auto request = WorkRequest::put({local, 0}, {remote, 0}, 1 << 20, &done);
      EXPECT_EQ(channel->post(std::span(&request, 1), Deadline(scaled(60s))).accepted, 1U);
    }
    EXPECT_TRUE(drive_until(
        5s, [&] { return !node.recorder.downs.empty(); }, node))
        << "not noticed";
    if (!node.recorder.downs.empty()) {
      EXPECT_EQ(node.recorder.downs[0].code, Errc::peer_failed) << node.recorder.downs[0].why;
    }
    EXPECT_TRUE(done.done());
    if (traffic) {
      EXPECT_EQ(done.status().code, Errc::peer_failed);
    }
    EXPECT_EQ(local->uses(), 0U);
  }
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  if (!told) GTEST_SKIP() << "a process may not enter a network namespace here";
}

TEST(TcpVanishedHostTest, IsNoticedWhileThereIsTraffic) { vanish_under(true); }

TEST(TcpVanishedHostTest, IsNoticedInSilence) { vanish_under(false); }

}  // namespace
}  // namespace dtr::testing
