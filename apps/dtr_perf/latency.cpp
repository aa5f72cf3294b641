// One operation at a time. put and send: ping-pong, half of a round trip. get and atomic: from post
// to data.
#include "counter.hpp"
#include "perf.hpp"
#include "ticks.hpp"

namespace dtr::perf {

namespace {

using fabric::Completion;
using fabric::WorkRequest;

constexpr std::uint64_t kWarmUp = 1000;

/// Calls `round` with 1, 2, 3...; a sample is the time from the end of one to the end of the next, after the warm-up,
/// divided by `halves`.
template <class Round>
Samples time_rounds(std::uint64_t iterations, double halves, Round&& round) {
  const TickLength tick;
  std::vector<std::uint64_t> ends(iterations + 1);  // written once already: no page fault is timed
  for (std::uint64_t i = 1; i <= kWarmUp; ++i) round(i);
  ends[0] = ticks();
  for (std::uint64_t i = 1; i <= iterations; ++i) {
    round(kWarmUp + i);
    ends[i] = ticks();
  }
  Samples samples = make_samples(ends, tick.ns() / halves, 1);
  samples.warm_up = kWarmUp;
  return samples;
}

/// The last byte counts the rounds and is looked for where it lands. It is never 0, the sink's first content.
std::uint8_t mark_of(std::uint64_t round) { return static_cast<std::uint8_t>(1 + round % 255); }

Samples put_latency(Pair& pair, std::uint64_t iterations) {
  Completion done;
  const auto put = [&](std::uint64_t round) {
    spin_until(pair, [&] { return done.done(); });  // the last one has left its source
    pair.departure() = mark_of(round);
    post_all(pair, WorkRequest::put(pair.source(), pair.sink(), pair.size(), &done));
  };
  const auto come = [&](std::uint64_t round) { spin_until(pair, [&] { return pair.arrival() == mark_of(round); }); };
  auto samples = time_rounds(iterations, pair.alone() ? 1 : 2, [&](std::uint64_t round) {
    if (pair.starts()) put(round);
    come(round);
    if (!pair.starts()) put(round);
  });
  pair.wait(done);
  pair.meet("dtr_perf/put_lat");
  return samples;
}

Samples get_latency(Pair& pair, std::uint64_t iterations) {
  Samples samples;
  pair.arrival() = mark_of(0);  // a get takes from the peer's sink, to the own source
  pair.meet("dtr_perf/get_lat");
  if (pair.starts()) {
    Completion done;
    samples = time_rounds(iterations, 1, [&](std::uint64_t) {
      post_all(pair, WorkRequest::get(pair.sink(), pair.source(), pair.size(), &done));
      spin_until(pair, [&] { return done.done(); });
    });
    pair.wait(done);
    pair.check_moved(pair.departure(), mark_of(0));
  }
  pair.meet("dtr_perf/get_lat_end");
  return samples;
}

Samples atomic_latency(Pair& pair, std::uint64_t iterations) {
  Samples samples;
  if (pair.starts()) {
    Completion done;
    samples = time_rounds(iterations, 1, [&](std::uint64_t round) {
      post_all(pair, WorkRequest::fetch_add(pair.sink(), 1, pair.source(), &done));
      spin_until(pair, [&] { return done.done(); });
      if (pair.old_word() != round - 1) pair.wait(done), pair.check_moved(0, 1);
    });
    pair.wait(done);
  }
  pair.meet("dtr_perf/atomic_lat");
  return samples;
}

Samples send_latency(Pair& pair, std::uint64_t iterations) {
  Counter counter(pair.rt());
  pair.meet("dtr_perf/send_lat");
  const std::vector<std::byte> payload(pair.size());
  Completion done;
  const auto send = [&] { post_all(pair, WorkRequest::send(counter.port(), payload, &done)); };
  Samples samples = time_rounds(iterations, pair.alone() ? 1 : 2, [&](std::uint64_t round) {
    if (pair.starts()) send();
    counter.wait_for(round);
    if (!pair.starts()) send();
  });
  pair.wait(done);
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
    case Operation::atomic:
      return atomic_latency(pair, iterations);
    case Operation::message:
      break;  // see messages.cpp
  }
  return {};
}

}  // namespace dtr::perf
