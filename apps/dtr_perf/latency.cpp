// One operation at a time. put and send: ping-pong, half of a round trip. get: from post to data.
#include "counter.hpp"
#include "dtr/base/clock.hpp"
#include "perf.hpp"

namespace dtr::perf {

namespace {

using fabric::Completion;
using fabric::WorkRequest;

constexpr std::uint64_t kWarmUp = 200;

/// Calls `round` with 1, 2, 3...; keeps the times of those after the warm-up, divided by `halves`.
template <class Round>
Samples time_rounds(std::uint64_t iterations, double halves, Round&& round) {
  Samples samples;
  samples.each_ns.reserve(iterations);
  std::int64_t start = 0;
  for (std::uint64_t i = 1; i <= kWarmUp + iterations; ++i) {
    if (i == kWarmUp + 1) start = monotonic_ns();
    const std::int64_t before = monotonic_ns();
    round(i);
    if (i > kWarmUp) samples.each_ns.push_back(static_cast<double>(monotonic_ns() - before) / halves);
  }
  samples.total_ns = static_cast<double>(monotonic_ns() - start) / halves;
  samples.operations = iterations;
  return samples;
}

Samples put_latency(Pair& pair, std::uint64_t iterations) {
  // The last byte counts the rounds and is looked for where it lands. It is never 0, the sink's first content.
  const auto put = [&](std::uint64_t round) {
    pair.departure() = static_cast<std::uint8_t>(1 + round % 255);
    Completion done;
    const WorkRequest request = WorkRequest::put(pair.source(), pair.sink(), pair.size(), &done);
    post_all(pair, std::span(&request, 1), done);
    spin_until(pair, [&] { return done.done(); });
  };
  const auto come = [&](std::uint64_t round) {
    spin_until(pair, [&] { return pair.arrival() == static_cast<std::uint8_t>(1 + round % 255); });
  };
  if (pair.other() == pair.rt().rank()) return time_rounds(iterations, 1, put);
  return time_rounds(iterations, 2, [&](std::uint64_t round) {
    if (pair.starts()) put(round);
    come(round);
    if (!pair.starts()) put(round);
  });
}

Samples get_latency(Pair& pair, std::uint64_t iterations) {
  Samples samples;
  if (pair.starts()) {
    samples = time_rounds(iterations, 1, [&](std::uint64_t) {
      Completion done;
      const WorkRequest request = WorkRequest::get(pair.sink(), pair.source(), pair.size(), &done);
      post_all(pair, std::span(&request, 1), done);
      spin_until(pair, [&] { return done.done(); });
    });
  }
  pair.meet("dtr_perf/get_lat");
  return samples;
}

Samples send_latency(Pair& pair, std::uint64_t iterations) {
  Counter counter(pair.rt());
  pair.meet("dtr_perf/send_lat");
  const std::vector<std::byte> payload(pair.size());
  const auto send = [&] {
    Completion done;
    const WorkRequest request = WorkRequest::send(counter.port(), payload, &done);
    post_all(pair, std::span(&request, 1), done);
  };
  const bool alone = pair.other() == pair.rt().rank();
  Samples samples = time_rounds(iterations, alone ? 1 : 2, [&](std::uint64_t round) {
    if (pair.starts()) send();
    counter.wait_for(round);
    if (!pair.starts()) send();
  });
  pair.meet("dtr_perf/send_lat_end");
  return samples;
}

}  // namespace

Samples measure_latency(Pair& pair, Operation operation, std::uint64_t iterations) {
  switch (operation) {
    case Operation::put:
      return put_latency(pair, iterations);
    case Operation::get:
      return get_latency(pair, iterations);
    case Operation::send:
      return send_latency(pair, iterations);
  }
  return {};
}

}  // namespace dtr::perf
