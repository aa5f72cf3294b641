// Counters, gauges and histograms, and their Prometheus text. Recording is a few relaxed atomic operations.
#pragma once

#include <atomic>
#include <bit>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dtr/base/error.hpp"
#include "dtr/base/fork_guard.hpp"
#include "dtr/base/thread.hpp"

namespace dtr::inline v0 {

/// {{"peer", "3"}, {"transport", "shm"}}: values may be any UTF-8 text.
using MetricLabels = std::vector<std::pair<std::string, std::string>>;

/// Only grows. Any thread; no lock, no allocation.
class alignas(64) Counter {
 public:
  void add(std::uint64_t n = 1) noexcept { value_.fetch_add(n, std::memory_order_relaxed); }
  [[nodiscard]] std::uint64_t value() const noexcept { return value_.load(std::memory_order_relaxed); }

  /// For what is counted elsewhere: takes over that count. One thread at a time, and not together with add().
  void follow(std::uint64_t count) noexcept { value_.store(count, std::memory_order_relaxed); }

 private:
  std::atomic<std::uint64_t> value_{0};
};

/// Goes up and down. Any thread; no lock, no allocation.
class alignas(64) Gauge {
 public:
  void set(double value) noexcept { value_.store(value, std::memory_order_relaxed); }
  void add(double change) noexcept { value_.fetch_add(change, std::memory_order_relaxed); }
  [[nodiscard]] double value() const noexcept { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<double> value_{0};
};

/// Distribution of whole numbers (ns, bytes, items). Values below 64 are kept exactly, others in buckets that are
/// 1/32 of their value wide and stand for their middle: a percentile is off by at most 1.6 %. 15 KiB each.
/// Any thread; no lock, no allocation.
class alignas(64) Histogram {
 public:
  struct Summary {
    std::uint64_t count = 0;
    std::uint64_t sum = 0;
    std::uint64_t max = 0;  ///< exact
    std::uint64_t p50 = 0;
    std::uint64_t p99 = 0;
    std::uint64_t p999 = 0;
  };

  void record(std::uint64_t value) noexcept {
    buckets_[bucket_of(value)].fetch_add(1, std::memory_order_relaxed);
    sum_.fetch_add(value, std::memory_order_relaxed);
    std::uint64_t max = max_.load(std::memory_order_relaxed);
    while (value > max && !max_.compare_exchange_weak(max, value, std::memory_order_relaxed)) {
    }
  }

  /// The smallest value that at least the share `q` (0 to 1) of all records do not exceed; 0 without records.
  [[nodiscard]] std::uint64_t percentile(double q) const;

  /// While others record, a record may be in one field and not yet in another.
  [[nodiscard]] Summary summary() const;

 private:
  static constexpr unsigned kSubBits = 5;
  static constexpr std::uint64_t kSub = std::uint64_t{1} << kSubBits;
  static constexpr std::size_t kBuckets = (64 - kSubBits + 1) * kSub;

  /// [0, 64) one by one, then 32 equal buckets for each power of two.
  static constexpr std::size_t bucket_of(std::uint64_t value) noexcept {
    if (value < 2 * kSub) return static_cast<std::size_t>(value);
    const auto shift = static_cast<unsigned>(std::bit_width(value)) - kSubBits - 1;
    return static_cast<std::size_t>(shift * kSub + (value >> shift));
  }
  static std::uint64_t middle_of(std::size_t bucket) noexcept;
  [[nodiscard]] std::vector<std::uint64_t> counts() const;
  [[nodiscard]] std::uint64_t percentile(const std::vector<std::uint64_t>& counts, double q) const;

  std::atomic<std::uint64_t> buckets_[kBuckets]{};
  alignas(64) std::atomic<std::uint64_t> sum_{0};
  std::atomic<std::uint64_t> max_{0};
};

struct MetricsOptions {
  MetricLabels labels{};  ///< on every line, such as {{"rank", "3"}}
};

/// Owns metrics and writes them as text. References stay good as long as the registry. Any thread. Metrics with equal
/// name and labels are one object. A malformed name, or a name in use for another kind, throws Exception
/// (invalid_argument, already_exists): a bug in the caller.
class MetricsRegistry {
 public:
  explicit MetricsRegistry(const MetricsOptions& options = {});
  ~MetricsRegistry();
  MetricsRegistry(const MetricsRegistry&) = delete;
  MetricsRegistry& operator=(const MetricsRegistry&) = delete;

  Counter& counter(std::string_view name, std::string_view help, const MetricLabels& labels = {});
  Gauge& gauge(std::string_view name, std::string_view help, const MetricLabels& labels = {});

  /// `scale` turns the recorded unit into the one of the name: 1e-9 for ns under a name that ends in _seconds.
  /// Written as a summary with the quantiles 0.5, 0.99, 0.999 and 1.
  Histogram& histogram(std::string_view name, std::string_view help, const MetricLabels& labels = {}, double scale = 1);

  /// Called before each text(), to bring metrics up to date that are counted elsewhere; replaces the one before. When
  /// this returns, the one before is not running and will not run. Not from inside of one.
  void before_text(std::function<void()> refresh);

  /// All metrics in Prometheus' text format 0.0.4, in the order of their first use.
  [[nodiscard]] std::string text() const;

  /// text() into a file, replaced by rename. Errors name the path.
  [[nodiscard]] Result<void> write(const std::string& path) const;

 private:
  struct Family;
  template <class Metric>
  Metric& find_or_make(std::string_view name, std::string_view help, const MetricLabels& labels, double scale);

  mutable std::mutex refresh_mutex_;  ///< held while refresh_ runs
  std::function<void()> refresh_;
  const std::string common_;  ///< as text: rank="3"
  mutable std::mutex mutex_;
  std::vector<std::unique_ptr<Family>> families_;
};

/// Writes a registry to a file at once, on an interval, and a last time when it goes; a file that cannot be written
/// is logged once and tried again. The registry has to outlive it.
class MetricsWriter {
 public:
  /// Throws Exception if the first write fails, naming the path.
  MetricsWriter(const MetricsRegistry& registry, std::string path, std::chrono::nanoseconds interval);
  ~MetricsWriter();
  MetricsWriter(const MetricsWriter&) = delete;
  MetricsWriter& operator=(const MetricsWriter&) = delete;

 private:
  void run(const std::stop_token& stop);
  void write_or_log();

  const MetricsRegistry& registry_;
  const std::string path_;
  const std::chrono::nanoseconds interval_;
  bool complained_ = false;
  ForkGuard fork_guard_;
  Thread thread_;
};

}  // namespace dtr::inline v0
