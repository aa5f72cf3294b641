#include "dtr/checkpoint/detail/names.hpp"

#include <algorithm>
#include <charconv>

namespace dtr::inline v0 {
namespace checkpoint {

namespace {

constexpr std::string_view kStepPrefix = "step_";
constexpr std::string_view kRankPrefix = "rank_";
constexpr std::string_view kRankSuffix = ".h5";
constexpr std::string_view kTemporaryMark = ".tmp-";
constexpr std::string_view kTrashPrefix = ".trash-step_";

std::string padded(std::uint64_t value, std::size_t width) {
  std::string digits = std::to_string(value);
  if (digits.size() < width) digits.insert(0, width - digits.size(), '0');
  return digits;
}

template <class T>
std::optional<T> parse_digits(std::string_view text, int base) {
  T value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (text.empty() || error != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return value;
}

}  // namespace

std::string step_name(std::uint64_t step) { return std::string(kStepPrefix) + padded(step, 9); }

std::optional<std::uint64_t> parse_step_name(std::string_view name) {
  if (!name.starts_with(kStepPrefix)) return std::nullopt;
  const auto step = parse_digits<std::uint64_t>(name.substr(kStepPrefix.size()), 10);
  if (!step || step_name(*step) != name) return std::nullopt;  // one spelling a step
  return step;
}

std::string rank_file_name(int rank) {
  return std::string(kRankPrefix) + padded(static_cast<std::uint64_t>(rank), 5) + std::string(kRankSuffix);
}

std::optional<int> parse_rank_file_name(std::string_view name) {
  if (!name.starts_with(kRankPrefix) || !name.ends_with(kRankSuffix)) return std::nullopt;
  if (name.size() <= kRankPrefix.size() + kRankSuffix.size()) return std::nullopt;
  const auto digits = name.substr(kRankPrefix.size(), name.size() - kRankPrefix.size() - kRankSuffix.size());
  const auto rank = parse_digits<int>(digits, 10);
  if (!rank || *rank < 0 || rank_file_name(*rank) != name) return std::nullopt;
  return rank;
}

std::string temporary_name(std::uint64_t step, std::string_view tag) {
  return "." + step_name(step) + std::string(kTemporaryMark) + std::string(tag);
}

std::string trash_name(std::uint64_t step, std::string_view tag) {
  return ".trash-" + step_name(step) + "-" + std::string(tag);
}

bool is_temporary_name(std::string_view name) {
  const auto mark = name.find(kTemporaryMark);
  return name.starts_with('.') && mark != std::string_view::npos && name.find('/') == std::string_view::npos &&
         parse_step_name(name.substr(1, mark - 1)).has_value();
}

bool is_trash_name(std::string_view name) {
  return name.starts_with(kTrashPrefix) && name.find('/') == std::string_view::npos;
}

std::string to_hex(std::uint64_t value) {
  std::string text(16, '0');
  for (auto digit = text.rbegin(); digit != text.rend(); ++digit, value >>= 4) *digit = "0123456789abcdef"[value & 15];
  return text;
}

std::optional<std::uint64_t> parse_hex(std::string_view text) {
  const auto is_digit = [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); };
  if (text.size() != 16 || !std::all_of(text.begin(), text.end(), is_digit)) return std::nullopt;
  return parse_digits<std::uint64_t>(text, 16);
}

}  // namespace checkpoint
}  // namespace dtr::inline v0
