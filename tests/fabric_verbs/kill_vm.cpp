// A peer that is killed with SIGKILL at a random moment, over real devices: the survivor's requests all end in time,
// with an Error that names the peer, and its memory is its own again. DTR_TEST_KILLS says how often.
#include <cmath>
#include <cstdlib>
#include <iterator>
#include <random>
#include <sstream>

#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "dtr/fabric/tcp/tcp.hpp"
#include "dtr/fabric/verbs/verbs.hpp"
#include "fabric_verbs/traffic.hpp"

namespace dtr::testing {
namespace {

constexpr std::size_t kPiece = 3000;
constexpr std::size_t kPieces = 16;
constexpr std::size_t kWords = 8 * kPieces;
constexpr std::size_t kLarge = 512 << 10;
constexpr std::size_t kBytes = kWords + kPiece * kPieces + kLarge;

/// What two processes need to tell each other before the fabric can.
bool tell(int socket, std::span<const std::byte> bytes) {
  const std::uint64_t length = bytes.size();
  return ::send(socket, &length, sizeof length, MSG_NOSIGNAL) == sizeof length &&
         ::send(socket, bytes.data(), length, MSG_NOSIGNAL) == static_cast<ssize_t>(length);
}
std::vector<std::byte> hear(int socket) {
  std::uint64_t length = 0;
  if (::recv(socket, &length, sizeof length, MSG_WAITALL) != sizeof length) return {};
  std::vector<std::byte> bytes(length);
  if (::recv(socket, bytes.data(), length, MSG_WAITALL) != static_cast<ssize_t>(length)) bytes.clear();
  return bytes;
}

std::string device_of(std::uint32_t rank) {
  const char* text = std::getenv("RDMA_VM_DEVICES");
  std::istringstream in(text == nullptr ? "" : text);
  const std::vector<std::string> names{std::istream_iterator<std::string>(in), {}};
  return names.empty() ? "" : names[rank % names.size()];
}

/// One of the two: a fabric, memory, and requests of every kind towards the other.
class End {
 public:
  End(std::uint32_t rank, int socket) : other_(1 - rank) {
    fabric::FabricOptions options;
    options.identity = {.self = rank, .world = 2, .host_id = "test-host", .token = {}};
    options.connect_timeout = scaled(10s);
    options.progress.waiting.keeps_core = std::chrono::nanoseconds(0);
    options.transports = {
        {.name = "verbs", .make = [rank](const fabric::TransportContext& context) {
           const fabric::TransportFactory control{
               .name = "tcp", .make = [](const fabric::TransportContext& inner) {
                 return fabric::tcp::make_tcp(
                     inner, {.bind_address = "127.0.0.1", .eager_bytes = 256 << 10, .send_buffer_bytes = 4 << 20});
               }};
           return fabric::verbs::make_verbs(context, {.devices = {device_of(rank)}, .failure_detect = scaled(5s)},
                                            value_or_throw(fabric::verbs::load_verbs()), control);
         }}};
    fabric_ = value_or_throw(fabric::Fabric::create(std::move(options)));
    std::vector<std::vector<std::byte>> addresses(2);
    addresses[rank] = fabric_->address();
    if (!tell(socket, addresses[rank])) throw std::runtime_error("the other end has gone");
    addresses[other_] = hear(socket);
    value_or_throw(fabric_->start(addresses, {}));
    value_or_throw(fabric_->open_port(Traffic::kPort, tally_));
    memory_ = std::make_unique<Memory>(*fabric_, kBytes, true);
    memory_->fill(std::byte{0});
    if (!tell(socket, std::as_bytes(std::span(&memory_->region()->key(), 1)))) {
      throw std::runtime_error("the other end has gone");
    }
    const auto key = hear(socket);
    RemoteKey theirs;
    if (key.size() != sizeof theirs) throw std::runtime_error("the other end has gone");
    std::memcpy(&theirs, key.data(), sizeof theirs);
    remote_ = value_or_throw(fabric_->import(other_, theirs));
  }
  ~End() { fabric_->close_port(Traffic::kPort); }
  End(const End&) = delete;
  End& operator=(const End&) = delete;

