#include "dtr/base/metrics.hpp"

#include <cmath>
#include <csignal>
#include <filesystem>
#include <map>
#include <random>
#include <regex>
#include <sstream>
#include <thread>

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include "dtr/base/clock.hpp"
#include "dtr/base/file.hpp"
#include "dtr/base/log.hpp"
#include "support/test_support.hpp"

namespace dtr {
namespace {

using namespace std::chrono_literals;

/// What a scraper makes of the text, by the rules of the format: "name{labels as they stand}" -> value.
struct Scrape {
  std::map<std::string, double> values;
  std::map<std::string, std::string> types;
  std::map<std::string, std::string> helps;
};

Scrape scrape(const std::string& text) {
  static const std::regex sample(
      R"re(([a-zA-Z_:][a-zA-Z0-9_:]*)(\{([a-zA-Z_][a-zA-Z0-9_]*="([^"\\\n]|\\\\|\\"|\\n)*",?)*\})? (\S+))re");
  static const std::regex comment(R"(# (HELP|TYPE) ([a-zA-Z_:][a-zA-Z0-9_:]*) (.*))");
  Scrape all;
  EXPECT_TRUE(text.empty() || text.ends_with('\n'));
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    std::smatch parts;
    if (std::regex_match(line, parts, comment)) {
      auto& table = parts[1] == "HELP" ? all.helps : all.types;
      EXPECT_TRUE(table.emplace(parts[2], parts[3]).second) << "twice: " << line;
    } else if (std::regex_match(line, parts, sample)) {
      EXPECT_TRUE(all.values.emplace(parts[1].str() + parts[2].str(), std::stod(parts[5])).second) << "twice: " << line;
    } else {
      ADD_FAILURE() << "not a line of the format: " << line;
    }
  }
  return all;
}

std::string refusal(const std::function<void()>& call) {
  try {
    call();
  } catch (const Exception& e) {
    return e.what();
  }
  return "accepted";
}

TEST(CounterTest, ManyThreadsLoseNothing) {
  Counter counter;
  Gauge gauge;
  {
    std::vector<std::jthread> threads;
    threads.reserve(4);
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&] {
        for (int i = 0; i < 10'000; ++i) {
          counter.add(2);
          gauge.add(i % 2 == 0 ? 1.5 : -0.5);
        }
      });
    }
  }
  EXPECT_EQ(counter.value(), 80'000U);
  EXPECT_DOUBLE_EQ(gauge.value(), 20'000.0);
}

TEST(HistogramTest, SmallValuesAreExact) {
  Histogram histogram;
  for (std::uint64_t value = 0; value < 64; ++value) histogram.record(value);
  for (std::uint64_t value = 0; value < 64; ++value) {
    EXPECT_EQ(histogram.percentile(static_cast<double>(value + 1) / 64), value);
  }
}

TEST(HistogramTest, AnySingleValueIsFoundWithinItsError) {
  std::mt19937_64 random(1);
  for (unsigned bits = 0; bits <= 64; ++bits) {
    for (int i = 0; i < 50; ++i) {
      std::uint64_t value = bits == 0 ? 0 : random() >> (64 - bits);
      if (i == 0 && bits > 0) value = ~std::uint64_t{0} >> (64 - bits);
      Histogram histogram;
      histogram.record(value);
      histogram.record(~std::uint64_t{0});  // so that max does not correct the answer
      const auto found = static_cast<double>(histogram.percentile(0.5));
      EXPECT_LE(std::abs(found - static_cast<double>(value)), 0.016 * static_cast<double>(value)) << value;
    }
  }
}

TEST(HistogramTest, PercentilesOfALongTailAreWithinThreePercentOfTheSortedValues) {
  std::mt19937_64 random(7);
  std::lognormal_distribution<double> latency(9, 1.5);
  Histogram histogram;
  std::vector<std::uint64_t> values;
  values.reserve(100'000);
  for (int i = 0; i < 100'000; ++i) values.push_back(static_cast<std::uint64_t>(latency(random)));
  std::uint64_t sum = 0;
  for (const auto value : values) {
    histogram.record(value);
    sum += value;
  }
  std::sort(values.begin(), values.end());
  const auto exact = [&](double q) {
    return static_cast<double>(values[static_cast<std::size_t>(std::ceil(q * 100'000)) - 1]);
  };
  const auto summary = histogram.summary();
  EXPECT_NEAR(static_cast<double>(summary.p50), exact(0.5), 0.03 * exact(0.5));
  EXPECT_NEAR(static_cast<double>(summary.p99), exact(0.99), 0.03 * exact(0.99));
  EXPECT_NEAR(static_cast<double>(summary.p999), exact(0.999), 0.03 * exact(0.999));
  EXPECT_EQ(summary.max, values.back());
  EXPECT_EQ(summary.count, values.size());
  EXPECT_EQ(summary.sum, sum);
}

TEST(HistogramTest, NoPercentileExceedsTheMaximum) {
  Histogram histogram;
  histogram.record(1'000'000);
  EXPECT_EQ(histogram.percentile(0.999), 1'000'000U);
  EXPECT_EQ(histogram.summary().p50, 1'000'000U);
}

TEST(HistogramTest, WithoutRecordsEverythingIsZero) {
  const Histogram histogram;
  EXPECT_EQ(histogram.percentile(0.5), 0U);
  EXPECT_EQ(histogram.summary().count, 0U);
}

TEST(HistogramTest, ManyThreadsLoseNothingWhileOthersRead) {
  Histogram histogram;
  std::atomic<bool> done{false};
  std::jthread reader([&] {
    while (!done) EXPECT_LE(histogram.summary().p50, 40'000U);
  });
  {
    std::vector<std::jthread> threads;
    threads.reserve(4);
    for (std::uint64_t t = 0; t < 4; ++t) {
      threads.emplace_back([&, t] {
        for (std::uint64_t i = 0; i < 10'000; ++i) histogram.record(t * 10'000 + i);
      });
    }
  }
  done = true;
  reader.join();
  const auto summary = histogram.summary();
  EXPECT_EQ(summary.count, 40'000U);
  EXPECT_EQ(summary.max, 39'999U);
  EXPECT_EQ(summary.sum, 40'000U * 39'999U / 2);
}

TEST(MetricsRegistryTest, TextIsWhatAScraperExpects) {
  MetricsRegistry registry({.labels = {{"rank", "3"}}});
  registry.counter("dtr_put_bytes_total", "Bytes put.", {{"transport", "shm"}}).add(10);
  registry.counter("dtr_put_bytes_total", "Bytes put.", {{"transport", "tcp"}}).add(20);
  registry.gauge("dtr_peers", "Peers connected.").set(2.5);
  auto& latency = registry.histogram("dtr_put_seconds", "Time of a put.", {{"transport", "shm"}}, 1e-9);
  for (std::uint64_t i = 1; i <= 1000; ++i) latency.record(i * 1'000'000);

  const auto all = scrape(registry.text());
  EXPECT_EQ(all.types.at("dtr_put_bytes_total"), "counter");
  EXPECT_EQ(all.types.at("dtr_peers"), "gauge");
  EXPECT_EQ(all.types.at("dtr_put_seconds"), "summary");
  EXPECT_EQ(all.helps.at("dtr_put_bytes_total"), "Bytes put.");
  EXPECT_EQ(all.values.at(R"(dtr_put_bytes_total{rank="3",transport="shm"})"), 10);
  EXPECT_EQ(all.values.at(R"(dtr_put_bytes_total{rank="3",transport="tcp"})"), 20);
  EXPECT_EQ(all.values.at(R"(dtr_peers{rank="3"})"), 2.5);
  EXPECT_NEAR(all.values.at(R"(dtr_put_seconds{rank="3",transport="shm",quantile="0.5"})"), 0.5, 0.015);
  EXPECT_NEAR(all.values.at(R"(dtr_put_seconds{rank="3",transport="shm",quantile="0.99"})"), 0.99, 0.03);
  EXPECT_NEAR(all.values.at(R"(dtr_put_seconds{rank="3",transport="shm",quantile="0.999"})"), 0.999, 0.03);
  EXPECT_DOUBLE_EQ(all.values.at(R"(dtr_put_seconds{rank="3",transport="shm",quantile="1"})"), 1.0);
  EXPECT_DOUBLE_EQ(all.values.at(R"(dtr_put_seconds_sum{rank="3",transport="shm"})"), 500.5);
  EXPECT_EQ(all.values.at(R"(dtr_put_seconds_count{rank="3",transport="shm"})"), 1000);
}

TEST(MetricsRegistryTest, NothingAndEmptySummariesAreValidText) {
  MetricsRegistry registry;
  EXPECT_EQ(registry.text(), "");
  registry.histogram("h", "Nothing yet.");
  const auto all = scrape(registry.text());
  EXPECT_TRUE(std::isnan(all.values.at(R"(h{quantile="0.5"})")));
  EXPECT_EQ(all.values.at("h_count"), 0);
}

TEST(MetricsRegistryTest, LabelsAndHelpAreEscaped) {
  MetricsRegistry registry;
  registry.counter("c", "back\\slash \"quoted\"\nnew line", {{"path", "C:\\x \"y\"\n}"}}).add();
  EXPECT_EQ(registry.text(),
            "# HELP c back\\\\slash \"quoted\"\\nnew line\n"
            "# TYPE c counter\n"
            "c{path=\"C:\\\\x \\\"y\\\"\\n}\"} 1\n");
  EXPECT_EQ(scrape(registry.text()).values.size(), 1U);
}

TEST(MetricsRegistryTest, NumbersThatAreNoneHaveTheirNames) {
  MetricsRegistry registry;
  registry.gauge("a", "A.").set(std::nan(""));
  registry.gauge("b", "B.").set(std::numeric_limits<double>::infinity());
  registry.gauge("c", "C.").set(-std::numeric_limits<double>::infinity());
  const std::string text = registry.text();
  EXPECT_NE(text.find("\na NaN\n"), std::string::npos);
  EXPECT_NE(text.find("\nb +Inf\n"), std::string::npos);
  EXPECT_NE(text.find("\nc -Inf\n"), std::string::npos);
}

TEST(MetricsRegistryTest, EqualNameAndLabelsAreOneMetric) {
  MetricsRegistry registry;
  EXPECT_EQ(&registry.counter("c", "C.", {{"a", "1"}}), &registry.counter("c", "C.", {{"a", "1"}}));
  EXPECT_NE(&registry.counter("c", "C.", {{"a", "1"}}), &registry.counter("c", "C.", {{"a", "2"}}));
}

TEST(MetricsRegistryTest, MistakesAreRefusedByName) {
  MetricsRegistry registry;
  registry.counter("taken", "T.");
  EXPECT_EQ(refusal([&] { registry.gauge("taken", "T."); }),
            "metrics: already_exists: 'taken' names a metric of another kind or scale");
  EXPECT_EQ(refusal([&] { registry.counter("9lives", "x"); }),
            "metrics: invalid_argument: '9lives' cannot name a metric");
  EXPECT_EQ(refusal([&] { registry.counter("", "x"); }), "metrics: invalid_argument: '' cannot name a metric");
  EXPECT_EQ(refusal([&] {
              registry.counter("c", "x", {{"a-b", "1"}});
            }),
            "metrics: invalid_argument: 'a-b' cannot name a label");
  EXPECT_EQ(refusal([&] {
              registry.counter("c", "x", {{"quantile", "1"}});
            }),
            "metrics: invalid_argument: 'quantile' cannot name a label");
  EXPECT_EQ(refusal([&] {
              registry.counter("c", "x", {{"__name__", "1"}});
            }),
            "metrics: invalid_argument: '__name__' cannot name a label");
  EXPECT_EQ(refusal([&] {
              registry.counter("c", "x", {{"a", "1"}, {"a", "2"}});
            }),
            "metrics: invalid_argument: label 'a' is given twice");
}

TEST(MetricsRegistryTest, ThreadsMayRegisterWhileOthersWriteText) {
  MetricsRegistry registry;
  std::vector<std::jthread> threads;
  threads.reserve(4);
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&registry, t] {
      for (int i = 0; i < 50; ++i) {
        registry.counter("c", "C.", {{"i", std::to_string(i)}}).add();
        if (t == 0) static_cast<void>(registry.text());
      }
    });
  }
  threads.clear();
  const auto all = scrape(registry.text());
  EXPECT_EQ(all.values.size(), 50U);
  for (const auto& [name, value] : all.values) EXPECT_EQ(value, 4) << name;
}

TEST(MetricsWriterTest, WritesAtOnceOnTheIntervalAndALastTime) {
  const testing::TemporaryFolder folder;
  const std::string path = folder / "m.prom";
  MetricsRegistry registry;
  auto& counter = registry.counter("c", "C.");
  {
    const MetricsWriter writer(registry, path, 5ms);
    EXPECT_EQ(scrape(read_file(path).value()).values.at("c"), 0);
    counter.add(7);
    const Stopwatch watch;
    const auto bound = testing::scaled(10s);
    while (scrape(read_file(path).value()).values.at("c") != 7 && watch.elapsed_ns() < bound.count() * 1'000'000) {
      ::usleep(1000);
    }
    EXPECT_EQ(scrape(read_file(path).value()).values.at("c"), 7);
  }
  {
    const MetricsWriter writer(registry, path, 24h);
    counter.add();
  }
  EXPECT_EQ(scrape(read_file(path).value()).values.at("c"), 8) << "the last write on destruction";
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder.path()), {}), 1) << "a temporary file was left";
}

TEST(MetricsWriterTest, StopsPromptlyWhateverTheInterval) {
  const testing::TemporaryFolder folder;
  const MetricsRegistry registry;
  const Stopwatch watch;
  { const MetricsWriter writer(registry, folder / "m", 24h); }
  EXPECT_LT(watch.seconds(), static_cast<double>(testing::scaled(10s).count()) / 1000);
}

TEST(MetricsWriterTest, AFirstWriteThatFailsIsAnErrorNamingThePath) {
  const testing::TemporaryFolder folder;
  const MetricsRegistry registry;
  const std::string path = folder / "no/m";
  const auto words = refusal([&] { const MetricsWriter writer(registry, path, 1s); });
  EXPECT_EQ(words.rfind("replace_file: not_found: create " + path, 0), 0U) << words;
}

TEST(MetricsWriterTest, AFileThatVanishesIsToldOnceAndTriedAgain) {
  const testing::TemporaryFolder folder;
  const std::string log = folder / "log";
  std::filesystem::create_directory(folder / "d");
  const std::string path = folder / "d/m";
  ASSERT_TRUE(configure_log({.file = log, .to_stderr = false}));
  {
    const MetricsRegistry registry;
    const MetricsWriter writer(registry, path, 1ms);
    const auto wait_until = [](const auto& holds) {
      const Stopwatch watch;
      const auto bound = testing::scaled(10s);
      while (!holds() && watch.elapsed_ns() < bound.count() * 1'000'000) ::usleep(1000);
      return holds();
    };
    const auto complaints = [&] {
      const std::string text = read_file(log).value();
      std::size_t count = 0;
      for (auto at = text.find("metrics are not written"); at != std::string::npos;
           at = text.find("metrics are not written", at + 1)) {
        ++count;
      }
      return count;
    };
    std::filesystem::rename(folder / "d", folder / "gone");
    EXPECT_TRUE(wait_until([&] { return complaints() == 1; }));
    ::usleep(20'000);  // many intervals
    EXPECT_EQ(complaints(), 1U);
    std::filesystem::create_directory(folder / "d");
    EXPECT_TRUE(wait_until([&] { return std::filesystem::exists(path); }));
  }
  ASSERT_TRUE(configure_log(LogOptions{}));
}

TEST(MetricsWriterTest, AForkedChildDoesNotTouchTheFile) {
  const testing::TemporaryFolder folder;
  const std::string path = folder / "m";
  MetricsRegistry registry;
  auto& counter = registry.counter("c", "C.");
  auto writer = std::make_unique<MetricsWriter>(registry, path, 24h);
  const pid_t child = ::fork();
  if (child == 0) {
    ::alarm(120);
    counter.add();
    writer.reset();
    ::_exit(0);
  }
  int status = -1;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(scrape(read_file(path).value()).values.at("c"), 0);
}

}  // namespace
}  // namespace dtr
