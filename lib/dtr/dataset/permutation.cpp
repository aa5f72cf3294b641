#include "dtr/dataset/permutation.hpp"

#include <bit>
#include <string>

#include "dtr/base/error.hpp"
#include "dtr/dataset/mix.hpp"

namespace dtr::inline v0 {

namespace {

// Measured on all 720 orders of 6 and on pairs of positions at 7..1000: with few bits a round moves little, and it
// takes 24 rounds until no order is more likely than another; from 9 bits on, 12 leave no trace either.
constexpr std::uint8_t kRounds = 12;
constexpr std::uint8_t kRoundsOfNarrow = 24;
constexpr int kNarrowBits = 8;

constexpr std::uint64_t low_mask(std::uint8_t bits) noexcept { return (std::uint64_t{1} << bits) - 1; }

/// The round function. The upper half of the product bits is the better mixed one.
constexpr std::uint64_t scramble(std::uint64_t key, std::uint64_t round, std::uint64_t half) noexcept {
  return dataset::mix64(key + round * dataset::kGoldenRatio64 + half) >> 32;
}

}  // namespace

Permutation::Permutation(std::uint64_t size, std::uint64_t key) : size_(size), key_(key) {
  if (size > kLargest) {
    throw Exception({.code = Errc::invalid_argument,
                     .message = "cannot permute " + std::to_string(size) + " numbers, the most is 2^63",
                     .operation = "Permutation"});
  }
  const int bits = size > 1 ? std::bit_width(size - 1) : 0;
  high_bits_ = static_cast<std::uint8_t>(bits / 2);
  low_bits_ = static_cast<std::uint8_t>(bits - bits / 2);
  rounds_ = bits <= kNarrowBits ? kRoundsOfNarrow : kRounds;
}

std::uint64_t Permutation::operator()(std::uint64_t index) const noexcept {
  if (index >= size_ || size_ < 2) return index;
  do {  // a walk along a cycle of the larger permutation, which has to come back below size_
    std::uint64_t high = index >> low_bits_;
    std::uint64_t low = index & low_mask(low_bits_);
    for (std::uint64_t round = 0; round < rounds_; round += 2) {
      high ^= scramble(key_, round, low) & low_mask(high_bits_);
      low ^= scramble(key_, round + 1, high) & low_mask(low_bits_);
    }
    index = high << low_bits_ | low;
  } while (index >= size_);
  return index;
}

std::uint64_t Permutation::index_of(std::uint64_t image) const noexcept {
  if (image >= size_ || size_ < 2) return image;
  do {
    std::uint64_t high = image >> low_bits_;
    std::uint64_t low = image & low_mask(low_bits_);
    for (std::uint64_t round = rounds_; round > 0; round -= 2) {
      low ^= scramble(key_, round - 1, high) & low_mask(low_bits_);
      high ^= scramble(key_, round - 2, low) & low_mask(high_bits_);
    }
    image = high << low_bits_ | low;
  } while (image >= size_);
  return image;
}

}  // namespace dtr::inline v0
