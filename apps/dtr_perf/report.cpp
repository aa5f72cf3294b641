#include <algorithm>
#include <cstdio>

#include <nlohmann/json.hpp>

#include "dtr/base/file.hpp"
#include "perf.hpp"

namespace dtr::perf {

namespace {

double quantile(const std::vector<double>& sorted, double q) {
  if (sorted.empty()) return 0;
  const auto index = static_cast<std::size_t>(q * static_cast<double>(sorted.size()));
  return sorted[std::min(index, sorted.size() - 1)];
}

}  // namespace

Samples make_samples(const std::vector<std::uint64_t>& ends, double tick_ns, std::uint64_t operations) {
  Samples samples;
  samples.each_ns.reserve(ends.size());
  for (std::size_t i = 1; i < ends.size(); ++i) {
    samples.each_ns.push_back(static_cast<double>(ends[i] - ends[i - 1]) * tick_ns / static_cast<double>(operations));
  }
  samples.total_ns = static_cast<double>(ends.back() - ends.front()) * tick_ns;
  samples.operations = (ends.size() - 1) * operations;
  return samples;
}

Row make_row(const Plan& plan, const Pair& pair, Samples samples) {
  std::sort(samples.each_ns.begin(), samples.each_ns.end());
  Row row{.op = plan.name,
          .transport = pair.rt().fabric().path(static_cast<fabric::PeerId>(pair.other())).transport,
          .size = pair.size(),
          .median_us = quantile(samples.each_ns, 0.5) / 1e3,
          .p99_us = quantile(samples.each_ns, 0.99) / 1e3,
          .p999_us = quantile(samples.each_ns, 0.999) / 1e3,
          .operations = samples.warm_up + samples.operations};
  if (samples.total_ns > 0) {
    row.mops = static_cast<double>(samples.operations) / samples.total_ns * 1e3;
    row.gbps = static_cast<double>(samples.operations) * static_cast<double>(row.size) / samples.total_ns;
  }
  return row;
}

void print_header() {
  std::printf("%-10s %-10s %12s %12s %12s %12s %10s %10s\n", "op", "transport", "bytes", "median us", "p99 us",
              "p99.9 us", "GB/s", "Mop/s");
}

void print_row(const Row& row) {
  std::printf("%-10s %-10s %12llu %12.4f %12.4f %12.4f %10.3f %10.4f\n", row.op.c_str(), row.transport.c_str(),
              static_cast<unsigned long long>(row.size), row.median_us, row.p99_us, row.p999_us, row.gbps, row.mops);
  std::fflush(stdout);
}

Result<void> write_json(const std::string& path, const std::vector<Row>& rows) {
  auto list = nlohmann::json::array();
  for (const Row& row : rows) {
    list.push_back({{"op", row.op},
                    {"transport", row.transport},
                    {"size", row.size},
                    {"median_us", row.median_us},
                    {"p99_us", row.p99_us},
                    {"p999_us", row.p999_us},
                    {"GBps", row.gbps},
                    {"Mops", row.mops},
                    {"operations", row.operations}});
  }
  return replace_file(path, list.dump(1) + "\n");
}

}  // namespace dtr::perf
