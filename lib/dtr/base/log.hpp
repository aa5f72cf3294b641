// Log lines: what the library decided and why, for people. Off below `warn` unless asked for.
#pragma once

#include <exception>
#include <sstream>
#include <string>
#include <string_view>
#include <type_traits>

#include "dtr/base/error.hpp"

namespace dtr::inline v0 {

class Config;

enum class LogLevel : int { trace, debug, info, warn, error, off };

[[nodiscard]] std::string_view to_string(LogLevel level) noexcept;

/// "info" -> LogLevel::info. Error: invalid_argument naming the levels.
[[nodiscard]] Result<LogLevel> parse_log_level(std::string_view text);

struct LogOptions {
  LogLevel level = LogLevel::warn;
  std::string file{};     ///< appended to, `{rank}` replaced, one line a write; empty = no file
  bool to_stderr = true;  ///< also with a file
  int rank = -1;          ///< on each line and in `file`; -1 = not known yet
};

/// Sets the process's one log: all Runtimes share it, the last call wins. Any thread, at any time.
/// Errors: not_found, permission_denied, io_error... naming the file; the log then stays as it was.
[[nodiscard]] Result<void> configure_log(const LogOptions& options);

/// The same from the settings log.level and log.file.
[[nodiscard]] Result<void> configure_log(const Config& config, int rank);

void set_log_level(LogLevel level) noexcept;
void set_log_rank(int rank) noexcept;

[[nodiscard]] bool log_enabled(LogLevel level) noexcept;

/// Writes one line: UTC time, level, rank, text, place. Control characters are escaped, so that text from a peer or
/// a file cannot fake a line. Any thread; never throws; use the macros below.
void log_message(LogLevel level, const char* file, int line, std::string_view text) noexcept;

/// All parts in a row, each as operator<< prints it.
template <class... Parts>
[[nodiscard]] std::string log_text(const Parts&... parts) {
  if constexpr (sizeof...(Parts) == 1 && (std::is_convertible_v<const Parts&, std::string_view> && ...)) {
    return std::string(std::string_view(parts...));
  } else {
    std::ostringstream text;
    (text << ... << parts);
    return std::move(text).str();
  }
}

}  // namespace dtr::inline v0

// Macros, so that a line below the level does not even build its text: DTR_LOG_INFO("rank ", peer, " by ", path);
// A line for which there is no memory is left out: whoever logs goes on, also where nothing may be thrown.
#define DTR_LOG_AT(level, ...)                                                       \
  do {                                                                               \
    if (::dtr::log_enabled(level)) {                                                 \
      try {                                                                          \
        ::dtr::log_message(level, __FILE__, __LINE__, ::dtr::log_text(__VA_ARGS__)); \
      } catch (const std::exception&) {                                              \
      }                                                                              \
    }                                                                                \
  } while (false)
#define DTR_LOG_TRACE(...) DTR_LOG_AT(::dtr::LogLevel::trace, __VA_ARGS__)
#define DTR_LOG_DEBUG(...) DTR_LOG_AT(::dtr::LogLevel::debug, __VA_ARGS__)
#define DTR_LOG_INFO(...) DTR_LOG_AT(::dtr::LogLevel::info, __VA_ARGS__)
#define DTR_LOG_WARN(...) DTR_LOG_AT(::dtr::LogLevel::warn, __VA_ARGS__)
#define DTR_LOG_ERROR(...) DTR_LOG_AT(::dtr::LogLevel::error, __VA_ARGS__)
