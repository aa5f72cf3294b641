// What dtr_perf measures, and how a measurement is reported.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "dtr/runtime/runtime.hpp"

namespace dtr::perf {

enum class Operation { put, get, send };

struct Plan {
  std::string name{};  ///< "put_lat"
  Operation operation = Operation::put;
  bool latency = true;
  std::vector<std::uint64_t> sizes{};
  std::uint64_t iterations = 0;  ///< 0 = chosen by size
  std::uint32_t batch = 64;      ///< requests per post in bandwidth tests
  std::string transport{};       ///< empty = as configured
  std::string json{};
};

struct Row {
  std::string op{};
  std::string transport{};
  std::uint64_t size = 0;
  double median_us = 0;  ///< latency: one way (put, send) or whole (get); bandwidth: one operation within its batch
  double p99_us = 0;
  double p999_us = 0;
  double gbps = 0;  ///< 10^9 bytes a second over the whole run
  double mops = 0;  ///< 10^6 operations a second over the whole run
};

/// Nanoseconds of each sample, and of the whole run.
struct Samples {
  std::vector<double> each_ns{};
  double total_ns = 0;
  std::uint64_t operations = 0;
};

/// Both ranks' memory for one size, and what each needs to reach the other.
class Pair {
 public:
  Pair(Runtime& rt, std::uint64_t size);
  [[nodiscard]] Runtime& rt() const { return rt_; }
  [[nodiscard]] int other() const { return other_; }
  [[nodiscard]] bool starts() const { return rt_.rank() == 0; }
  [[nodiscard]] std::uint64_t size() const { return size_; }
  [[nodiscard]] fabric::Channel& channel() const { return *channel_; }
  [[nodiscard]] fabric::WorkRequest::Range source() const { return {source_.region(), source_.offset()}; }
  [[nodiscard]] fabric::WorkRequest::RemoteRange sink() const { return {remote_, remote_offset_}; }
  /// The word that arrives last in this rank's sink, and the one that leaves last from its source.
  [[nodiscard]] volatile std::uint8_t& arrival() const;
  [[nodiscard]] std::uint8_t& departure() const;
  void meet(const char* topic) const;

 private:
  Runtime& rt_;
  int other_;
  std::uint64_t size_;
  Buffer source_;
  Buffer sink_;
  fabric::Channel* channel_ = nullptr;
  const fabric::RemoteRegion* remote_ = nullptr;
  std::uint64_t remote_offset_ = 0;
};

[[nodiscard]] Samples measure_latency(Pair& pair, Operation operation, std::uint64_t iterations);
[[nodiscard]] Samples measure_bandwidth(Pair& pair, Operation operation, std::uint64_t iterations, std::uint32_t batch);

[[nodiscard]] Row make_row(const Plan& plan, const Pair& pair, Samples samples);
void print_header();
void print_row(const Row& row);
[[nodiscard]] Result<void> write_json(const std::string& path, const std::vector<Row>& rows);

/// Posts all requests, making progress while there is no room. Throws Exception on a refused request.
void post_all(Pair& pair, std::span<const fabric::WorkRequest> requests, fabric::Completion& done);

/// Makes progress until `ready()`; throws Exception after the operation time-out or when the peer is dead.
template <class Ready>
void spin_until(Pair& pair, Ready&& ready) {
  const Deadline deadline(pair.rt().operation_timeout());
  for (std::uint32_t turn = 1; !ready(); ++turn) {
    if (turn % 32 != 0) continue;  // shared memory needs no progress; the others want it now and then
    pair.rt().progress();
    if (turn % 4096 != 0) continue;
    value_or_throw(pair.rt().check_peers());
    if (deadline.passed()) throw Exception({.code = Errc::timed_out, .operation = "dtr_perf", .peer = pair.other()});
  }
}

}  // namespace dtr::perf
