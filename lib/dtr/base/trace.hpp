// What happened when, for people: a file per rank that Perfetto and chrome://tracing open.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "dtr/base/clock.hpp"
#include "dtr/base/error.hpp"
#include "dtr/base/fd.hpp"
#include "dtr/base/fork_guard.hpp"
#include "dtr/base/thread.hpp"

namespace dtr::inline v0 {

/// One thing that happened. Texts are kept by address: string literals only.
struct TraceEvent {
  enum class Kind : char { span = 'X', instant = 'i', counter = 'C' };

  struct Argument {
    const char* key = nullptr;
    std::int64_t value = 0;
  };

  Kind kind = Kind::instant;
  const char* name = "";
  const char* category = "";
  std::int64_t start_ns = 0;  ///< monotonic_ns()
  std::int64_t duration_ns = 0;
  Argument arguments[2]{};  ///< used while key is set
};

struct TraceOptions {
  std::string path{};  ///< as rank_path() makes it: `{rank}` replaced, else the rank before the extension
  int rank = 0;
  std::chrono::milliseconds flush_interval{1000};  ///< how often a thread of the tracer writes; 0 = flush() only
  std::size_t max_pending = std::size_t{1} << 20;  ///< events a thread may be ahead of the file; more are dropped
};

/// Collects events of all threads and writes them as JSON (traceEvents; pid = rank). record() goes to a buffer of the
/// calling thread: no lock, an allocation every 512 events. After each flush the file is whole, valid JSON, so what a
/// killed process had flushed can be read. Any thread; the tracer has to outlive its users.
class Tracer {
 public:
  /// Throws Exception naming the path if the file cannot be made.
  explicit Tracer(const TraceOptions& options);
  ~Tracer();  ///< flushes
  Tracer(const Tracer&) = delete;
  Tracer& operator=(const Tracer&) = delete;

  void record(const TraceEvent& event) noexcept;

  /// Brings the file up to date with all that was recorded before the call. Errors name the path; the events stay
  /// for the next flush.
  [[nodiscard]] Result<void> flush();

  [[nodiscard]] const std::string& path() const noexcept { return path_; }

  /// Events lost to max_pending or for want of memory; the file has the number too.
  [[nodiscard]] std::uint64_t dropped() const noexcept { return dropped_.load(std::memory_order_relaxed); }

 private:
  class Buffer;

  [[nodiscard]] Buffer& buffer();
  [[nodiscard]] Buffer& register_thread();
  [[nodiscard]] Result<void> write_unwritten();

  const std::string path_;
  const int rank_;
  const std::size_t max_pending_;
  const std::uint64_t id_;  ///< never used twice in a process
  const std::int64_t start_ns_;
  const std::int64_t start_wall_ns_;
  const std::string boot_id_;
  std::atomic<std::uint64_t> dropped_{0};
  ForkGuard fork_guard_;

  std::mutex mutex_;  ///< of all below
  std::vector<std::unique_ptr<Buffer>> buffers_;
  std::string unwritten_;  ///< JSON of events that are not in the file yet
  UniqueFd file_;
  std::int64_t events_end_ = 0;  ///< where the file's tail begins
  Thread thread_;
};

/// A span from construction to destruction. With a null tracer it costs that one test.
class TraceSpan {
 public:
  TraceSpan(Tracer* tracer, const char* name, const char* category) noexcept : tracer_(tracer) {
    if (tracer_ == nullptr) return;
    event_.kind = TraceEvent::Kind::span;
    event_.name = name;
    event_.category = category;
    event_.start_ns = monotonic_ns();
  }
  ~TraceSpan() { end(); }
  TraceSpan(const TraceSpan&) = delete;
  TraceSpan& operator=(const TraceSpan&) = delete;

  /// Up to two; more are left out.
  void argument(const char* key, std::int64_t value) noexcept {
    if (tracer_ == nullptr) return;
    for (auto& argument : event_.arguments) {
      if (argument.key != nullptr) continue;
      argument = {.key = key, .value = value};
      return;
    }
  }

  /// Ends it before its scope does.
  void end() noexcept {
    if (tracer_ == nullptr) return;
    event_.duration_ns = monotonic_ns() - event_.start_ns;
    tracer_->record(event_);
    tracer_ = nullptr;
  }

 private:
  Tracer* tracer_;
  TraceEvent event_;
};

/// Marks a moment.
inline void trace_instant(Tracer* tracer, const char* name, const char* category) noexcept {
  if (tracer == nullptr) return;
  tracer->record({.kind = TraceEvent::Kind::instant, .name = name, .category = category, .start_ns = monotonic_ns()});
}

/// Draws a value over time.
inline void trace_counter(Tracer* tracer, const char* name, std::int64_t value) noexcept {
  if (tracer == nullptr) return;
  TraceEvent event{.kind = TraceEvent::Kind::counter, .name = name, .start_ns = monotonic_ns()};
  event.arguments[0] = {.key = "value", .value = value};
  tracer->record(event);
}

}  // namespace dtr::inline v0
