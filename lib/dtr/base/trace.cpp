#include "dtr/base/trace.hpp"

#include <array>
#include <cerrno>
#include <condition_variable>
#include <cstdio>

#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>

#include "dtr/base/file.hpp"
#include "dtr/base/log.hpp"

namespace dtr::inline v0 {

namespace {

constexpr const char* kOperation = "trace";
constexpr std::size_t kMostUnwritten = std::size_t{64} << 20;
constexpr const char* kHead = "{\"displayTimeUnit\":\"ns\",\"traceEvents\":[\n";

std::uint64_t next_number() noexcept {
  static std::atomic<std::uint64_t> last{0};
  return last.fetch_add(1, std::memory_order_relaxed) + 1;
}

void append_json_string(std::string& text, std::string_view raw) {
  text += '"';
  for (const char c : raw) {
    if (c == '"' || c == '\\') {
      text += '\\';
      text += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      char escape[8];
      std::snprintf(escape, sizeof(escape), "\\u%04x", static_cast<unsigned>(static_cast<unsigned char>(c)));
      text += escape;
    } else {
      text += c;
    }
  }
  text += '"';
}

/// The format counts in us; the digits after the point keep the ns.
void append_us(std::string& text, std::int64_t ns) {
  char digits[40];
  std::snprintf(digits, sizeof(digits), "%s%lld.%03lld", ns < 0 ? "-" : "",
                static_cast<long long>(ns < 0 ? -(ns / 1000) : ns / 1000),
                static_cast<long long>(ns < 0 ? -(ns % 1000) : ns % 1000));
  text += digits;
}

/// The same for all processes of a host until it boots again: their monotonic clocks are one.
std::string boot_id() {
  auto text = read_file("/proc/sys/kernel/random/boot_id").value_or("");
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text;
}

/// Wall time at the monotonic time `at`; of several looks the least disturbed one.
std::int64_t wall_time_at(std::int64_t at) {
  std::int64_t best_gap = INT64_MAX;
  std::int64_t offset = 0;
  for (int i = 0; i < 5; ++i) {
    const std::int64_t before = monotonic_ns();
    const std::int64_t wall = wall_ns();
    const std::int64_t gap = monotonic_ns() - before;
    if (gap >= best_gap) continue;
    best_gap = gap;
    offset = wall - before - gap / 2;
  }
  return at + offset;
}

}  // namespace

/// Events of one thread, in pieces: the thread appends, whoever flushes takes away, and neither waits for the other.
class Tracer::Buffer {
 public:
  explicit Buffer(std::uint64_t thread) : first_(new Piece), last_(first_), thread_(thread), thread_id_(::gettid()) {
    char name[16] = {};
    if (::pthread_getname_np(::pthread_self(), name, sizeof(name)) == 0) thread_name_ = name;
  }
  ~Buffer() {
    while (first_ != nullptr) {
      const std::unique_ptr<Piece> gone(first_);
      first_ = gone->next.load(std::memory_order_relaxed);
    }
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  /// The owning thread only. False: dropped.
  [[nodiscard]] bool append(const TraceEvent& event, std::size_t max_pending) noexcept {
    if (appended_ - taken_.load(std::memory_order_relaxed) >= max_pending) return false;
    std::size_t used = last_->used.load(std::memory_order_relaxed);
    if (used == kPiece) {
      auto* fresh = new (std::nothrow) Piece;
      if (fresh == nullptr) return false;
      last_->next.store(fresh, std::memory_order_release);
      last_ = fresh;
      used = 0;
    }
    last_->events[used] = event;
    last_->used.store(used + 1, std::memory_order_release);
    ++appended_;
    return true;
  }

  /// One caller at a time: each event that is there, once.
  template <class Take>
  void take_all(const Take& take) {
    for (;;) {
      const std::size_t used = first_->used.load(std::memory_order_acquire);
      const std::size_t fresh = used - next_;
      for (; next_ < used; ++next_) take(first_->events[next_]);
      taken_.fetch_add(fresh, std::memory_order_relaxed);
      auto* following = first_->next.load(std::memory_order_acquire);
      if (next_ < kPiece || following == nullptr) return;
      const std::unique_ptr<Piece> gone(first_);
      first_ = following;
      next_ = 0;
    }
  }

  [[nodiscard]] std::uint64_t thread() const noexcept { return thread_; }
  [[nodiscard]] int thread_id() const noexcept { return thread_id_; }
  [[nodiscard]] const std::string& thread_name() const noexcept { return thread_name_; }

 private:
  static constexpr std::size_t kPiece = 512;
  struct Piece {
    std::array<TraceEvent, kPiece> events{};
    std::atomic<std::size_t> used{0};
    std::atomic<Piece*> next{nullptr};
  };

  Piece* first_;  ///< the reader's end
  std::size_t next_ = 0;
  std::atomic<std::uint64_t> taken_{0};
  alignas(64) Piece* last_;  ///< the thread's end
  std::uint64_t appended_ = 0;
  const std::uint64_t thread_;
  const int thread_id_;
  std::string thread_name_;
};

Tracer::Tracer(const TraceOptions& options)
    : path_(rank_path(options.path, options.rank)),
      rank_(options.rank),
      max_pending_(options.max_pending),
      id_(next_number()),
      start_ns_(monotonic_ns()),
      start_wall_ns_(wall_time_at(start_ns_)),
      boot_id_(boot_id()),
      file_(::open(path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666)) {
  if (!file_) throw Exception(errno_error(errno, "open " + path_, kOperation));
  unwritten_ = kHead;
  unwritten_ += "{\"ph\":\"M\",\"name\":\"process_name\",\"pid\":" + std::to_string(rank_) +
                ",\"args\":{\"name\":\"rank " + std::to_string(rank_) + "\"}},\n";
  unwritten_ += "{\"ph\":\"M\",\"name\":\"process_sort_index\",\"pid\":" + std::to_string(rank_) +
                ",\"args\":{\"sort_index\":" + std::to_string(rank_) + "}}";
  value_or_throw(flush());
  if (options.flush_interval.count() > 0) {
    thread_ = Thread(
        [this, interval = options.flush_interval](const std::stop_token& stop) {
          std::mutex mutex;
          std::condition_variable_any wake;
          std::unique_lock lock(mutex);
          bool complained = false;
          while (!stop.stop_requested()) {
            wake.wait_for(lock, stop, interval, [] { return false; });
            const auto written = flush();
            if (!written && !complained) DTR_LOG_WARN("the trace is not written: ", written.error().to_string());
            complained = !written;
          }
        },
        {.name = "dtr-trace"});
  }
}

Tracer::~Tracer() {
  if (fork_guard_.in_forked_child()) return;  // the file is the parent's
  thread_ = Thread();
  const auto written = flush();
  if (!written) DTR_LOG_WARN("the trace is not complete: ", written.error().to_string());
}

void Tracer::record(const TraceEvent& event) noexcept {
  if (fork_guard_.in_forked_child()) return;
  bool kept = false;
  try {
    kept = buffer().append(event, max_pending_);
  } catch (...) {
    kept = false;  // no memory for a first buffer; counted like any other loss
  }
  if (!kept) dropped_.fetch_add(1, std::memory_order_relaxed);
}

Tracer::Buffer& Tracer::buffer() {
  // A few tracers a process (one a Runtime) at most: each finds its buffer again without a lock. A line of a tracer
  // that is gone never matches, since ids are not used twice.
  struct Line {
    std::uint64_t tracer = 0;
    Buffer* buffer = nullptr;
  };
  thread_local std::array<Line, 4> lines{};
  Line& line = lines[id_ % lines.size()];
  if (line.tracer != id_) line = {id_, &register_thread()};
  return *line.buffer;
}

Tracer::Buffer& Tracer::register_thread() {
  // Not the kernel's number: that is used again for a later thread, which must not meet this one's buffer.
  thread_local const std::uint64_t thread = next_number();
  const std::scoped_lock lock(mutex_);
  for (const auto& buffer : buffers_) {
    if (buffer->thread() == thread) return *buffer;  // its line was taken by another tracer meanwhile
  }
  auto fresh = std::make_unique<Buffer>(thread);
  buffers_.push_back(std::move(fresh));
  Buffer& added = *buffers_.back();
  std::string name;
  append_json_string(name, added.thread_name());
  unwritten_ += ",\n{\"ph\":\"M\",\"name\":\"thread_name\",\"pid\":" + std::to_string(rank_) +
                ",\"tid\":" + std::to_string(added.thread_id()) + ",\"args\":{\"name\":" + name + "}}";
  return added;
}

Result<void> Tracer::flush() {
  if (auto alive = fork_guard_.check(kOperation); !alive) return alive;
  const std::scoped_lock lock(mutex_);
  std::string& text = unwritten_;
  const std::string process = ",\"pid\":" + std::to_string(rank_);
  for (const auto& buffer : buffers_) {
    // A disk that stays full must not fill the memory: events wait in their buffers, where max_pending ends them.
    if (text.size() > kMostUnwritten) break;
    const std::string place = process + ",\"tid\":" + std::to_string(buffer->thread_id());
    buffer->take_all([&](const TraceEvent& event) {
      text += ",\n{\"ph\":\"";
      text += static_cast<char>(event.kind);
      text += "\",\"name\":";
      append_json_string(text, event.name);
      if (*event.category != '\0') {
        text += ",\"cat\":";
        append_json_string(text, event.category);
      }
      text += ",\"ts\":";
      append_us(text, event.start_ns - start_ns_);
      if (event.kind == TraceEvent::Kind::span) {
        text += ",\"dur\":";
        append_us(text, event.duration_ns);
      }
      if (event.kind == TraceEvent::Kind::instant) text += ",\"s\":\"t\"";
      text += place;
      bool first = true;
      for (const auto& argument : event.arguments) {
        if (argument.key == nullptr) continue;
        text += first ? ",\"args\":{" : ",";
        append_json_string(text, argument.key);
        text += ":" + std::to_string(argument.value);
        first = false;
      }
      text += first ? "}" : "}}";
    });
  }
  return write_unwritten();
}

Result<void> Tracer::write_unwritten() {
  const std::string tail = "\n],\"otherData\":{\"format\":\"dtr-trace-1\",\"rank\":" + std::to_string(rank_) +
                           ",\"start_wall_ns\":" + std::to_string(start_wall_ns_) +
                           ",\"start_monotonic_ns\":" + std::to_string(start_ns_) + ",\"boot_id\":\"" + boot_id_ +
                           "\",\"dropped_events\":" + std::to_string(dropped()) + "}}\n";
  const std::size_t events = unwritten_.size();
  unwritten_ += tail;
  std::size_t done = 0;
  int error = 0;
  while (done < unwritten_.size() && error == 0) {
    const ssize_t put = ::pwrite(file_.get(), unwritten_.data() + done, unwritten_.size() - done,
                                 events_end_ + static_cast<std::int64_t>(done));
    if (put > 0) {
      done += static_cast<std::size_t>(put);
    } else if (put == 0 || errno != EINTR) {
      error = put == 0 ? EIO : errno;
    }
  }
  unwritten_.resize(events);
  if (error != 0) return fail(errno_error(error, "write " + path_, kOperation));
  events_end_ += static_cast<std::int64_t>(events);
  unwritten_.clear();
  return {};
}

}  // namespace dtr::inline v0
