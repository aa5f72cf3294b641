// What dtr_perf measures, and how a measurement is reported.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "dtr/base/relax.hpp"
#include "dtr/runtime/runtime.hpp"

namespace dtr::perf {

enum class Operation { put, get, send, atomic, message };

struct Plan {
  std::string name{};  ///< "put_lat"
  Operation operation = Operation::put;
  bool latency = true;
  std::vector<std::uint64_t> sizes{};
  std::uint64_t iterations = 0;              ///< 0 = chosen by size
  std::uint32_t batch = 64;                  ///< requests per post in bandwidth tests
  std::string transport{};                   ///< empty = as configured
  AtomicHome atomic_home = AtomicHome::cpu;  ///< who executes the atomics
  bool managed = false;                      ///< messages: from and into memory of the pool
  std::string json{};
};

struct Row {
  std::string op{};
  std::string transport{};
  std::uint64_t size = 0;
  double median_us = 0;  ///< latency: one way (put, send) or whole (get); bandwidth: one operation within its batch
  double p99_us = 0;
  double p999_us = 0;
  double gbps = 0;               ///< 10^9 bytes a second over the whole run
  double mops = 0;               ///< 10^6 operations a second over the whole run
  std::uint64_t operations = 0;  ///< all that ran, those of the warm-up too
};

/// Nanoseconds of an operation in each sample, and of the whole run.
struct Samples {
  std::vector<double> each_ns{};
  double total_ns = 0;
  std::uint64_t operations = 0;  ///< measured
  std::uint64_t warm_up = 0;     ///< operations before
};

/// Both ranks' memory for one size, and what each needs to reach the other.
class Pair {
 public:
  /// `home`: who executes atomics on the sink.
  Pair(Runtime& rt, std::uint64_t size, AtomicHome home = AtomicHome::cpu);
  ~Pair();
  Pair(const Pair&) = delete;
  Pair& operator=(const Pair&) = delete;
  [[nodiscard]] Runtime& rt() const { return rt_; }
  [[nodiscard]] int other() const { return other_; }
  [[nodiscard]] bool starts() const { return rt_.rank() == 0; }
  [[nodiscard]] bool alone() const { return other_ == rt_.rank(); }
  [[nodiscard]] std::uint64_t size() const { return size_; }
  [[nodiscard]] fabric::Channel& channel() const { return *channel_; }
  [[nodiscard]] fabric::WorkRequest::Range source() const { return {source_.region(), source_.offset()}; }
  [[nodiscard]] fabric::WorkRequest::RemoteRange sink() const { return {remote_, remote_offset_}; }
  /// The first word of the own source: where an atomic leaves the old value.
  [[nodiscard]] volatile std::uint64_t& old_word() const;
  /// The word that arrives last in this rank's sink, and the one that leaves last from its source.
  [[nodiscard]] volatile std::uint8_t& arrival() const;
  [[nodiscard]] std::uint8_t& departure() const;
  void meet(const char* topic) const;
  /// Makes progress until it is done. Throws Exception with the reason if a request of it failed.
  void wait(const fabric::Completion& completion) const;
  /// Puts into shared memory need no progress of either side; what comes during a look of progress waits for its end.
  [[nodiscard]] std::uint32_t looks_between_progress() const { return in_this_host_ ? 1024 : 32; }
  /// Throws Exception unless the last byte moved is the one expected: a run that moves nothing is fast.
  void check_moved(std::uint8_t last, std::uint8_t expected) const;
  /// For what is posted now. Renewed now and then only: reading the clock costs more than a small put.
  [[nodiscard]] Deadline deadline() {
    constexpr std::uint32_t kUses = 256;
    return ++deadline_uses_ < kUses ? deadline_ : renewed_deadline();
  }

 private:
  [[nodiscard]] Deadline renewed_deadline();

  Runtime& rt_;
  int other_;
  std::uint64_t size_;
  Buffer source_;
  Buffer sink_;
  Region* word_ = nullptr;  ///< the sink, where the pool cannot give it
  fabric::WorkRequest::Range own_sink_{};
  fabric::Channel* channel_ = nullptr;
  const fabric::RemoteRegion* remote_ = nullptr;
  std::uint64_t remote_offset_ = 0;
  bool in_this_host_ = false;
  Deadline deadline_;
  std::uint32_t deadline_uses_ = 0;
};

[[nodiscard]] Samples measure_latency(Pair& pair, Operation operation, std::uint64_t iterations);
[[nodiscard]] Samples measure_bandwidth(Pair& pair, Operation operation, std::uint64_t iterations, std::uint32_t batch);

[[nodiscard]] Samples measure_messages(Pair& pair, const Plan& plan, std::uint64_t iterations);

[[nodiscard]] Row make_row(const Plan& plan, const Pair& pair, Samples samples);
void print_header();
void print_row(const Row& row);
[[nodiscard]] Result<void> write_json(const std::string& path, const std::vector<Row>& rows);

/// `ends` are clock readings, the first is the start; between two lie `operations` operations.
[[nodiscard]] Samples make_samples(const std::vector<std::uint64_t>& ends, double tick_ns, std::uint64_t operations);

/// Goes on where a post has left off.
void post_rest(Pair& pair, std::span<const fabric::WorkRequest> requests, fabric::PostResult result);

/// Posts all requests, making progress while there is no room. Throws Exception on a refused request. Only the last
/// one may have a Completion, without a continuation and not armed.
inline void post_all(Pair& pair, std::span<const fabric::WorkRequest> requests) {
  const fabric::PostResult result = pair.channel().post(requests, pair.deadline());
  if (result.finished < requests.size()) post_rest(pair, requests, result);
}
inline void post_all(Pair& pair, const fabric::WorkRequest& request) { post_all(pair, std::span(&request, 1)); }

/// Makes progress until `ready()`; throws Exception after the transfer time-out or when the peer is dead.
template <class Ready>
void spin_until(const Pair& pair, Ready&& ready) {
  if (ready()) return;
  const Deadline deadline = pair.rt().transfer_deadline(pair.size());
  const std::uint32_t looks = pair.looks_between_progress();
  for (std::uint32_t turn = 1; !ready(); ++turn) {
    cpu_relax();
    if (turn % looks != 0) continue;
    pair.rt().progress();
    if (turn % 4096 != 0) continue;
    value_or_throw(pair.rt().check_peers());
    if (deadline.passed()) throw Exception({.code = Errc::timed_out, .operation = "dtr_perf", .peer = pair.other()});
  }
}

}  // namespace dtr::perf
