#include "dtr/base/log.hpp"

#include <array>
#include <atomic>
#include <cerrno>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <spdlog/logger.h>
#include <spdlog/sinks/base_sink.h>
#include <unistd.h>

#include "dtr/base/config.hpp"
#include "dtr/base/fd.hpp"
#include "dtr/base/file.hpp"
#include "dtr/base/fork_guard.hpp"

namespace dtr::inline v0 {

namespace {

constexpr std::array<std::string_view, 6> kLevelNames{"trace", "debug", "info", "warn", "error", "off"};

spdlog::level::level_enum spd_level(LogLevel level) noexcept {
  switch (level) {
    case LogLevel::trace:
      return spdlog::level::trace;
    case LogLevel::debug:
      return spdlog::level::debug;
    case LogLevel::info:
      return spdlog::level::info;
    case LogLevel::warn:
      return spdlog::level::warn;
    case LogLevel::error:
      return spdlog::level::err;
    case LogLevel::off:
      break;
  }
  return spdlog::level::off;
}

/// One write(2) a line: with O_APPEND the lines of several ranks in one file stay whole. spdlog's own file sink
/// leaves its descriptor open across exec.
class DescriptorSink final : public spdlog::sinks::base_sink<std::mutex> {
 public:
  explicit DescriptorSink(int borrowed) : fd_(borrowed) {}
  explicit DescriptorSink(UniqueFd owned) : owned_(std::move(owned)), fd_(owned_.get()) {}

 protected:
  void sink_it_(const spdlog::details::log_msg& message) override {
    spdlog::memory_buf_t line;
    formatter_->format(message, line);
    const char* next = line.data();
    std::size_t left = line.size();
    while (left > 0) {
      const ssize_t put = ::write(fd_, next, left);
      if (put < 0 && errno == EINTR) continue;
      if (put <= 0) return;  // a full disk or a closed terminal: there is no place left to complain to
      next += put;
      left -= static_cast<std::size_t>(put);
    }
  }
  void flush_() override {}

 private:
  UniqueFd owned_;
  int fd_;
};

std::shared_ptr<spdlog::logger> make_logger(std::vector<spdlog::sink_ptr> sinks) {
  auto logger = std::make_shared<spdlog::logger>("dtr", sinks.begin(), sinks.end());
  logger->set_level(spdlog::level::trace);  // log_level decides
  logger->set_pattern("%Y-%m-%dT%H:%M:%S.%f%z %v", spdlog::pattern_time_type::utc);
  return logger;
}

// The log is the library's only global object that changes. Level and rank stand apart from the sink, so that asking
// for the level neither makes one nor can fail.
constinit std::atomic<LogLevel> log_level{LogLevel::warn};
constinit std::atomic<int> log_rank{-1};

/// Where lines go; made with the first line or configuration.
class Sink {
 public:
  static Sink& instance() {
    static auto* const sink = new Sink();  // never destroyed: threads may still log while the process exits
    return *sink;
  }

  void replace(std::shared_ptr<spdlog::logger> logger) {
    const std::scoped_lock lock(mutex_);
    logger_.swap(logger);
  }

  void write(LogLevel level, const std::string& line) {
    if (fork_guard_.in_forked_child()) {
      // Another thread may have held a lock of the log at the fork; nobody is left to release it.
      const std::string raw = "forked child: " + line + "\n";
      if (::write(STDERR_FILENO, raw.data(), raw.size()) < 0) return;
      return;
    }
    std::shared_ptr<spdlog::logger> logger;
    {
      const std::scoped_lock lock(mutex_);
      logger = logger_;
    }
    logger->log(spd_level(level), spdlog::string_view_t(line.data(), line.size()));
  }

 private:
  Sink() : logger_(make_logger({std::make_shared<DescriptorSink>(STDERR_FILENO)})) {}

  std::mutex mutex_;
  std::shared_ptr<spdlog::logger> logger_;
  ForkGuard fork_guard_;
};

void append_escaped(std::string& line, std::string_view text) {
  constexpr std::string_view kHex = "0123456789abcdef";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '\n') {
      line += "\\n";
    } else if (c == '\t') {
      line += "\\t";
    } else if (byte < 0x20 || byte == 0x7f) {
      line += "\\x";
      line += kHex[byte >> 4U];
      line += kHex[byte & 0xfU];
    } else {
      line += c;
    }
  }
}

std::string_view file_name(std::string_view path) {
  const auto slash = path.rfind('/');
  return slash == std::string_view::npos ? path : path.substr(slash + 1);
}

}  // namespace

std::string_view to_string(LogLevel level) noexcept {
  const auto index = static_cast<std::size_t>(level);
  return index < kLevelNames.size() ? kLevelNames[index] : "unknown";
}

Result<LogLevel> parse_log_level(std::string_view text) {
  for (std::size_t i = 0; i < kLevelNames.size(); ++i) {
    if (kLevelNames[i] == text) return static_cast<LogLevel>(i);
  }
  return fail(Errc::invalid_argument,
              "log level '" + std::string(text) + "' is none of trace, debug, info, warn, error, off",
              "parse_log_level");
}

Result<void> configure_log(const LogOptions& options) {
  std::vector<spdlog::sink_ptr> sinks;
  if (options.to_stderr) sinks.push_back(std::make_shared<DescriptorSink>(STDERR_FILENO));
  if (!options.file.empty()) {
    const std::string path =
        options.file.find("{rank}") == std::string::npos ? options.file : rank_path(options.file, options.rank);
    UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666));
    if (!fd) return fail(errno_error(errno, "log file " + path, "configure_log"));
    sinks.push_back(std::make_shared<DescriptorSink>(std::move(fd)));
  }
  Sink::instance().replace(make_logger(std::move(sinks)));
  set_log_level(options.level);
  set_log_rank(options.rank);
  return {};
}

Result<void> configure_log(const Config& config, int rank) {
  const auto level = parse_log_level(config.text("log.level"));
  if (!level) return fail(level.error());
  return configure_log({.level = *level, .file = config.text("log.file"), .rank = rank});
}

void set_log_level(LogLevel level) noexcept { log_level.store(level, std::memory_order_relaxed); }

void set_log_rank(int rank) noexcept { log_rank.store(rank, std::memory_order_relaxed); }

bool log_enabled(LogLevel level) noexcept {
  return level < LogLevel::off && level >= log_level.load(std::memory_order_relaxed);
}

void log_message(LogLevel level, const char* file, int line, std::string_view text) noexcept {
  try {
    if (!log_enabled(level)) return;
    std::string whole(to_string(level));
    const int rank = log_rank.load(std::memory_order_relaxed);
    whole += rank >= 0 ? " rank " + std::to_string(rank) : " rank -";
    whole += ": ";
    append_escaped(whole, text);
    whole += " [";
    whole += file_name(file);
    whole += ":" + std::to_string(line) + "]";
    Sink::instance().write(level, whole);
  } catch (...) {
    // No memory for a log line: the work goes on without it.
    return;
  }
}

}  // namespace dtr::inline v0
