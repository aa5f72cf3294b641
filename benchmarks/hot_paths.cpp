// What one operation costs its caller, path by path: two ranks in this process, both driven by this thread alone.
//   bench_hot_paths [options of Google Benchmark]
// DTR_BENCH_ITERATIONS=N: exactly so many operations each. Under callgrind each path leaves counts of its own, by which
// tests/house/instructions.py says how many instructions an operation is.
#include <array>
#include <cstdlib>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include <benchmark/benchmark.h>
#include <valgrind/callgrind.h>

#include "dtr/bootstrap/local.hpp"
#include "dtr/fabric/shm/shm.hpp"
#include "dtr/fabric/tcp/tcp.hpp"
#include "dtr/fabric/verbs/verbs.hpp"
#include "dtr/messaging/messenger.hpp"
#include "fabric/world.hpp"
#include "support/software_nic/software_nic.hpp"

namespace {

using namespace std::chrono_literals;
using dtr::value_or_throw;
using dtr::fabric::Completion;
using dtr::fabric::TransportContext;
using dtr::fabric::TransportFactory;
using dtr::fabric::WorkRequest;

constexpr dtr::fabric::Port kPort = 40;
constexpr std::size_t kBytes = 8;
constexpr std::size_t kBatch = 64;

/// What the NIC does is not counted.
class UncountedNic final : public dtr::software_nic::SoftwareNic {
 public:
  using SoftwareNic::SoftwareNic;
  int post_send(ibv_qp* queue_pair, ibv_send_wr* first, ibv_send_wr** bad) noexcept override {
    CALLGRIND_TOGGLE_COLLECT;
    const int error = SoftwareNic::post_send(queue_pair, first, bad);
    CALLGRIND_TOGGLE_COLLECT;
    return error;
  }
  int poll_cq(ibv_cq* queue, int entries, ibv_wc* completions) noexcept override {
    CALLGRIND_TOGGLE_COLLECT;
    const int count = SoftwareNic::poll_cq(queue, entries, completions);
    CALLGRIND_TOGGLE_COLLECT;
    return count;
  }
};

/// A way between two ranks, or of one to itself.
struct Way {
  dtr::testing::TransportCase transport;
  std::vector<std::shared_ptr<UncountedNic>> nics{};
};

Way loopback() { return {.transport = {.name = "loopback", .to_itself = true}}; }

Way over(TransportFactory factory) { return {.transport = {.name = factory.name, .transports = {std::move(factory)}}}; }

TransportFactory shm() {
  return {.name = "shm",
          .make = [](const TransportContext& context) { return dtr::fabric::shm::make_shm(context, {}); }};
}

TransportFactory tcp() {
  return {.name = "tcp", .make = [](const TransportContext& context) {
            return dtr::fabric::tcp::make_tcp(context, {.bind_address = "127.0.0.1"});
          }};
}

Way verbs() {
  const auto network = std::make_shared<dtr::software_nic::Network>();
  std::vector<std::shared_ptr<UncountedNic>> nics;
  for (const char* name : {"rank0", "rank1"}) {
    nics.push_back(std::make_shared<UncountedNic>(
        network, dtr::software_nic::NicOptions{.name = name, .host = "host", .devices = {}}));
  }
  Way way = over({.name = "verbs", .make = [nics](const TransportContext& context) {
                    return dtr::fabric::verbs::make_verbs(context, {}, nics[context.identity.self], tcp());
                  }});
  way.nics = nics;
  return way;
}

class Counter final : public dtr::fabric::PortHandler {
 public:
  void on_notify(dtr::fabric::PeerId, std::uint32_t) noexcept override { ++arrived; }
  void on_message(dtr::fabric::PeerId, std::span<const std::byte>) noexcept override { ++arrived; }
  void on_peer_down(dtr::fabric::PeerId, const dtr::Error&) noexcept override {}
  std::uint64_t arrived = 0;
};

/// Both ends of a way that is connected.
class Pair {
 public:
  explicit Pair(const Way& way)
      : world_(way.transport, {.progress_threads = false}),
        channel_(value_or_throw(world_.initiator().channel(world_.target_id()))),
        source_(world_.initiator(), kBatch * kBytes, true),
        sink_(world_.target(), kBatch * kBytes, true),
        remote_(value_or_throw(world_.initiator().import(world_.target_id(), sink_.region()->key()))) {
    value_or_throw(world_.target().open_port(kPort, counter_));
    const auto flush = WorkRequest::flush(&done_);
    world_.initiator().submit(world_.target_id(), {&flush, 1}, 60s);
    drive_until([&] { return done_.done(); });
    for (const auto& nic : way.nics) nic->set_execution(dtr::software_nic::Execution::complete_at_post);
    for (std::size_t i = 0; i < kBatch; ++i) {
      puts_.push_back(WorkRequest::put({source_.region(), i * kBytes}, {remote_, i * kBytes}, kBytes, &done_));
    }
  }
  ~Pair() { world_.target().close_port(kPort); }
  Pair(const Pair&) = delete;
  Pair& operator=(const Pair&) = delete;

  void put() { run({puts_.data(), 1}); }
  void put_batch() { run(puts_); }
  void get() {
    const auto get = WorkRequest::get({remote_, 0}, {source_.region(), 0}, kBytes, &done_);
    run({&get, 1});
  }
  /// Both ends look once.
  void drive() {
    world_.initiator().progress().poll();
    world_.target().progress().poll();
  }
  void send() {
    const auto message = WorkRequest::send(kPort, {source_.data(), kBytes}, &done_);
    const std::uint64_t before = counter_.arrived;
    run({&message, 1});
    if (counter_.arrived == before) drive_until([&] { return counter_.arrived != before; });
  }

