// What the peers' programs share: times, and one line of JSON as a result, in the words of dtr_perf --json.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include <time.h>

namespace bench {

inline double now_us() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) * 1e6 + static_cast<double>(now.tv_nsec) * 1e-3;
}

/// PROGRAM OP BYTES ITERATIONS [more]
struct Arguments {
  std::string op{};
  std::size_t bytes = 0;
  std::uint64_t iterations = 0;
};

inline Arguments parse(int argc, char** argv) {
  Arguments arguments;
  if (argc >= 4) {
    arguments.op = argv[1];
    arguments.bytes = std::strtoull(argv[2], nullptr, 10);
    arguments.iterations = std::strtoull(argv[3], nullptr, 10);
  }
  if (arguments.bytes == 0 || arguments.iterations == 0) {
    std::fprintf(stderr, "%s OP BYTES ITERATIONS\n", argv[0]);
    std::exit(2);
  }
  return arguments;
}

inline std::uint64_t warm_up(std::uint64_t iterations) { return std::clamp<std::uint64_t>(iterations / 10, 2, 10000); }

/// `total_us` is of all operations; `each_us` may be empty.
inline void report(const Arguments& arguments, double total_us, std::vector<double> each_us = {}) {
  const auto operations = static_cast<double>(arguments.iterations);
  double median = total_us / operations;
  if (!each_us.empty()) {
    std::sort(each_us.begin(), each_us.end());
    median = each_us[each_us.size() / 2];
  }
  std::printf("{\"op\": \"%s\", \"size\": %zu, \"median_us\": %.6f, \"GBps\": %.6f, \"Mops\": %.6f}\n",
              arguments.op.c_str(), arguments.bytes, median,
              operations * static_cast<double>(arguments.bytes) / total_us * 1e-3, operations / total_us);
}

/// Calls `round` `iterations` times after a warm-up and keeps the time from one to the next, times `share`.
template <class Round>
std::vector<double> time_rounds(std::uint64_t iterations, double share, Round&& round) {
  std::vector<double> each;
  each.reserve(iterations);
  for (std::uint64_t i = warm_up(iterations); i > 0; --i) round();
  double last = now_us();
  for (std::uint64_t i = 0; i < iterations; ++i) {
    round();
    const double now = now_us();
    each.push_back((now - last) * share);
    last = now;
  }
  return each;
}

inline double sum(const std::vector<double>& values) {
  double all = 0;
  for (const double value : values) all += value;
  return all;
}

}  // namespace bench