  void post(Completion& done) {
    std::vector<WorkRequest> requests;
    for (std::size_t i = 0; i < kPieces; ++i) {
      const std::uint64_t at = kWords + i * kPiece;
      const auto value = static_cast<std::uint32_t>(i);
      switch (i % 4) {
        case 0:
          requests.push_back(WorkRequest::put_notify(own(at), {remote_, at}, kPiece, Traffic::kPort, value, &done));
          break;
        case 1:
          requests.push_back(WorkRequest::get({remote_, at}, own(at), kPiece, &done));
          break;
        case 2:
          requests.push_back(WorkRequest::fetch_add({remote_, 8 * i}, 1, own(8 * i + 8), &done));
          break;
        default:
          requests.push_back(WorkRequest::put(own(at), {remote_, at}, kPiece, &done));
      }
    }
    requests.push_back(WorkRequest::put(own(kBytes - kLarge), {remote_, kBytes - kLarge}, kLarge, &done));
    const std::uint32_t value = 1;
    requests.push_back(WorkRequest::send(Traffic::kPort, std::as_bytes(std::span(&value, 1)), &done).fenced());
    fabric_->submit(other_, requests, scaled(60s));
  }
  [[nodiscard]] Result<void> wait(Completion& done) { return fabric_->wait(done, other_, "kill", scaled(90s)); }
  [[nodiscard]] fabric::Fabric& fabric() { return *fabric_; }
  [[nodiscard]] Result<void> take_memory_back() { return memory_->unregister(10s); }

 private:
  [[nodiscard]] WorkRequest::Range own(std::uint64_t offset) const { return {memory_->region(), offset}; }

  fabric::PeerId other_;
  Tally tally_{kPieces};
  std::unique_ptr<fabric::Fabric> fabric_;
  std::unique_ptr<Memory> memory_;
  const RemoteRegion* remote_ = nullptr;
};

[[noreturn]] void be_the_victim(int socket) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  try {
    End end(1, socket);
    while (true) {
      Completion done;
      end.post(done);
      if (!end.wait(done)) break;
    }
  } catch (const std::exception&) {
  }
  while (true) ::pause();
}

TEST(VerbsKillTest, ThePeersRequestsEndInTimeWhereverItIsKilled) {
  const char* wanted = std::getenv("DTR_TEST_KILLS");
  const int kills = wanted == nullptr ? 10 : std::atoi(wanted);
  ASSERT_FALSE(device_of(0).empty()) << "run it by scripts/rdma-vm.sh";
  std::mt19937 random(std::random_device{}());
  int in_transfer = 0;
  for (int kill = 0; kill < kills; ++kill) {
    int sockets[2];
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets), 0);
    const pid_t victim = ::fork();
    ASSERT_GE(victim, 0);
    if (victim == 0) be_the_victim(sockets[1]);
    ::close(sockets[1]);
    {
      End end(0, sockets[0]);
      // From 0.1 ms, when the two are still connecting, to 0.3 s.
      const std::chrono::duration<double, std::milli> moment(
          std::pow(10.0, std::uniform_real_distribution<>(-1.0, 2.5)(random)));
      SCOPED_TRACE("kill " + std::to_string(kill) + " after ms " + std::to_string(moment.count()));
      std::atomic<std::chrono::steady_clock::time_point> died{std::chrono::steady_clock::time_point{}};
      std::thread killer([&] {
        std::this_thread::sleep_for(moment);
        ::kill(victim, SIGKILL);
        died = std::chrono::steady_clock::now();
      });
      std::array<Completion, 3> under_way;
      Result<void> ended{};
      int rounds = 0;
      for (auto& each : under_way) end.post(each);
      while (ended) {
        Completion& oldest = under_way[static_cast<std::size_t>(rounds) % under_way.size()];
        ended = end.wait(oldest);
        if (ended) end.post(oldest);
        ++rounds;
      }
      for (auto& each : under_way) {
        if (each.done()) continue;
        const auto other = end.wait(each);
        if (!other) {
          EXPECT_NE(other.error().code, Errc::timed_out) << other.error().to_string();
        }
      }
      const auto now = std::chrono::steady_clock::now();
      killer.join();
      EXPECT_LT(now - died.load(), scaled(15s));
      // The kernel may take a dead process's memory back before its queue pairs: then the target refuses a request
      // first.
      EXPECT_TRUE(ended.error().code == Errc::peer_failed || ended.error().code == Errc::revoked)
          << ended.error().to_string();
      Completion last;
      end.post(last);
      const auto later = end.wait(last);
      EXPECT_FALSE(later);
      EXPECT_EQ(ended.error().peer, 1);
      const auto mine = end.take_memory_back();
      EXPECT_TRUE(mine) << mine.error().to_string();
      const auto stopped = end.fabric().stop(scaled(10s));
      EXPECT_TRUE(stopped) << stopped.error().to_string();
      in_transfer += rounds > 1 ? 1 : 0;
    }
    ::close(sockets[0]);
    int status = 0;
    EXPECT_EQ(::waitpid(victim, &status, 0), victim);
    EXPECT_TRUE(WIFSIGNALED(status));
    if (HasFailure()) return;
  }
  std::printf("%d kills, %d of them after some transfers had finished\n", kills, in_transfer);
}

}  // namespace
}  // namespace dtr::testing
