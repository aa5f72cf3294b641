// How the text of a setting becomes its value.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "dtr/base/config.hpp"

namespace dtr::inline v0 {
namespace config {

/// "ms", "bytes", ... or "".
[[nodiscard]] std::string_view unit_name(SettingUnit unit) noexcept;

/// ns in one unit of time; 0 for others.
[[nodiscard]] std::int64_t unit_ns(SettingUnit unit) noexcept;

/// "trace debug" -> {"trace", "debug"}.
[[nodiscard]] std::vector<std::string> words(std::string_view text, char separator = ' ');

/// "trace, debug, off".
[[nodiscard]] std::string join(const std::vector<std::string>& parts, std::string_view separator = ", ");

/// "1 to 64", or the choices.
[[nodiscard]] std::string range_text(const Setting& setting);

/// A number without needless digits: 0.001, 65535, 4096.
[[nodiscard]] std::string number_text(double number);

/// Parsed text, or what is wrong with it in words that follow "key = 'text'": " is no integer".
struct Parsed {
  std::string text{};  ///< in the row's unit: "5s" of a row in ms is "5000"
  std::int64_t integer = 0;
  double real = 0;
  std::vector<std::string> list{};
  std::string complaint{};
};
[[nodiscard]] Parsed parse_value(const Setting& setting, std::string_view text);

/// The candidate with the fewest typing errors between it and `name`; one with the same last part counts as near.
[[nodiscard]] std::string nearest(std::string_view name, const std::vector<std::string>& candidates);

}  // namespace config
}  // namespace dtr::inline v0
