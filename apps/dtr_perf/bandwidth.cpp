// Many operations at a time: windows of requests, two of them under way. Rank 0 works, rank 1 is the target.
#include <array>

#include "counter.hpp"
#include "perf.hpp"
#include "ticks.hpp"

namespace dtr::perf {

namespace {

using fabric::Completion;
using fabric::WorkRequest;

constexpr std::uint64_t kWindow = 64;
constexpr std::uint64_t kWarmUpWindows = 3;
constexpr std::uint8_t kMark = 0xA5;

/// How a number of operations is cut up; both ranks come to the same.
struct Windows {
  Windows(std::uint64_t iterations, std::uint64_t batch)
      : posts(std::clamp<std::uint64_t>(iterations / 16, batch, std::max(kWindow, batch)) / batch),
        operations(posts * batch),
        measured(std::max<std::uint64_t>(1, iterations / operations)) {}

  std::uint64_t posts;       ///< calls in a window
  std::uint64_t operations;  ///< in a window
  std::uint64_t measured;    ///< windows
  [[nodiscard]] std::uint64_t all_operations() const { return (kWarmUpWindows + measured) * operations; }
};

/// Posts `batch` requests a call; the time of each window is a sample. Only the last request of a window tells that it
/// has ended: it ends after those before it. The run is over when a flush says that all has reached the target.
Samples run_windows(Pair& pair, const Windows& windows, std::uint32_t batch, const WorkRequest& request) {
  const std::vector<WorkRequest> requests(batch, request);
  std::vector<WorkRequest> last = requests;
  std::array<Completion, 2> done;
  const TickLength tick;
  std::vector<std::uint64_t> ends;
  ends.reserve(windows.measured + 1);
  for (std::uint64_t i = 0; i < kWarmUpWindows + windows.measured; ++i) {
    if (i == kWarmUpWindows) {
      for (const Completion& completion : done) spin_until(pair, [&] { return completion.done(); });
      ends.push_back(ticks());
    }
    Completion& mine = done[i % done.size()];
    spin_until(pair, [&] { return mine.done(); });
    for (std::uint64_t post = 1; post < windows.posts; ++post) post_all(pair, requests);
    last.back().completion = &mine;
    post_all(pair, last);
    if (i >= kWarmUpWindows) ends.push_back(ticks());
  }
  for (const Completion& completion : done) pair.wait(completion);
  Completion flushed;
  post_all(pair, WorkRequest::flush(&flushed));
  pair.wait(flushed);
  const auto whole = static_cast<double>(ticks() - ends.front());
  Samples samples = make_samples(ends, tick.ns(), windows.operations);
  samples.total_ns = whole * tick.ns();
  samples.warm_up = kWarmUpWindows * windows.operations;
  return samples;
}

Samples move_bandwidth(Pair& pair, Operation operation, const Windows& windows, std::uint32_t batch) {
  Samples samples;
  const bool put = operation == Operation::put;
  if (put) {
    pair.departure() = kMark;
  } else {
    pair.arrival() = kMark;  // a get takes from the peer's sink, to the own source
  }
  pair.meet("dtr_perf/bw");
  if (pair.starts()) {
    samples = run_windows(pair, windows, batch,
                          put ? WorkRequest::put(pair.source(), pair.sink(), pair.size(), nullptr)
                              : WorkRequest::get(pair.sink(), pair.source(), pair.size(), nullptr));
  }
  pair.meet("dtr_perf/bw_end");
  if (pair.alone() || pair.starts() != put) pair.check_moved(put ? pair.arrival() : pair.departure(), kMark);
  return samples;
}

Samples send_bandwidth(Pair& pair, const Windows& windows, std::uint32_t batch) {
  Counter counter(pair.rt());
  pair.meet("dtr_perf/send_bw");
  const std::vector<std::byte> payload(pair.size());
  Samples samples;
  if (pair.starts()) {
    samples = run_windows(pair, windows, batch, WorkRequest::send(counter.port(), payload, nullptr));
    const TickLength tick;
    const std::uint64_t posted = ticks();
    // The run ends when the target has handled the last message, and says so.
    counter.wait_for(pair.alone() ? windows.all_operations() : 1);
    samples.total_ns += static_cast<double>(ticks() - posted) * tick.ns();
  } else {
    counter.wait_for(windows.all_operations());
    Completion done;
    post_all(pair, WorkRequest::send(counter.port(), {}, &done));
    pair.wait(done);
  }
  pair.meet("dtr_perf/send_bw_end");
  return samples;
}

}  // namespace

Samples measure_bandwidth(Pair& pair, Operation operation, std::uint64_t iterations, std::uint32_t batch) {
  const Windows windows(iterations, batch);
  return operation == Operation::send ? send_bandwidth(pair, windows, batch)
                                      : move_bandwidth(pair, operation, windows, batch);
}

}  // namespace dtr::perf
