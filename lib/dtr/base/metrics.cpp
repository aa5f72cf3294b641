#include "dtr/base/metrics.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <condition_variable>
#include <variant>

#include "dtr/base/file.hpp"
#include "dtr/base/log.hpp"

namespace dtr::inline v0 {

namespace {

constexpr const char* kOperation = "metrics";

bool is_name(std::string_view name, bool colon_allowed) {
  const auto is_letter = [&](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || (colon_allowed && c == ':');
  };
  const auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
  return !name.empty() && is_letter(name.front()) &&
         std::all_of(name.begin(), name.end(), [&](char c) { return is_letter(c) || is_digit(c); });
}

[[noreturn]] void refuse(Errc code, std::string message) {
  throw Exception({.code = code, .message = std::move(message), .operation = kOperation});
}

std::string escaped(std::string_view text, bool quotes) {
  std::string safe;
  for (const char c : text) {
    if (c == '\\') {
      safe += "\\\\";
    } else if (c == '\n') {
      safe += "\\n";
    } else if (c == '"' && quotes) {
      safe += "\\\"";
    } else {
      safe += c;
    }
  }
  return safe;
}

/// a="x",b="y" in the order given.
std::string label_text(const MetricLabels& labels) {
  std::string text;
  for (auto label = labels.begin(); label != labels.end(); ++label) {
    if (!is_name(label->first, false) || label->first.starts_with("__") || label->first == "quantile") {
      refuse(Errc::invalid_argument, "'" + label->first + "' cannot name a label");
    }
    if (std::any_of(labels.begin(), label, [&](const auto& earlier) { return earlier.first == label->first; })) {
      refuse(Errc::invalid_argument, "label '" + label->first + "' is given twice");
    }
    text += (text.empty() ? "" : ",") + label->first + "=\"" + escaped(label->second, true) + "\"";
  }
  return text;
}

std::string number_text(double number) {
  if (std::isnan(number)) return "NaN";
  if (std::isinf(number)) return number > 0 ? "+Inf" : "-Inf";
  char digits[64];
  const auto end = std::to_chars(digits, digits + sizeof(digits), number);
  return {digits, end.ptr};
}

std::string joined(const std::string& a, const std::string& b) { return a + (a.empty() || b.empty() ? "" : ",") + b; }

std::string line(std::string_view name, std::string_view suffix, const std::string& labels, const std::string& value) {
  std::string text(name);
  text += suffix;
  if (!labels.empty()) text += "{" + labels + "}";
  return text + " " + value + "\n";
}

void write_metric(std::string& text, std::string_view name, const std::string& labels, const Counter& counter,
                  double /*scale*/) {
  text += line(name, "", labels, std::to_string(counter.value()));
}

void write_metric(std::string& text, std::string_view name, const std::string& labels, const Gauge& gauge,
                  double /*scale*/) {
  text += line(name, "", labels, number_text(gauge.value()));
}

void write_metric(std::string& text, std::string_view name, const std::string& labels, const Histogram& histogram,
                  double scale) {
  const auto summary = histogram.summary();
  const auto quantile = [&](const char* q, std::uint64_t value) {
    // Prometheus' own libraries write NaN for a quantile of nothing.
    const double scaled = summary.count == 0 ? std::nan("") : static_cast<double>(value) * scale;
    text += line(name, "", joined(labels, "quantile=\"" + std::string(q) + "\""), number_text(scaled));
  };
  quantile("0.5", summary.p50);
  quantile("0.99", summary.p99);
  quantile("0.999", summary.p999);
  quantile("1", summary.max);
  text += line(name, "_sum", labels, number_text(static_cast<double>(summary.sum) * scale));
  text += line(name, "_count", labels, std::to_string(summary.count));
}

}  // namespace

std::uint64_t Histogram::middle_of(std::size_t bucket) noexcept {
  if (bucket < 2 * kSub) return bucket;
  const auto shift = static_cast<unsigned>(bucket / kSub) - 1;
  const std::uint64_t first = (bucket - shift * kSub) << shift;
  return first + ((std::uint64_t{1} << shift) >> 1U);
}

std::vector<std::uint64_t> Histogram::counts() const {
  std::vector<std::uint64_t> counts(kBuckets);
  for (std::size_t i = 0; i < kBuckets; ++i) counts[i] = buckets_[i].load(std::memory_order_relaxed);
  return counts;
}

std::uint64_t Histogram::percentile(const std::vector<std::uint64_t>& counts, double q) const {
  std::uint64_t total = 0;
  for (const auto count : counts) total += count;
  if (total == 0) return 0;
  const double share = std::clamp(q, 0.0, 1.0) * static_cast<double>(total);
  const auto wanted = std::max<std::uint64_t>(1, static_cast<std::uint64_t>(std::ceil(share)));
  std::uint64_t seen = 0;
  for (std::size_t i = 0; i < counts.size(); ++i) {
    seen += counts[i];
    if (seen >= wanted) return std::min(middle_of(i), max_.load(std::memory_order_relaxed));
  }
  return max_.load(std::memory_order_relaxed);
}

std::uint64_t Histogram::percentile(double q) const { return percentile(counts(), q); }

Histogram::Summary Histogram::summary() const {
  const auto all = counts();
  Summary summary{.sum = sum_.load(std::memory_order_relaxed),
                  .max = max_.load(std::memory_order_relaxed),
                  .p50 = percentile(all, 0.5),
                  .p99 = percentile(all, 0.99),
                  .p999 = percentile(all, 0.999)};
  for (const auto count : all) summary.count += count;
  return summary;
}

/// All metrics of one name.
struct MetricsRegistry::Family {
  using AnyMetric = std::variant<std::unique_ptr<Counter>, std::unique_ptr<Gauge>, std::unique_ptr<Histogram>>;
  struct Member {
    std::string labels;
    AnyMetric metric;
  };

