// The project's own 64-bit mixing: frozen by test vectors, so that an order computed today is the order of next year.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace dtr::inline v0 {
namespace dataset {

inline constexpr std::uint64_t kGoldenRatio64 = 0x9e3779b97f4a7c15ULL;

/// A bijection of 64 bits in which every input bit moves about half of the output bits (splitmix64's finaliser).
[[nodiscard]] constexpr std::uint64_t mix64(std::uint64_t x) noexcept {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

/// Hashes a sequence of words and texts into one key: `KeyHash("dataset/shards").add(id).add(seed).value()`. The order
/// and the boundaries of what is added matter. Not for secrets.
class KeyHash {
 public:
  /// `purpose` separates keys that are made of the same values for different ends.
  constexpr explicit KeyHash(std::string_view purpose) noexcept { add(purpose); }

  constexpr KeyHash& add(std::uint64_t word) noexcept {
    state_ = mix64((state_ ^ word) + kGoldenRatio64);
    return *this;
  }

  /// The length, then the bytes as little-endian words, the last one filled up with zeros.
  constexpr KeyHash& add(std::string_view text) noexcept {
    add(static_cast<std::uint64_t>(text.size()));
    for (std::size_t at = 0; at < text.size(); at += 8) {
      std::uint64_t word = 0;
      for (std::size_t i = at; i < text.size() && i < at + 8; ++i) {
        word |= std::uint64_t{static_cast<unsigned char>(text[i])} << (8 * (i - at));
      }
      add(word);
    }
    return *this;
  }

  [[nodiscard]] constexpr std::uint64_t value() const noexcept { return mix64(state_ + kGoldenRatio64); }

 private:
  std::uint64_t state_ = 0;
};

}  // namespace dataset
}  // namespace dtr::inline v0
