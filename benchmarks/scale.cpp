// What grows with the job, with the real data structures and without a network.
//
//   bench_scale world RANKS USED   one rank of a simulated job (tests/support/simulated_world.hpp): start-up without
//   MPI,
//                                  memory, connections to USED random peers, messages to them, looks of progress
//   bench_scale tcp PEERS ACTIVE   real tcp, one thread: a process with PEERS connected peers, which another process
//                                  plays; ACTIVE of them exchange messages, then all of them do
//
// Prints a line of JSON.
#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <deque>
#include <fstream>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "dtr/fabric/tcp/tcp.hpp"
#include "dtr/runtime/detail/introduction.hpp"
#include "dtr/runtime/runtime.hpp"
#include "held_memory.hpp"
#include "measure.hpp"
#include "support/simulated_world.hpp"

namespace {

using namespace std::chrono_literals;
using bench::held_kib;
using bench::now_us;
using dtr::fabric::WorkRequest;

constexpr int kRanksAHost = 8;
constexpr std::array<std::byte, 8> kWord{};

double resident_kib() {
  std::ifstream file("/proc/self/statm");
  double pages = 0;
  double present = 0;
  file >> pages >> present;
  return present * static_cast<double>(::sysconf(_SC_PAGESIZE)) / 1024;
}

/// The best of some rounds: the rest is what else happened.
template <class Work>
double best_us(int rounds, Work&& work) {
  double best = 1e30;
  for (int i = 0; i < rounds; ++i) {
    const double start = now_us();
    work();
    best = std::min(best, now_us() - start);
  }
  return best;
}

// --- world ---

dtr::RuntimeOptions options_of(int rank, int ranks, dtr::testing::Asked& asked) {
  dtr::RuntimeOptions options;
  options.bootstrap = std::make_unique<dtr::testing::SimulatedWorld>(rank, ranks, kRanksAHost);
  options.transports = dtr::testing::stand_ins(asked);
  options.config.overrides = {{"progress.mode", "inline"}};
  return options;
}

/// A host id as long as a real one, and everybody's records; what making them takes is not libdtr's.
std::vector<dtr::Bytes> records_of(int ranks) {
  dtr::testing::Asked asked;
  dtr::fabric::FabricOptions options;
  options.identity = {.self = 0, .world = static_cast<std::uint32_t>(ranks), .host_id = dtr::host_id(), .token = {}};
  options.transports = dtr::testing::stand_ins(asked);
  options.progress.thread = false;
  const auto fabric = dtr::value_or_throw(dtr::fabric::Fabric::create(std::move(options)));
  dtr::Introduction mine;
  mine.host = fabric->identity().host_id;
  mine.address = fabric->address();
  return dtr::testing::SimulatedWorld::records_like(mine.pack(), 0, ranks, kRanksAHost);
}

int world(int ranks, int used_count) {
  const auto records = records_of(ranks);
  std::size_t bytes = 0;
  for (const auto& record : records) bytes += record.size();

  std::vector<dtr::Introduction> known(records.size());
  const double decode = best_us(5, [&] {
    for (std::size_t r = 0; r < records.size(); ++r) {
      known[r] = dtr::value_or_throw(dtr::Introduction::unpack(records[r], static_cast<int>(r)));
    }
  });
  const double encode = best_us(5, [&] { static_cast<void>(known.back().pack()); });
  std::vector<std::string> hosts;
  std::vector<dtr::Bytes> addresses;
  for (const auto& introduction : known) {
    hosts.push_back(introduction.host);
    addresses.push_back(introduction.address);
  }
  const double place = best_us(5, [&] { static_cast<void>(dtr::place_on_host(hosts, ranks - 1)); });

  dtr::testing::Asked asked;
  double paths = 1e30;
  double paths_kib = 0;
  for (int round = 0; round < 3; ++round) {
    dtr::fabric::FabricOptions options;
    options.identity = {.self = 0, .world = static_cast<std::uint32_t>(ranks), .host_id = dtr::host_id(), .token = {}};
    options.transports = dtr::testing::stand_ins(asked);
    options.progress.thread = false;
    const auto fabric = dtr::value_or_throw(dtr::fabric::Fabric::create(std::move(options)));
    const double before = held_kib();
    const double start = now_us();
    dtr::value_or_throw(fabric->start(addresses, {}));
    paths = std::min(paths, now_us() - start);
    paths_kib = held_kib() - before;
  }

  const double before_init = held_kib();
  const double start = now_us();
  auto rt = dtr::value_or_throw(dtr::Runtime::init(options_of(0, ranks, asked)));
  const double init = now_us() - start;  // with the making of the records
  const double init_kib = held_kib() - before_init;
  const double made = best_us(3, [&] {
    static_cast<void>(dtr::testing::SimulatedWorld::records_like(known[0].pack(), 0, ranks, kRanksAHost));
  });

  auto& fabric = rt->fabric();
  constexpr int kLooks = 100'000;
  const auto look_ns = [&] {
    return best_us(5,
                   [&] {
                     for (int i = 0; i < kLooks; ++i) static_cast<void>(rt->progress());
                   }) *
           1000 / kLooks;
  };
  const double idle_look = look_ns();
  std::mt19937 random(7);
  std::set<dtr::fabric::PeerId> chosen;
  while (static_cast<int>(chosen.size()) < std::min(used_count, ranks - 1)) {
    chosen.insert(1 + static_cast<dtr::fabric::PeerId>(random() % static_cast<unsigned>(ranks - 1)));
  }
  std::vector<dtr::fabric::PeerId> used(chosen.begin(), chosen.end());
  std::shuffle(used.begin(), used.end(), random);
  dtr::fabric::Completion done;
  const auto request = WorkRequest::send(200, kWord, &done);
  const std::uint64_t connects = asked.connects;
  const double before_connect = held_kib();
  const double connect_start = now_us();
  for (const auto peer : used) fabric.submit(peer, std::span(&request, 1), 60s);
  const double connect = (now_us() - connect_start) / static_cast<double>(used.size());
  const double connect_kib = (held_kib() - before_connect) / static_cast<double>(used.size());
  const auto connected = static_cast<unsigned long long>(asked.connects - connects);
  constexpr int kRounds = 2000;
  const double message = best_us(5,
                                 [&] {
                                   for (int i = 0; i < kRounds; ++i) {
                                     for (const auto peer : used) fabric.submit(peer, std::span(&request, 1), 60s);
                                   }
                                 }) *
                         1000 / kRounds / static_cast<double>(used.size());
  const double used_look = look_ns();
  asked.full = true;
  fabric.submit(used.front(), std::span(&request, 1), 600s);  // one has no room
  const double waiting_look = look_ns();
  asked.full = false;
  const double beats = best_us(5, [&] { dtr::value_or_throw(rt->heartbeat()); });
  std::printf("{\"ranks\": %d, \"record_bytes\": %.1f, \"encode_us\": %.3f, \"decode_us\": %.1f, \"place_us\": %.1f, ",
              ranks, static_cast<double>(bytes) / ranks, encode, decode, place);
  std::printf("\"paths_us\": %.1f, \"paths_kib\": %.1f, \"init_us\": %.1f, \"init_kib\": %.1f, ", paths, paths_kib,
              init - made, init_kib);
  std::printf("\"connects\": %llu, \"connect_us\": %.3f, \"connect_kib\": %.3f, \"message_ns\": %.1f, ", connected,
              connect, connect_kib, message);
  std::printf("\"idle_look_ns\": %.1f, \"used_look_ns\": %.1f, \"waiting_look_ns\": %.1f, \"heartbeat_us\": %.2f}\n",
              idle_look, used_look, waiting_look, beats);
  return 0;
}

// --- tcp ---

/// Counts what arrives.
struct Counter final : dtr::fabric::Receiver {
  void on_notify(dtr::fabric::PeerId, dtr::fabric::Port, std::uint32_t) noexcept override { ++arrived; }
  void on_message(dtr::fabric::PeerId from, dtr::fabric::Port, std::span<const std::byte>) noexcept override {
    ++arrived;
    last = from;
  }
  void on_peer_down(dtr::fabric::PeerId, dtr::Errc, std::string_view) noexcept override {}
  std::uint64_t arrived = 0;
  dtr::fabric::PeerId last = 0;
};

struct Node {
  Node(dtr::fabric::PeerId self, int peers, dtr::RegionTable& regions) {
    identity.self = self;
    identity.world = static_cast<std::uint32_t>(peers + 1);
    identity.token.fill(std::byte{7});
    dtr::fabric::tcp::TcpOptions options{.bind_address = "127.0.0.1"};
    if (self != 0) options.max_pending_handshakes = 4;
    transport = dtr::value_or_throw(
        dtr::fabric::tcp::make_tcp({.identity = identity, .regions = regions, .receiver = counter}, options));
  }
  void progress() { static_cast<void>(transport->progress(256)); }

