// What libdtr itself costs a descriptor over verbs: from Channel::post to the doorbell, on a software NIC that executes
// nothing. The time inside the NIC's post_send is taken off. One line of JSON: medians over many batches, ns.
//
//   bench_verbs_post BYTES BATCH ROUNDS
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "dtr/fabric/fabric.hpp"
#include "dtr/fabric/tcp/tcp.hpp"
#include "dtr/fabric/verbs/verbs.hpp"
#include "support/software_nic/software_nic.hpp"

namespace {

using namespace std::chrono_literals;
using dtr::value_or_throw;
using dtr::fabric::Completion;
using dtr::fabric::Fabric;
using dtr::fabric::WorkRequest;
namespace verbs = dtr::fabric::verbs;
namespace software_nic = dtr::software_nic;

std::uint64_t ticks() { return __builtin_ia32_rdtsc(); }

/// Knows how long it was inside of post_send.
class TimedNic final : public software_nic::SoftwareNic {
 public:
  using SoftwareNic::SoftwareNic;
  int post_send(ibv_qp* queue_pair, ibv_send_wr* first, ibv_send_wr** bad) noexcept override {
    const std::uint64_t start = ticks();
    const int error = SoftwareNic::post_send(queue_pair, first, bad);
    spent += ticks() - start;
    return error;
  }
  std::uint64_t spent = 0;
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

/// Rank 0 drives itself, rank 1 has a thread.
struct Ranks {
  Ranks() {
    const auto network = std::make_shared<software_nic::Network>();
    std::vector<std::vector<std::byte>> addresses;
    for (std::uint32_t rank = 0; rank < 2; ++rank) {
      const auto nic = std::make_shared<TimedNic>(
          network, software_nic::NicOptions{.name = rank == 0 ? "rank0" : "rank1", .host = "host", .devices = {}});
      if (rank == 0) nic0 = nic;
      const dtr::fabric::TransportFactory control{
          .name = "tcp", .make = [](const dtr::fabric::TransportContext& context) {
            return dtr::fabric::tcp::make_tcp(context, {.bind_address = "127.0.0.1"});
          }};
      dtr::fabric::FabricOptions options;
      options.identity = {.self = rank, .world = 2, .host_id = "host", .token = {}};
      options.transports = {{.name = "verbs", .make = [=](const dtr::fabric::TransportContext& context) {
                               return verbs::make_verbs(context, {}, nic, control);
                             }}};
      options.progress.thread = rank == 1;
      fabrics.push_back(value_or_throw(Fabric::create(std::move(options))));
      addresses.push_back(fabrics.back()->address());
    }
    for (auto& fabric : fabrics) value_or_throw(fabric->start(addresses, {}));
  }
  ~Ranks() {
    for (auto& fabric : fabrics) static_cast<void>(fabric->stop(2s));
  }
  std::shared_ptr<TimedNic> nic0;
  std::vector<std::unique_ptr<Fabric>> fabrics;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) return std::fprintf(stderr, "usage: %s BYTES BATCH ROUNDS\n", argv[0]), 2;
  const std::uint64_t bytes = std::strtoull(argv[1], nullptr, 10);
  const std::uint64_t batch = std::strtoull(argv[2], nullptr, 10);
  const std::uint64_t rounds = std::strtoull(argv[3], nullptr, 10);
  Ranks ranks;
  Fabric& own = *ranks.fabrics[0];
  dtr::Region* source = value_or_throw(own.allocate_segment(bytes * batch));
  dtr::Region* sink = value_or_throw(ranks.fabrics[1]->allocate_segment(bytes * batch));
  const auto* remote = value_or_throw(own.import(1, sink->key()));
  Completion connected;
  const auto flush = WorkRequest::flush(&connected);
  own.submit(1, {&flush, 1}, 10s);
  value_or_throw(own.wait(connected, 1, "connect", 10s));
  dtr::fabric::Channel& channel = *value_or_throw(own.channel(1));
  ranks.nic0->set_execution(software_nic::Execution::complete_at_post);

  Completion done;
  std::vector<WorkRequest> requests;
  for (std::uint64_t i = 0; i < batch; ++i) {
    requests.push_back(WorkRequest::put({source, i * bytes}, {remote, i * bytes}, bytes, &done));
  }
  const std::uint64_t first_tick = ticks();
  const auto first_time = std::chrono::steady_clock::now();
  std::vector<double> post;
  std::vector<double> whole;
  for (std::uint64_t round = 0; round < rounds + rounds / 10 + 1; ++round) {
    done.arm(static_cast<std::uint32_t>(batch));
    ranks.nic0->spent = 0;
    const std::uint64_t start = ticks();
    const auto result = channel.post(requests, 10s);
    const std::uint64_t posted = ticks() - start - ranks.nic0->spent;
    if (result.accepted != batch) return std::fprintf(stderr, "%u of the batch taken\n", result.accepted), 1;
    while (!done.done()) own.progress().poll();
    if (round <= rounds / 10) continue;
    post.push_back(static_cast<double>(posted));
    whole.push_back(static_cast<double>(ticks() - start - ranks.nic0->spent));
  }
  const std::chrono::duration<double, std::nano> passed = std::chrono::steady_clock::now() - first_time;
  const double scale = passed.count() / static_cast<double>(ticks() - first_tick) / static_cast<double>(batch);
  std::printf("{\"post_ns\": %.2f, \"whole_ns\": %.2f}\n", median(post) * scale, median(whole) * scale);
  ranks.nic0->set_execution(software_nic::Execution::normal);
  return 0;
}