 private:
  void run(std::span<const WorkRequest> requests) {
    done_.arm(static_cast<std::uint32_t>(requests.size()));
    while (true) {
      const auto result = channel_->post(requests, deadline_);
      if (result.finished > 0) done_.finish(result.finished, {});
      requests = requests.subspan(result.accepted);
      if (requests.empty()) break;
      drive();
    }
    if (!done_.done()) drive_until([&] { return done_.done(); });
  }
  template <class Ready>
  void drive_until(Ready&& ready) {
    while (true) {
      world_.initiator().progress().poll();
      if (ready()) return;
      if (&world_.target() != &world_.initiator()) world_.target().progress().poll();
    }
  }

  const dtr::Deadline deadline_{1h};
  Completion done_;
  Counter counter_;
  dtr::testing::World world_;
  dtr::fabric::Channel* channel_;
  dtr::testing::Memory source_;
  dtr::testing::Memory sink_;
  const dtr::fabric::RemoteRegion* remote_;
  std::vector<WorkRequest> puts_;
};

/// Both ends of tagged messages over shm.
class Messengers {
 public:
  Messengers() {
    auto bootstraps = dtr::local_bootstraps(2);
    by_both([&](std::size_t rank) {
      dtr::RuntimeOptions options;
      options.bootstrap = std::move(bootstraps[rank]);
      options.config.environment = dtr::ConfigPairs{};
      options.config.overrides = {{"transport.allow", "shm"}, {"progress.mode", "inline"}};
      ends_[rank].emplace(std::move(options));
    });
  }
  ~Messengers() {
    by_both([&](std::size_t rank) { ends_[rank].reset(); });
  }
  Messengers(const Messengers&) = delete;
  Messengers& operator=(const Messengers&) = delete;

  void message() {
    dtr::Messenger& sender = ends_[0]->messenger;
    dtr::Messenger& receiver = ends_[1]->messenger;
    const auto came = value_or_throw(receiver.recv(0, 1, in_));
    const auto sent = value_or_throw(sender.send(1, 1, out_));
    while (!sender.done(sent)) drive();
    value_or_throw(sender.wait(sent));
    value_or_throw(receiver.wait(came));
  }
  void drive() {
    for (auto& end : ends_) end->rt.fabric().progress().poll();
  }

 private:
  struct End {
    explicit End(dtr::RuntimeOptions options) : rt(std::move(options)), messenger(rt) {}
    dtr::Runtime rt;
    dtr::Messenger messenger;
  };

  static void by_both(const std::function<void(std::size_t)>& action) {
    std::array<std::exception_ptr, 2> failures;
    std::vector<std::thread> threads;
    for (std::size_t rank = 0; rank < 2; ++rank) {
      threads.emplace_back([&, rank] {
        try {
          action(rank);
        } catch (...) {
          failures[rank] = std::current_exception();
        }
      });
    }
    for (auto& thread : threads) thread.join();
    for (const auto& failure : failures) {
      if (failure) std::rethrow_exception(failure);
    }
  }

  std::array<std::optional<End>, 2> ends_{};
  std::array<std::byte, kBytes> out_{};
  std::array<std::byte, kBytes> in_{};
};

/// `operation` of `both`, and drive() of it.
template <class Both>
void measure(benchmark::State& state, const std::string& name, Both&& both, void (std::decay_t<Both>::*operation)()) {
  for (int i = 0; i < 1000; ++i) {  // afterwards what is made on first use is there
    (both.*operation)();
    both.drive();
  }
  std::this_thread::sleep_for(100ms);  // and what a transport does beside its start is done
  CALLGRIND_ZERO_STATS;
  for ([[maybe_unused]] auto each : state) (both.*operation)();
  CALLGRIND_DUMP_STATS_AT(name.c_str());
}

}  // namespace

int main(int argc, char** argv) {
  const char* const fixed = std::getenv("DTR_BENCH_ITERATIONS");
  const auto add_case = [&](const std::string& name, const std::function<void(benchmark::State&)>& run) {
    auto* made = benchmark::RegisterBenchmark(name.c_str(), run);
    if (fixed != nullptr) made->Iterations(std::atoi(fixed));
  };
  const auto add = [&](const std::string& name, Way (*way)(), void (Pair::*operation)()) {
    add_case(name, [=](benchmark::State& s) { measure(s, name, Pair(way()), operation); });
  };
  const auto add_one_sided = [&](const std::string& path, Way (*way)()) {
    add(path + "/put/8", way, &Pair::put);
    add(path + "/put/8x64", way, &Pair::put_batch);
    add(path + "/get/8", way, &Pair::get);
  };
  const auto over_shm = [] { return over(shm()); };
  const auto over_tcp = [] { return over(tcp()); };
  add_one_sided("loopback", loopback);
  add("loopback/send/8", loopback, &Pair::send);
  add_one_sided("shm", over_shm);
  add("shm/send/8", over_shm, &Pair::send);
  const std::string message = "shm/message/8";
  add_case(message, [=](benchmark::State& s) { measure(s, message, Messengers(), &Messengers::message); });
  add_one_sided("tcp", over_tcp);
  add("tcp/send/8", over_tcp, &Pair::send);
  add_one_sided("verbs", verbs);  // messages would have to be executed
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
