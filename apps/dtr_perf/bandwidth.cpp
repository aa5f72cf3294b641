// Many operations at a time: batches, two of them under way. Rank 0 works, rank 1 is the target.
#include <array>

#include "counter.hpp"
#include "dtr/base/clock.hpp"
#include "perf.hpp"

namespace dtr::perf {

namespace {

using fabric::Completion;
using fabric::WorkRequest;

constexpr std::uint64_t kWarmUpBatches = 3;

/// Posts batches until `iterations` operations have ended; the time of each batch is a sample.
Samples run_batches(Pair& pair, std::uint64_t iterations, std::vector<WorkRequest>& requests) {
  const std::uint64_t batch = requests.size();
  const std::uint64_t batches = std::max<std::uint64_t>(1, iterations / batch);
  Samples samples;
  samples.each_ns.reserve(batches);
  std::array<Completion, 2> done;
  std::int64_t start = 0;
  std::int64_t last = 0;
  for (std::uint64_t i = 0; i < kWarmUpBatches + batches; ++i) {
    if (i == kWarmUpBatches) {
      for (Completion& completion : done) spin_until(pair, [&] { return completion.done(); });
      start = last = monotonic_ns();
    }
    Completion& mine = done[i % done.size()];
    spin_until(pair, [&] { return mine.done(); });
    for (WorkRequest& request : requests) request.completion = &mine;
    post_all(pair, requests, mine);
    const std::int64_t now = monotonic_ns();
    if (i >= kWarmUpBatches) samples.each_ns.push_back(static_cast<double>(now - last) / static_cast<double>(batch));
    last = now;
  }
  for (Completion& completion : done) {
    spin_until(pair, [&] { return completion.done(); });
    if (!completion.status().ok()) {
      throw Exception(
          pair.rt().fabric().explain(static_cast<fabric::PeerId>(pair.other()), completion.status(), "dtr_perf"));
    }
  }
  samples.total_ns = static_cast<double>(monotonic_ns() - start);
  samples.operations = batches * batch;
  return samples;
}

Samples move_bandwidth(Pair& pair, Operation operation, std::uint64_t iterations, std::uint32_t batch) {
  Samples samples;
  if (pair.starts()) {
    const WorkRequest request = operation == Operation::put
                                    ? WorkRequest::put(pair.source(), pair.sink(), pair.size(), nullptr)
                                    : WorkRequest::get(pair.sink(), pair.source(), pair.size(), nullptr);
    std::vector<WorkRequest> requests(batch, request);
    samples = run_batches(pair, iterations, requests);
  }
  pair.meet("dtr_perf/bw");
  return samples;
}

Samples send_bandwidth(Pair& pair, std::uint64_t iterations, std::uint32_t batch) {
  Counter counter(pair.rt());
  pair.meet("dtr_perf/send_bw");
  const std::uint64_t batches = std::max<std::uint64_t>(1, iterations / batch);
  const std::uint64_t messages = (kWarmUpBatches + batches) * batch;
  const std::vector<std::byte> payload(pair.size());
  Samples samples;
  const bool alone = pair.other() == pair.rt().rank();
  if (pair.starts()) {
    std::vector<WorkRequest> requests(batch, WorkRequest::send(counter.port(), payload, nullptr));
    samples = run_batches(pair, iterations, requests);
    const std::int64_t posted = monotonic_ns();
    // The run ends when the target has handled the last message, and says so.
    counter.wait_for(alone ? messages : 1);
    samples.total_ns += static_cast<double>(monotonic_ns() - posted);
  } else {
    counter.wait_for(messages);
    Completion done;
    const WorkRequest answer = WorkRequest::send(counter.port(), {}, &done);
    post_all(pair, std::span(&answer, 1), done);
    spin_until(pair, [&] { return done.done(); });
  }
  pair.meet("dtr_perf/send_bw_end");
  return samples;
}

}  // namespace

Samples measure_bandwidth(Pair& pair, Operation operation, std::uint64_t iterations, std::uint32_t batch) {
  return operation == Operation::send ? send_bandwidth(pair, iterations, batch)
                                      : move_bandwidth(pair, operation, iterations, batch);
}

}  // namespace dtr::perf
