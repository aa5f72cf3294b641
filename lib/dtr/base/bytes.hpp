// Writing and reading small structures as bytes. The reader trusts nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace dtr::inline v0 {

/// Appends little-endian values; strings and byte ranges go with their 32-bit length in front.
class ByteWriter {
 public:
  template <class T>
  requires std::is_trivially_copyable_v<T> ByteWriter& value(const T& value) {
    const auto* bytes = reinterpret_cast<const std::byte*>(&value);
    buffer_.insert(buffer_.end(), bytes, bytes + sizeof value);
    return *this;
  }
  ByteWriter& bytes(std::span<const std::byte> bytes) {
    value(static_cast<std::uint32_t>(bytes.size()));
    buffer_.insert(buffer_.end(), bytes.begin(), bytes.end());
    return *this;
  }
  ByteWriter& text(std::string_view text) { return bytes(std::as_bytes(std::span(text.data(), text.size()))); }

  [[nodiscard]] std::vector<std::byte> take() { return std::move(buffer_); }
  [[nodiscard]] std::span<const std::byte> view() const noexcept { return buffer_; }
  void clear() noexcept { buffer_.clear(); }

 private:
  std::vector<std::byte> buffer_;
};

/// Reads them back. After the first read past the end ok() is false and everything read is zero or empty.
class ByteReader {
 public:
  explicit ByteReader(std::span<const std::byte> bytes) noexcept : rest_(bytes) {}

  template <class T>
  requires std::is_trivially_copyable_v<T>
  [[nodiscard]] T value() noexcept {
    T value{};
    const auto bytes = take(sizeof value);
    if (ok_) std::memcpy(&value, bytes.data(), sizeof value);
    return value;
  }
  /// A view into the input.
  [[nodiscard]] std::span<const std::byte> bytes() noexcept { return take(value<std::uint32_t>()); }
  [[nodiscard]] std::string text() {
    const auto view = bytes();
    return {reinterpret_cast<const char*>(view.data()), view.size()};
  }
  [[nodiscard]] bool ok() const noexcept { return ok_; }
  [[nodiscard]] bool at_end() const noexcept { return rest_.empty(); }
  [[nodiscard]] std::span<const std::byte> rest() const noexcept { return rest_; }

 private:
  std::span<const std::byte> take(std::size_t count) noexcept {
    if (!ok_ || count > rest_.size()) {
      ok_ = false;
      rest_ = {};
      return {};
    }
    const auto taken = rest_.first(count);
    rest_ = rest_.subspan(count);
    return taken;
  }

  std::span<const std::byte> rest_;
  bool ok_ = true;
};

}  // namespace dtr::inline v0
