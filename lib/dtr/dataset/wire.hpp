// Small values as bytes: little-endian integers, texts with their length.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "dtr/runtime/group.hpp"

namespace dtr::inline v0 {
namespace dataset {

inline void put(Bytes& out, std::uint64_t value) {
  for (int i = 0; i < 8; ++i) out.push_back(static_cast<std::byte>(value >> (8 * i) & 0xff));
}

inline void put(Bytes& out, std::string_view text) {
  put(out, std::uint64_t{text.size()});
  for (const char c : text) out.push_back(static_cast<std::byte>(c));
}

/// Takes values out in the order they were put in. What is too short reads as zeros and empty texts, and is not ok().
class Taker {
 public:
  explicit Taker(std::span<const std::byte> bytes) : rest_(bytes) {}

  std::uint64_t number() {
    const auto bytes = next(8);
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < bytes.size(); ++i) value |= std::to_integer<std::uint64_t>(bytes[i]) << (8 * i);
    return value;
  }

  std::string text() {
    std::string words;
    for (const std::byte byte : next(number())) words += static_cast<char>(byte);
    return words;
  }

  /// What was not taken yet.
  [[nodiscard]] std::span<const std::byte> rest() const { return rest_; }

  [[nodiscard]] bool ok() const { return ok_; }
  [[nodiscard]] bool done() const { return ok_ && rest_.empty(); }

 private:
  std::span<const std::byte> next(std::uint64_t count) {
    if (count > rest_.size()) {
      ok_ = false;
      rest_ = {};
      return {};
    }
    const auto bytes = rest_.first(count);
    rest_ = rest_.subspan(count);
    return bytes;
  }

  std::span<const std::byte> rest_;
  bool ok_ = true;
};

}  // namespace dataset
}  // namespace dtr::inline v0
