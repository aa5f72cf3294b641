#include "dtr/base/trace.hpp"

#include <array>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <map>
#include <set>
#include <thread>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <pthread.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "dtr/base/file.hpp"
#include "dtr/base/log.hpp"
#include "support/test_support.hpp"

namespace dtr {
namespace {

using Json = nlohmann::json;
using namespace std::chrono_literals;

Json load(const std::string& path) { return Json::parse(read_file(path).value()); }

std::vector<Json> events_of(const Json& trace, const std::string& phase) {
  std::vector<Json> found;
  for (const auto& event : trace.at("traceEvents")) {
    if (event.at("ph") == phase) found.push_back(event);
  }
  return found;
}

class TraceTest : public ::testing::Test {
 protected:
  /// A tracer that writes only when it is told to.
  [[nodiscard]] TraceOptions options(int rank) const { return {.path = path(), .rank = rank, .flush_interval = 0ms}; }
  [[nodiscard]] std::string path() const { return folder_ / "t.{rank}.json"; }

  testing::TemporaryFolder folder_;
};

TEST_F(TraceTest, SpansInstantsAndCountersBecomeEventsOfTheRank) {
  Tracer tracer(options(3));
  {
    TraceSpan span(&tracer, "put", "fabric");
    span.argument("peer", 7);
    span.argument("bytes", 4096);
    span.argument("third", 1);  // there is room for two
    ::usleep(2000);
  }
  trace_instant(&tracer, "peer_failed", "fabric");
  trace_counter(&tracer, "inflight", -5);
  ASSERT_TRUE(tracer.flush());

  const Json trace = load(folder_ / "t.3.json");
  const auto spans = events_of(trace, "X");
  ASSERT_EQ(spans.size(), 1U);
  EXPECT_EQ(spans[0].at("name"), "put");
  EXPECT_EQ(spans[0].at("cat"), "fabric");
  EXPECT_EQ(spans[0].at("pid"), 3);
  EXPECT_EQ(spans[0].at("tid"), ::gettid());
  EXPECT_EQ(spans[0].at("args"), (Json{{"peer", 7}, {"bytes", 4096}}));
  EXPECT_GE(spans[0].at("dur").get<double>(), 2000.0);
  EXPECT_GE(spans[0].at("ts").get<double>(), 0.0);

  const auto instants = events_of(trace, "i");
  ASSERT_EQ(instants.size(), 1U);
  EXPECT_EQ(instants[0].at("s"), "t");
  EXPECT_FALSE(instants[0].contains("args"));
  EXPECT_GE(instants[0].at("ts").get<double>(), spans[0].at("ts").get<double>() + spans[0].at("dur").get<double>());

  const auto counters = events_of(trace, "C");
  ASSERT_EQ(counters.size(), 1U);
  EXPECT_EQ(counters[0].at("args"), (Json{{"value", -5}}));

  std::map<std::string, Json> metadata;
  for (const auto& event : events_of(trace, "M")) metadata[event.at("name")] = event;
  EXPECT_EQ(metadata.at("process_name").at("args").at("name"), "rank 3");
  EXPECT_EQ(metadata.at("process_name").at("pid"), 3);
  EXPECT_EQ(metadata.at("thread_name").at("tid"), ::gettid());
  const Json& about = trace.at("otherData");
  EXPECT_EQ(about.at("rank"), 3);
  EXPECT_EQ(about.at("dropped_events"), 0);
  EXPECT_NEAR(about.at("start_wall_ns").get<double>(), static_cast<double>(wall_ns()), 60e9);
}

TEST_F(TraceTest, WithoutATracerNothingHappens) {
  TraceSpan span(nullptr, "put", "fabric");
  span.argument("peer", 7);
  span.end();
  trace_instant(nullptr, "x", "y");
  trace_counter(nullptr, "x", 1);
}

TEST_F(TraceTest, ASpanEndsOnceAndMayEndEarly) {
  Tracer tracer(options(0));
  const std::int64_t before = monotonic_ns();
  double most_us = 0;
  {
    TraceSpan span(&tracer, "early", "test");
    span.end();
    most_us = static_cast<double>(monotonic_ns() - before) / 1000;
    ::usleep(50'000);
    span.end();
  }
  ASSERT_TRUE(tracer.flush());
  const auto spans = events_of(load(tracer.path()), "X");
  ASSERT_EQ(spans.size(), 1U);
  EXPECT_LE(spans[0].at("dur").get<double>(), most_us);
}

TEST_F(TraceTest, TheFileIsWholeJsonAfterEveryFlushAndGrows) {
  Tracer tracer(options(0));
  for (std::size_t round = 0; round < 5; ++round) {
    EXPECT_EQ(events_of(load(tracer.path()), "i").size(), round * 700);
    for (int i = 0; i < 700; ++i) trace_instant(&tracer, "tick", "test");
    ASSERT_TRUE(tracer.flush());
  }
  ASSERT_TRUE(tracer.flush());
  EXPECT_EQ(events_of(load(tracer.path()), "i").size(), 3500U);
}

TEST_F(TraceTest, TheDestructorWritesTheRest) {
  { trace_instant(std::make_unique<Tracer>(options(1)).get(), "last words", "test"); }
  EXPECT_EQ(events_of(load(folder_ / "t.1.json"), "i").size(), 1U);
}

TEST_F(TraceTest, AThreadOfItsOwnWritesOnTheInterval) {
  auto with_thread = options(0);
  with_thread.flush_interval = 2ms;
  Tracer tracer(with_thread);
  trace_instant(&tracer, "tick", "test");
  const Stopwatch watch;
  const auto bound = testing::scaled(10s).count() * 1'000'000;
  // The file is rewritten from the end of its events, so a look at the wrong moment sees no whole JSON.
  const auto seen = [&] { return read_file(tracer.path()).value().find("\"tick\"") != std::string::npos; };
  while (!seen() && watch.elapsed_ns() < bound) ::usleep(1000);
  EXPECT_TRUE(seen());
}

TEST_F(TraceTest, TextIsEscaped) {
  Tracer tracer(options(0));
  trace_instant(&tracer, "a \"b\" \\ \n \x01", "c");
  ASSERT_TRUE(tracer.flush());
  EXPECT_EQ(events_of(load(tracer.path()), "i").at(0).at("name"), "a \"b\" \\ \n \x01");
}

TEST_F(TraceTest, ManyThreadsAndAFlushingOneLoseNothing) {
  constexpr int kThreads = 4;
  constexpr int kEvents = 3000;
  Tracer tracer(options(0));
  {
    std::vector<std::jthread> threads;
    threads.reserve(kThreads);
    for (int t = 0; t < kThreads; ++t) {
      threads.emplace_back([&tracer, t] {
        ::pthread_setname_np(::pthread_self(), ("worker" + std::to_string(t)).c_str());
        for (int i = 0; i < kEvents; ++i) {
          TraceSpan span(&tracer, "step", "test");
          span.argument("thread", t);
          span.argument("i", i);
        }
      });
    }
    for (int i = 0; i < 20; ++i) ASSERT_TRUE(tracer.flush());
  }
  ASSERT_TRUE(tracer.flush());
  const Json trace = load(tracer.path());
  std::map<int, int> next;  // of each thread, in order
  for (const auto& event : events_of(trace, "X")) {
    EXPECT_EQ(event.at("args").at("i"), next[event.at("args").at("thread").get<int>()]++);
  }
  for (int t = 0; t < kThreads; ++t) EXPECT_EQ(next[t], kEvents);
  std::set<std::string> names;
  for (const auto& event : events_of(trace, "M")) {
    if (event.at("name") == "thread_name") names.insert(event.at("args").at("name"));
  }
  EXPECT_TRUE(names.contains("worker0") && names.contains("worker3"));
  EXPECT_EQ(tracer.dropped(), 0U);
}

TEST_F(TraceTest, SeveralTracersOnOneThreadKeepTheirEventsApart) {
  constexpr int kTracers = 6;  // more than a thread remembers
  std::vector<std::unique_ptr<Tracer>> tracers;
  tracers.reserve(kTracers);
  for (int rank = 0; rank < kTracers; ++rank) tracers.push_back(std::make_unique<Tracer>(options(rank)));
  for (int i = 0; i < 10; ++i) {
    for (const auto& tracer : tracers) trace_instant(tracer.get(), "tick", "test");
  }
  for (const auto& tracer : tracers) {
    ASSERT_TRUE(tracer->flush());
    const Json trace = load(tracer->path());
    EXPECT_EQ(events_of(trace, "i").size(), 10U);
    EXPECT_EQ(events_of(trace, "M").size(), 3U) << "process, order, and this thread once";
  }
}

TEST_F(TraceTest, WhatIsTooFarAheadOfTheFileIsDroppedAndCounted) {
  auto small = options(0);
  small.max_pending = 1000;
  Tracer tracer(small);
  for (int i = 0; i < 1500; ++i) trace_instant(&tracer, "tick", "test");
  EXPECT_EQ(tracer.dropped(), 500U);
  ASSERT_TRUE(tracer.flush());
  trace_instant(&tracer, "after", "test");
  ASSERT_TRUE(tracer.flush());
  const Json trace = load(tracer.path());
  EXPECT_EQ(events_of(trace, "i").size(), 1001U);
  EXPECT_EQ(trace.at("otherData").at("dropped_events"), 500);
}

TEST_F(TraceTest, AFileThatCannotBeMadeIsNamed) {
  const std::string missing = folder_ / "no/t";
  try {
    const Tracer tracer({.path = missing, .rank = 2});
    FAIL() << "no exception";
  } catch (const Exception& e) {
    EXPECT_EQ(std::string(e.what()), "trace: not_found: open " + missing + ".2: No such file or directory");
  }
}

TEST_F(TraceTest, AFullDiskIsAnErrorNamingTheFile) {
  if (::access("/dev/full", W_OK) != 0) GTEST_SKIP() << "no /dev/full";
  std::filesystem::create_symlink("/dev/full", folder_ / "t.0.json");
  try {
    const Tracer tracer(options(0));
    FAIL() << "no exception";
  } catch (const Exception& e) {
    EXPECT_EQ(e.error().code, Errc::no_space);
    EXPECT_EQ(e.error().message, "write " + (folder_ / "t.0.json").string() + ": No space left on device");
  }
}

TEST_F(TraceTest, WhatCouldNotBeWrittenComesWithTheNextFlush) {
  Tracer tracer(options(0));
  trace_instant(&tracer, "first", "test");
  const auto handler = ::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const rlimit small{.rlim_cur = std::filesystem::file_size(tracer.path()) + 10, .rlim_max = before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const auto failed = tracer.flush();
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  ::signal(SIGXFSZ, handler);
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error().to_string(), "trace: io_error: write " + tracer.path() + ": File too large");
  trace_instant(&tracer, "second", "test");
  ASSERT_TRUE(tracer.flush());
  const auto instants = events_of(load(tracer.path()), "i");
  ASSERT_EQ(instants.size(), 2U);
  EXPECT_EQ(instants[0].at("name"), "first");
}

TEST_F(TraceTest, AForkedChildLeavesTheFileAlone) {
  auto tracer = std::make_unique<Tracer>(options(0));
  trace_instant(tracer.get(), "parent", "test");
  const pid_t child = ::fork();
  if (child == 0) {
    ::alarm(120);
    trace_instant(tracer.get(), "child", "test");
    const auto flushed = tracer->flush();
    tracer.reset();
    ::_exit(!flushed && flushed.error().code == Errc::forked ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_TRUE(events_of(load(tracer->path()), "i").empty());
  ASSERT_TRUE(tracer->flush());
  EXPECT_EQ(events_of(load(tracer->path()), "i").size(), 1U);
}

/// Runs scripts/merge-traces.py; all it says, and whether it succeeded.
struct Merge {
  explicit Merge(const std::string& arguments) {
    const std::string command =
        "python3 " + std::string(DTR_SOURCE_DIR) + "/scripts/merge-traces.py " + arguments + " 2>&1";
    FILE* pipe = ::popen(command.c_str(), "r");
    std::array<char, 4096> piece{};
    while (std::fgets(piece.data(), piece.size(), pipe) != nullptr) output += piece.data();
    ok = ::pclose(pipe) == 0;
  }
  std::string output;
  bool ok = false;
};

TEST_F(TraceTest, MergedRanksStandOnOneTimeLine) {
  const std::string out = folder_ / "all.json";
  double distance_us = 0;
  {
    Tracer first(options(0));
    const std::int64_t early = monotonic_ns();
    trace_instant(&first, "early", "test");
    ::usleep(30'000);
    Tracer second(options(1));
    trace_instant(&second, "late", "test");
    distance_us = static_cast<double>(monotonic_ns() - early) / 1000;
    trace_instant(&first, "latest", "test");
  }
  const Merge merge(out + " " + (folder_ / "t.1.json").string() + " " + (folder_ / "t.0.json").string());
  ASSERT_TRUE(merge.ok) << merge.output;
  const Json merged = load(out);
  std::map<std::string, Json> named;
  for (const auto& event : events_of(merged, "i")) named[event.at("name")] = event;
  ASSERT_EQ(named.size(), 3U);
  const auto at = [&](const char* name) { return named.at(name).at("ts").get<double>(); };
  EXPECT_EQ(named.at("early").at("pid"), 0);
  EXPECT_EQ(named.at("late").at("pid"), 1);
  EXPECT_GE(at("late") - at("early"), 30'000.0);
  EXPECT_LE(at("late") - at("early"), distance_us + 1000.0);
  EXPECT_LE(at("late"), at("latest"));
  EXPECT_EQ(merged.at("otherData").at("ranks"), (Json{0, 1}));
}

TEST_F(TraceTest, HostsAreAlignedByTheirWallClocks) {
  const auto make = [&](int rank, const std::string& boot, std::int64_t wall, std::int64_t monotonic) {
    const Json about{{"format", "dtr-trace-1"},         {"rank", rank},    {"start_wall_ns", wall},
                     {"start_monotonic_ns", monotonic}, {"boot_id", boot}, {"dropped_events", 1}};
    const Json event{{"ph", "i"}, {"name", "x"}, {"pid", rank}, {"tid", 1}, {"ts", 1.0}, {"s", "t"}};
    const std::string file = folder_ / ("h" + std::to_string(rank));
    EXPECT_TRUE(replace_file(file, Json{{"traceEvents", {event}}, {"otherData", about}}.dump()));
    return " " + file;
  };
  const std::string out = folder_ / "all.json";
  // Rank 1 shares the host of rank 0, whose wall clock was set back in between: the monotonic clock counts there.
  const Merge merge(out + make(0, "a", 1'700'000'000'000'000'000, 1'000'000) +
                    make(1, "a", 1'600'000'000'000'000'000, 3'000'000) + make(2, "b", 1'700'000'000'005'000'000, 77));
  ASSERT_TRUE(merge.ok) << merge.output;
  std::map<int, double> ts;
  const Json merged = load(out);
  for (const auto& event : events_of(merged, "i")) ts[event.at("pid")] = event.at("ts");
  EXPECT_DOUBLE_EQ(ts.at(0), 1.0);
  EXPECT_DOUBLE_EQ(ts.at(1), 2001.0);
  EXPECT_DOUBLE_EQ(ts.at(2), 5001.0);
  EXPECT_EQ(merged.at("otherData").at("dropped_events"), 3);
}

TEST_F(TraceTest, MergeRefusesWhatIsNoTraceByName) {
  { const Tracer tracer(options(0)); }
  const std::string good = folder_ / "t.0.json";
  const std::string bad = folder_ / "bad";
  const std::string out = folder_ / "out";
  const auto refusal = [&](const std::string& inputs) {
    const Merge merge(out + " " + inputs);
    EXPECT_FALSE(merge.ok);
    EXPECT_FALSE(std::filesystem::exists(out));
    return merge.output;
  };
  EXPECT_EQ(refusal(good + " " + bad), "merge-traces: " + bad + ": No such file or directory\n");
  ASSERT_TRUE(replace_file(bad, "{\"traceEvents\":["));
  EXPECT_EQ(refusal(bad).rfind("merge-traces: " + bad + ": no JSON: ", 0), 0U);
  ASSERT_TRUE(replace_file(bad, "{\"traceEvents\":[]}"));
  EXPECT_EQ(refusal(bad), "merge-traces: " + bad + ": no trace of one rank (format dtr-trace-1)\n");
  EXPECT_EQ(refusal(good + " " + good), "merge-traces: " + good + ": rank 0 is already in " + good + "\n");
  EXPECT_EQ(refusal(""), "usage: merge-traces.py OUT IN...\n");
}

}  // namespace
}  // namespace dtr
