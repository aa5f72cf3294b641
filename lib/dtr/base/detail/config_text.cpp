#include "dtr/base/detail/config_text.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>

namespace dtr::inline v0 {
namespace config {

namespace {

struct Suffix {
  std::string_view name;
  std::int64_t factor;  ///< ns or bytes
};

constexpr std::array<Suffix, 6> kTimeSuffixes{{{"ns", 1},
                                               {"us", 1'000},
                                               {"ms", 1'000'000},
                                               {"s", 1'000'000'000},
                                               {"min", 60'000'000'000},
                                               {"h", 3'600'000'000'000}}};
constexpr std::array<Suffix, 9> kByteSuffixes{{{"B", 1},
                                               {"kB", 1'000},
                                               {"MB", 1'000'000},
                                               {"GB", 1'000'000'000},
                                               {"TB", 1'000'000'000'000},
                                               {"KiB", std::int64_t{1} << 10},
                                               {"MiB", std::int64_t{1} << 20},
                                               {"GiB", std::int64_t{1} << 30},
                                               {"TiB", std::int64_t{1} << 40}}};

std::span<const Suffix> suffixes(SettingUnit unit) {
  if (unit == SettingUnit::none) return {};
  if (unit == SettingUnit::bytes) return kByteSuffixes;
  return kTimeSuffixes;
}

std::string suffix_names(SettingUnit unit) {
  std::vector<std::string> names;
  for (const auto& suffix : suffixes(unit)) names.emplace_back(suffix.name);
  return join(names);
}

std::string_view trimmed(std::string_view text) {
  constexpr std::string_view kBlank = " \t";
  const auto first = text.find_first_not_of(kBlank);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kBlank) - first + 1);
}

template <class Number>
struct Quantity {
  Number number{};
  std::int64_t factor = 0;  ///< of its suffix; 0 = no suffix
  std::string complaint{};
};

template <class Number>
Quantity<Number> parse_quantity(SettingUnit unit, std::string_view text, std::string_view kind) {
  Quantity<Number> quantity;
  text = trimmed(text);
  if (text.starts_with('+')) text.remove_prefix(1);
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), quantity.number);
  if (error == std::errc::result_out_of_range) {
    quantity.complaint = " is too large";
    return quantity;
  }
  std::string no_number = " is no " + std::string(kind);
  if (unit != SettingUnit::none) no_number += ", plain or with one of " + suffix_names(unit);
  if (error != std::errc{}) {
    quantity.complaint = std::move(no_number);
    return quantity;
  }
  const auto tail = trimmed(text.substr(static_cast<std::size_t>(end - text.data())));
  if (tail.empty()) return quantity;
  for (const auto& suffix : suffixes(unit)) {
    if (suffix.name == tail) quantity.factor = suffix.factor;
  }
  if (quantity.factor == 0) quantity.complaint = std::move(no_number);
  return quantity;
}

std::int64_t unit_factor(SettingUnit unit) { return unit == SettingUnit::bytes ? 1 : unit_ns(unit); }

void parse_integer(const Setting& setting, std::string_view text, Parsed& parsed) {
  const auto quantity = parse_quantity<std::int64_t>(setting.unit, text, "integer");
  parsed.complaint = quantity.complaint;
  if (!parsed.complaint.empty()) return;
  parsed.integer = quantity.number;
  if (quantity.factor != 0) {
    // Cancelled first, so that "1h" in ns does not overflow where the result fits.
    const std::int64_t target = unit_factor(setting.unit);
    const std::int64_t common = std::gcd(quantity.factor, target);
    if (__builtin_mul_overflow(quantity.number, quantity.factor / common, &parsed.integer)) {
      parsed.complaint = " is too large";
      return;
    }
    if (parsed.integer % (target / common) != 0) {
      parsed.complaint = " is no whole number of " + std::string(unit_name(setting.unit));
      return;
    }
    parsed.integer /= target / common;
  }
  parsed.text = std::to_string(parsed.integer);
  parsed.real = static_cast<double>(parsed.integer);
}

void parse_real(const Setting& setting, std::string_view text, Parsed& parsed) {
  const auto quantity = parse_quantity<double>(setting.unit, text, "number");
  parsed.complaint = quantity.complaint;
  if (!parsed.complaint.empty()) return;
  parsed.real = quantity.number;
  if (quantity.factor != 0) {
    parsed.real *= static_cast<double>(quantity.factor) / static_cast<double>(unit_factor(setting.unit));
  }
  parsed.text = number_text(parsed.real);
}

void check_range(const Setting& setting, Parsed& parsed) {
  // Written so that NaN is outside.
  if (parsed.complaint.empty() && !(parsed.real >= setting.minimum && parsed.real <= setting.maximum)) {
    parsed.complaint = " is out of range, which is " + range_text(setting);
  }
}

void parse_boolean(std::string_view text, Parsed& parsed) {
  std::string lower(trimmed(text));
  std::transform(lower.begin(), lower.end(), lower.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  const bool yes = lower == "true" || lower == "yes" || lower == "on" || lower == "1";
  const bool no = lower == "false" || lower == "no" || lower == "off" || lower == "0";
  if (!yes && !no) {
    parsed.complaint = " is neither true, yes, on, 1 nor false, no, off, 0";
    return;
  }
  parsed.integer = yes ? 1 : 0;
  parsed.text = yes ? "true" : "false";
}

std::string choice_complaint(const Setting& setting, const std::string& word) {
  const auto choices = words(setting.choices);
  if (std::find(choices.begin(), choices.end(), word) != choices.end()) return {};
  return " is none of " + join(choices) + "; the nearest is '" + nearest(word, choices) + "'";
}

void parse_list(const Setting& setting, std::string_view text, Parsed& parsed) {
  for (const auto& part : words(text, ',')) {
    const std::string word(trimmed(part));
    if (const auto complaint = choice_complaint(setting, word); !complaint.empty()) {
      parsed.complaint.append(": '").append(word).append("'").append(complaint);
      return;
    }
    if (std::find(parsed.list.begin(), parsed.list.end(), word) == parsed.list.end()) parsed.list.push_back(word);
  }
  parsed.text = join(parsed.list, ",");
}

/// Insertions, deletions, replacements and swaps of neighbours that turn one text into the other.
std::size_t typing_errors(std::string_view a, std::string_view b) {
  std::vector<std::vector<std::size_t>> best(a.size() + 1, std::vector<std::size_t>(b.size() + 1));
  for (std::size_t i = 0; i <= a.size(); ++i) {
    for (std::size_t j = 0; j <= b.size(); ++j) {
      if (i == 0 || j == 0) {
        best[i][j] = i + j;
        continue;
      }
      const std::size_t replaced = best[i - 1][j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);
      best[i][j] = std::min({best[i - 1][j] + 1, best[i][j - 1] + 1, replaced});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        best[i][j] = std::min(best[i][j], best[i - 2][j - 2] + 1);
      }
    }
  }
  return best[a.size()][b.size()];
}

std::string_view last_part(std::string_view key) {
  const auto dot = key.rfind('.');
  return dot == std::string_view::npos ? key : key.substr(dot + 1);
}

}  // namespace

std::string_view unit_name(SettingUnit unit) noexcept {
  switch (unit) {
    case SettingUnit::none:
      return "";
    case SettingUnit::microseconds:
      return "us";
    case SettingUnit::milliseconds:
      return "ms";
    case SettingUnit::seconds:
      return "s";
    case SettingUnit::bytes:
      return "bytes";
  }
  return "";
}

std::int64_t unit_ns(SettingUnit unit) noexcept {
  switch (unit) {
    case SettingUnit::microseconds:
      return 1'000;
    case SettingUnit::milliseconds:
      return 1'000'000;
    case SettingUnit::seconds:
      return 1'000'000'000;
    case SettingUnit::none:
    case SettingUnit::bytes:
      break;
  }
  return 0;
}

std::vector<std::string> words(std::string_view text, char separator) {
  std::vector<std::string> parts;
  while (!text.empty()) {
    const auto end = text.find(separator);
    parts.emplace_back(text.substr(0, end));
    if (end == std::string_view::npos) break;
    text.remove_prefix(end + 1);
  }
  return parts;
}

std::string join(const std::vector<std::string>& parts, std::string_view separator) {
  std::string joined;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    if (i > 0) joined += separator;
    joined += parts[i];
  }
  return joined;
}

std::string number_text(double number) {
  char digits[64];
  const bool whole = std::abs(number) < 1e15 && number == std::floor(number);
  const auto end = whole ? std::to_chars(digits, digits + sizeof(digits), static_cast<std::int64_t>(number))
                         : std::to_chars(digits, digits + sizeof(digits), number);
  return {digits, end.ptr};
}

std::string range_text(const Setting& setting) {
  switch (setting.type) {
    case SettingType::integer:
    case SettingType::real: {
      const auto unit = unit_name(setting.unit);
      return number_text(setting.minimum) + " to " + number_text(setting.maximum) +
             (unit.empty() ? "" : " " + std::string(unit));
    }
    case SettingType::choice:
    case SettingType::list:
      return join(words(setting.choices));
    case SettingType::boolean:
      return "true, false";
    case SettingType::text:
      break;
  }
  return "";
}

Parsed parse_value(const Setting& setting, std::string_view text) {
  Parsed parsed;
  switch (setting.type) {
    case SettingType::boolean:
      parse_boolean(text, parsed);
      break;
    case SettingType::integer:
      parse_integer(setting, text, parsed);
      check_range(setting, parsed);
      break;
    case SettingType::real:
      parse_real(setting, text, parsed);
      check_range(setting, parsed);
      break;
    case SettingType::text:
      parsed.text = text;
      break;
    case SettingType::choice:
      parsed.text = trimmed(text);
      parsed.complaint = choice_complaint(setting, parsed.text);
      break;
    case SettingType::list:
      parse_list(setting, text, parsed);
      break;
  }
  if (parsed.complaint.empty() && setting.complaint != nullptr) {
    if (const std::string complaint = setting.complaint(parsed.text); !complaint.empty()) {
      parsed.complaint = ": " + complaint;
    }
  }
  return parsed;
}

std::string nearest(std::string_view name, const std::vector<std::string>& candidates) {
  constexpr std::size_t kOtherSection = 2;  // a right key in the wrong section is nearer than a stranger here
  std::string best;
  std::size_t fewest = std::numeric_limits<std::size_t>::max();
  for (const auto& candidate : candidates) {
    const std::size_t errors =
        std::min(typing_errors(name, candidate), kOtherSection + typing_errors(last_part(name), last_part(candidate)));
    if (errors < fewest) {
      fewest = errors;
      best = candidate;
    }
  }
  return best;
}

}  // namespace config
}  // namespace dtr::inline v0
