// Every setting of the library: one table, four places it may be set, and where each value came from.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dtr/base/error.hpp"

namespace dtr::inline v0 {

enum class SettingType { boolean, integer, real, text, choice, list };

/// What a number counts. Text may carry a suffix instead: "64KiB", "5s", "200ms".
enum class SettingUnit { none, microseconds, milliseconds, seconds, bytes };

/// One row of the table in config_table.cpp.
struct Setting {
  std::string_view key{};          ///< "progress.spin_us": TOML section and key
  std::string_view environment{};  ///< empty = DTR_ and the key in capitals
  SettingType type = SettingType::text;
  SettingUnit unit = SettingUnit::none;
  std::string_view initial{};  ///< the default, as text
  double minimum = 0;          ///< integer and real: both ends belong to the range
  double maximum = 0;
  std::string_view choices{};  ///< choice and list: the words allowed, separated by spaces
  std::string_view help{};
  std::string_view key_aliases{};          ///< further keys, separated by spaces
  std::string_view environment_aliases{};  ///< further variables, separated by spaces; the first name wins
  std::string (*complaint)(std::string_view value) = nullptr;  ///< a rule beyond type and range; "" = fine
};

/// The one table of settings, grouped by section.
[[nodiscard]] std::span<const Setting> settings() noexcept;

/// The row's first environment variable: "DTR_PROGRESS_SPIN_US".
[[nodiscard]] std::string environment_name(const Setting& setting);

using ConfigPairs = std::vector<std::pair<std::string, std::string>>;

struct ConfigOptions {
  std::string file{};       ///< TOML; empty = the variable DTR_CONFIG; that empty too = no file
  ConfigPairs overrides{};  ///< {{"log.level", "info"}}: from code, beats everything; a later pair beats an earlier one
  std::optional<ConfigPairs> environment{};  ///< unset = the process's
};

/// The settings of one Runtime: default < TOML file < environment < code. A value, cheap to read and copy.
class Config {
 public:
  /// What `dtr_info --config` prints.
  struct Row {
    std::string key{};
    std::string value{};
    std::string unit{};    ///< "ms", "bytes", ... or ""
    std::string origin{};  ///< as origin()
    std::string environment{};
    std::string help{};
  };

  /// All defaults, whatever the file and the environment say.
  Config();

  /// Errors, always config_error, naming the file and line or the variable: a file that cannot be read, TOML syntax,
  /// an unknown key or DTR_ variable (with the nearest known one), a wrong type, a value out of range.
  /// DTR_CONFIG, DTR_TEST_*, and the build's own DTR_WITH_*, DTR_BUILD_* are not settings and pass.
  [[nodiscard]] static Result<Config> load(const ConfigOptions& options = {});

  // Typed access by key. A key that the table does not have with that type throws Exception (internal): a bug.
  [[nodiscard]] bool boolean(std::string_view key) const;
  [[nodiscard]] std::int64_t integer(std::string_view key) const;
  [[nodiscard]] double real(std::string_view key) const;
  [[nodiscard]] const std::string& text(std::string_view key) const;  ///< of text and choice
  [[nodiscard]] const std::vector<std::string>& list(std::string_view key) const;
  [[nodiscard]] std::chrono::nanoseconds duration(std::string_view key) const;  ///< of any number with a unit of time

  /// "default", "file train.toml:12", "environment DTR_LOG", "code".
  [[nodiscard]] const std::string& origin(std::string_view key) const;

  /// False while the default stands.
  [[nodiscard]] bool is_set(std::string_view key) const;

  /// All rows in the table's order.
  [[nodiscard]] std::vector<Row> describe() const;

  /// The table as Markdown, for docs/configuration.md.
  [[nodiscard]] static std::string markdown();

 private:
  struct Value {
    std::string text{};
    std::int64_t integer = 0;  ///< boolean: 0 or 1
    double real = 0;
    std::vector<std::string> list{};
    std::string origin{};
  };

  [[nodiscard]] const Value& at(std::string_view key, std::initializer_list<SettingType> types) const;
  [[nodiscard]] Result<void> set(std::size_t row, std::string_view text, const std::string& origin);
  [[nodiscard]] Result<void> set_from_file(const std::string& path);
  [[nodiscard]] Result<void> set_from_environment(const ConfigPairs& environment);
  [[nodiscard]] Result<void> set_from_code(const ConfigPairs& overrides);
  [[nodiscard]] Result<void> check_pairs() const;

  std::vector<Value> values_;  ///< by row
};

}  // namespace dtr::inline v0
