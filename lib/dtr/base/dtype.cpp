#include "dtr/base/dtype.hpp"

#include <array>

namespace dtr::inline v0 {

namespace {

struct Row {
  std::string_view name;
  std::size_t bytes;
};

/// In the order of the enum.
constexpr std::array<Row, kDTypes> kRows{{{"f64", 8},
                                          {"f32", 4},
                                          {"f16", 2},
                                          {"bf16", 2},
                                          {"i64", 8},
                                          {"i32", 4},
                                          {"i16", 2},
                                          {"i8", 1},
                                          {"u64", 8},
                                          {"u32", 4},
                                          {"u16", 2},
                                          {"u8", 1}}};

}  // namespace

std::string_view to_string(DType dtype) noexcept {
  const auto row = static_cast<std::size_t>(dtype);
  return row < kRows.size() ? kRows[row].name : "unknown";
}

std::optional<DType> parse_dtype(std::string_view name) noexcept {
  for (std::size_t row = 0; row < kRows.size(); ++row) {
    if (kRows[row].name == name) return static_cast<DType>(row);
  }
  return std::nullopt;
}

std::size_t size_of(DType dtype) noexcept {
  const auto row = static_cast<std::size_t>(dtype);
  return row < kRows.size() ? kRows[row].bytes : 0;
}

}  // namespace dtr::inline v0