  dtr::fabric::Identity identity{};
  Counter counter;
  std::unique_ptr<dtr::fabric::Transport> transport;
};

/// What the two processes say to each other outside of tcp.
struct Board {
  static constexpr std::size_t kAddress = 64;
  std::atomic<int> hub_ready{0};
  std::atomic<int> peers_ready{0};
  std::atomic<int> wanted{0};     ///< so many of the peers are to connect
  std::atomic<int> connected{0};  ///< so many have
  std::atomic<int> phase{0};      ///< 1: only the active ones are asked; 2: all of them; 3: over
  std::array<std::byte, kAddress> hub{};
  std::size_t hub_bytes = 0;
  std::array<std::byte, kAddress> address[1 << 14];
};

template <class Ready>
void spin_until(Ready&& ready) {
  const double start = now_us();
  while (!ready()) {
    if (now_us() - start > 60e6) {
      std::fprintf(stderr, "nothing happens any more\n");
      std::_Exit(1);
    }
  }
}

void send(dtr::fabric::Channel& channel, Node& node) {
  const auto request = WorkRequest::send(5, kWord, nullptr);
  while (channel.post(std::span(&request, 1), 60s).accepted == 0) node.progress();
}

/// All peers, by one thread: the active ones are looked at all the time, the rest seldom. Answers every message.
void play_peers(Board& board, int peers, int active) {
  const auto regions = dtr::value_or_throw(dtr::RegionTable::create());
  std::deque<Node> nodes;
  for (int i = 0; i < peers; ++i) {
    Node& node = nodes.emplace_back(static_cast<dtr::fabric::PeerId>(i + 1), peers, *regions);
    const auto address = node.transport->address();
    board.hub_bytes = address.size();
    std::copy(address.begin(), address.end(), board.address[i].begin());
  }
  board.peers_ready = 1;
  spin_until([&] { return board.hub_ready == 1; });
  std::vector<std::unique_ptr<dtr::fabric::Channel>> channels;
  std::vector<std::uint64_t> answered(nodes.size());
  const auto look_at = [&](std::size_t i) {
    nodes[i].progress();
    if (nodes[i].counter.arrived == answered[i]) return;
    ++answered[i];
    send(*channels[i], nodes[i]);
  };
  for (std::uint64_t round = 0; board.phase != 3; ++round) {
    const auto wanted = static_cast<std::size_t>(board.wanted);
    for (std::size_t i = channels.size(); i < wanted; ++i) {
      channels.push_back(dtr::value_or_throw(
          nodes[i].transport->connect(0, std::span(board.hub).first(board.hub_bytes), dtr::Deadline(60s))));
    }
    const bool all = board.phase != 1 || round % 4096 == 0;
    for (std::size_t i = 0; i < wanted; ++i) {
      if (!all && i >= static_cast<std::size_t>(active)) break;
      look_at(i);
    }
    if (static_cast<std::size_t>(board.connected) == wanted) continue;
    if (std::all_of(channels.begin(), channels.end(),
                    [](const auto& channel) { return channel->state() == dtr::fabric::ChannelState::open; })) {
      board.connected = static_cast<int>(wanted);
    }
  }
}

int tcp(int peers, int active) {
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  if (::setrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur < static_cast<rlim_t>(6 * peers + 64)) {
    std::fprintf(stderr, "%d peers need %d descriptors\n", peers, 6 * peers + 64);
    return 1;
  }
  void* shared = ::mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (shared == MAP_FAILED || peers > 1 << 14) return 1;
  auto& board = *new (shared) Board;
  const pid_t child = ::fork();
  if (child == 0) {
    play_peers(board, peers, active);
    std::_Exit(0);
  }
  const auto regions = dtr::value_or_throw(dtr::RegionTable::create());
  Node hub(0, peers, *regions);
  spin_until([&] { return board.peers_ready == 1; });
  const auto address = hub.transport->address();
  std::copy(address.begin(), address.end(), board.hub.begin());
  board.hub_ready = 1;
  std::vector<std::unique_ptr<dtr::fabric::Channel>> channels;
  const auto connect_up_to = [&](int count) {
    for (int i = static_cast<int>(channels.size()); i < count; ++i) {
      const auto to = std::span(board.address[i]).first(board.hub_bytes);
      channels.push_back(
          dtr::value_or_throw(hub.transport->connect(static_cast<dtr::fabric::PeerId>(i + 1), to, dtr::Deadline(60s))));
    }
    board.wanted = count;
    spin_until([&] {
      hub.progress();
      return board.connected == count && std::all_of(channels.begin(), channels.end(), [](const auto& channel) {
               return channel->state() == dtr::fabric::ChannelState::open;
             });
    });
  };
  const auto middle = [](std::vector<double>& values) {
    const auto half = static_cast<std::ptrdiff_t>(values.size() / 2);
    std::nth_element(values.begin(), values.begin() + half, values.end());
    return values[values.size() / 2];
  };
  const auto ping = [&](int peer) {
    const std::uint64_t before = hub.counter.arrived;
    send(*channels[static_cast<std::size_t>(peer)], hub);
    while (hub.counter.arrived == before) hub.progress();
  };
  struct Costs {
    double half_round;
    double work;  ///< of this process for a message and its answer: its posts, and looks that found something
  };
  const auto measure = [&] {
    const int count = static_cast<int>(channels.size());
    board.phase = 1;
    const int few = std::min(active, count);
    for (int i = 0; i < 2000; ++i) ping(i % few);
    std::vector<double> rounds;
    for (int i = 0; i < 20'000; ++i) {
      const double sent = now_us();
      ping(i % few);
      rounds.push_back(now_us() - sent);
    }
    board.phase = 2;
    std::vector<double> work;
    const int times = std::max(20, 20'000 / count);
    for (int i = 0; i < times; ++i) {
      const std::uint64_t before = hub.counter.arrived;
      double last = now_us();
      for (auto& channel : channels) send(*channel, hub);
      double busy = now_us() - last;
      while (hub.counter.arrived < before + channels.size()) {
        last = now_us();
        if (hub.transport->progress(256) > 0) busy += now_us() - last;
      }
      work.push_back(busy / count);
    }
    return Costs{middle(rounds) / 2, middle(work)};
  };
  connect_up_to(1);
  const Costs one = measure();
  const double held = held_kib();
  const double resident = resident_kib();
  const double start = now_us();
  connect_up_to(peers);
  const double connect = (now_us() - start) / peers;
  const Costs all = measure();
  const double used_kib = (held_kib() - held) / peers;
  const double used_resident = (resident_kib() - resident) / peers;
  board.phase = 3;
  int status = 0;
  ::waitpid(child, &status, 0);
  std::printf("{\"peers\": %d, \"connect_us\": %.2f, \"half_round_us\": %.3f, \"work_us\": %.3f, ", peers, connect,
              all.half_round, all.work);
  std::printf("\"one_half_round_us\": %.3f, \"one_work_us\": %.3f, \"held_kib\": %.1f, \"resident_kib\": %.1f}\n",
              one.half_round, one.work, used_kib, used_resident);
  return status == 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc == 4 && std::strcmp(argv[1], "world") == 0) return world(std::atoi(argv[2]), std::atoi(argv[3]));
    if (argc == 4 && std::strcmp(argv[1], "tcp") == 0) return tcp(std::atoi(argv[2]), std::atoi(argv[3]));
  } catch (const dtr::Exception& failure) {
    std::fprintf(stderr, "%s\n", failure.what());
    return 1;
  }
  std::fprintf(stderr, "%s world RANKS USED | tcp PEERS ACTIVE\n", argv[0]);
  return 2;
}