  std::string name;
  std::string help;
  std::size_t kind;  ///< index in AnyMetric
  double scale;
  std::vector<Member> members;
};

MetricsRegistry::MetricsRegistry(const MetricsOptions& options) : common_(label_text(options.labels)) {}

MetricsRegistry::~MetricsRegistry() = default;

template <class Metric>
Metric& MetricsRegistry::find_or_make(std::string_view name, std::string_view help, const MetricLabels& labels,
                                      double scale) {
  if (!is_name(name, true)) refuse(Errc::invalid_argument, "'" + std::string(name) + "' cannot name a metric");
  std::string own = label_text(labels);
  Family::AnyMetric fresh = std::make_unique<Metric>();

  const std::scoped_lock lock(mutex_);
  auto family = std::find_if(families_.begin(), families_.end(), [&](const auto& f) { return f->name == name; });
  if (family == families_.end()) {
    families_.push_back(std::make_unique<Family>(Family{
        .name = std::string(name), .help = std::string(help), .kind = fresh.index(), .scale = scale, .members = {}}));
    family = std::prev(families_.end());
  }
  if ((*family)->kind != fresh.index() || (*family)->scale != scale) {
    refuse(Errc::already_exists, "'" + std::string(name) + "' names a metric of another kind or scale");
  }
  auto& members = (*family)->members;
  auto member = std::find_if(members.begin(), members.end(), [&](const auto& m) { return m.labels == own; });
  if (member == members.end()) {
    members.push_back({std::move(own), std::move(fresh)});
    member = std::prev(members.end());
  }
  return *std::get<std::unique_ptr<Metric>>(member->metric);
}

Counter& MetricsRegistry::counter(std::string_view name, std::string_view help, const MetricLabels& labels) {
  return find_or_make<Counter>(name, help, labels, 1);
}

Gauge& MetricsRegistry::gauge(std::string_view name, std::string_view help, const MetricLabels& labels) {
  return find_or_make<Gauge>(name, help, labels, 1);
}

Histogram& MetricsRegistry::histogram(std::string_view name, std::string_view help, const MetricLabels& labels,
                                      double scale) {
  return find_or_make<Histogram>(name, help, labels, scale);
}

void MetricsRegistry::before_text(std::function<void()> refresh) {
  const std::scoped_lock lock(refresh_mutex_);
  refresh_ = std::move(refresh);
}

std::string MetricsRegistry::text() const {
  {
    const std::scoped_lock lock(refresh_mutex_);
    if (refresh_) refresh_();
  }
  constexpr std::string_view kKinds[] = {"counter", "gauge", "summary"};
  std::string text;
  const std::scoped_lock lock(mutex_);
  for (const auto& family : families_) {
    text += "# HELP " + family->name + " " + escaped(family->help, false) + "\n";
    text += "# TYPE " + family->name + " " + std::string(kKinds[family->kind]) + "\n";
    for (const auto& member : family->members) {
      const std::string labels = joined(common_, member.labels);
      std::visit([&](const auto& metric) { write_metric(text, family->name, labels, *metric, family->scale); },
                 member.metric);
    }
  }
  return text;
}

Result<void> MetricsRegistry::write(const std::string& path) const { return replace_file(path, text()); }

MetricsWriter::MetricsWriter(const MetricsRegistry& registry, std::string path, std::chrono::nanoseconds interval)
    : registry_(registry), path_(std::move(path)), interval_(interval) {
  value_or_throw(registry_.write(path_));
  thread_ = Thread([this](const std::stop_token& stop) { run(stop); }, {.name = "dtr-metrics"});
}

MetricsWriter::~MetricsWriter() {
  if (fork_guard_.in_forked_child()) return;  // the file is the parent's
  thread_ = Thread();
  write_or_log();
}

void MetricsWriter::run(const std::stop_token& stop) {
  std::mutex mutex;
  std::condition_variable_any wake;
  std::unique_lock lock(mutex);
  while (!stop.stop_requested()) {
    wake.wait_for(lock, stop, interval_, [] { return false; });
    if (!stop.stop_requested()) write_or_log();
  }
}

void MetricsWriter::write_or_log() {
  const auto written = registry_.write(path_);
  if (!written && !complained_) DTR_LOG_WARN("metrics are not written: ", written.error().to_string());
  complained_ = !written;
}

}  // namespace dtr::inline v0
