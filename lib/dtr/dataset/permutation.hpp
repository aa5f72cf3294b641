// A keyed shuffle of [0, n) that is computed, not stored.
#pragma once

#include <cstdint>

namespace dtr::inline v0 {

/// A pseudo-random permutation of [0, size) in 24 bytes, whatever the size: any index is looked up alone, in either
/// direction, in well under a microsecond. A Feistel network over the next power of two, walked until it lands inside
/// (fewer than two steps on average). The stream is frozen: same size and key, same order, on every machine and in
/// every version. Immutable: any thread.
class Permutation {
 public:
  static constexpr std::uint64_t kLargest = std::uint64_t{1} << 63;

  /// Throws Exception invalid_argument when size > kLargest. Make the key by KeyHash: keys that are small numbers or
  /// sums of seed and epoch give related orders.
  Permutation(std::uint64_t size, std::uint64_t key);

  [[nodiscard]] std::uint64_t size() const noexcept { return size_; }

  /// Where index goes. Numbers outside [0, size) map to themselves.
  [[nodiscard]] std::uint64_t operator()(std::uint64_t index) const noexcept;

  /// The index that goes to `image`: the inverse of operator().
  [[nodiscard]] std::uint64_t index_of(std::uint64_t image) const noexcept;

 private:
  std::uint64_t size_;
  std::uint64_t key_;
  std::uint8_t high_bits_;  ///< of the number's two halves; differ by one bit where the width is odd
  std::uint8_t low_bits_;
  std::uint8_t rounds_;
};

}  // namespace dtr::inline v0
