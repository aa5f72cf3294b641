// Sums of each element type against the plain way.
#include "dtr/pushpull/detail/sum.hpp"

#include <array>
#include <cmath>
#include <cstring>
#include <vector>

#include <gtest/gtest.h>

namespace dtr {
namespace {

using pushpull::sum;

template <class T>
const std::byte* bytes_of(const std::vector<T>& values) {
  return reinterpret_cast<const std::byte*>(values.data());
}
template <class T>
std::byte* bytes_of(std::vector<T>& values) {
  return reinterpret_cast<std::byte*>(values.data());
}

template <class T>
std::vector<T> summed(const std::vector<T>& first, const std::vector<T>& second, DType dtype) {
  std::vector<T> result(first.size());
  sum(std::array{bytes_of(first), bytes_of(second)}, std::array{bytes_of(result)}, first.size() * sizeof(T), dtype);
  return result;
}

TEST(SumTest, PlainTypesAreAddedElementByElementAtAnyLength) {
  for (const std::size_t count : {1, 3, 16, 17, 5000}) {
    std::vector<float> a(count);
    std::vector<float> b(count);
    std::vector<std::int64_t> c(count);
    std::vector<std::int64_t> d(count);
    for (std::size_t i = 0; i < count; ++i) {
      a[i] = 0.1F * static_cast<float>(i);
      b[i] = 1.0F / static_cast<float>(i + 1);
      c[i] = static_cast<std::int64_t>(i) << 33;
      d[i] = -static_cast<std::int64_t>(i);
    }
    const auto floats = summed(a, b, DType::f32);
    const auto integers = summed(c, d, DType::i64);
    for (std::size_t i = 0; i < count; ++i) {
      EXPECT_EQ(floats[i], a[i] + b[i]);
      EXPECT_EQ(integers[i], c[i] + d[i]);
    }
  }
}

TEST(SumTest, EveryHalfPlusZeroIsItself) {
  for (const DType dtype : {DType::f16, DType::bf16}) {
    std::vector<std::uint16_t> all(65536);
    for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<std::uint16_t>(i);
    const std::vector<std::uint16_t> zeros(all.size(), 0);
    const auto sums = summed(all, zeros, dtype);
    const std::uint32_t infinite = dtype == DType::f16 ? 0x7C00 : 0x7F80;
    for (std::uint32_t bits = 0; bits < all.size(); ++bits) {
      if ((bits & 0x7FFF) > infinite) {
        EXPECT_GT(sums[bits] & 0x7FFFU, infinite) << "a NaN stays one: " << bits;
      } else if (bits == 0x8000) {
        EXPECT_EQ(sums[bits], 0) << "-0 + 0 is 0";
      } else {
        ASSERT_EQ(sums[bits], bits);
      }
    }
  }
}

TEST(SumTest, HalvesAreRoundedOnceToNearestEven) {
  // 2048 + 1 is a tie in f16: to even. 2048 + 1 + 1 is exact only if nothing was rounded in between.
  const std::vector<std::uint16_t> two_thousand{0x6800};
  const std::vector<std::uint16_t> one{0x3C00};
  EXPECT_EQ(summed(two_thousand, one, DType::f16)[0], 0x6800);
  std::vector<std::uint16_t> all(1);
  dtr::pushpull::sum(std::array{bytes_of(std::as_const(two_thousand)), bytes_of(one), bytes_of(one)},
                     std::array{bytes_of(all)}, 2, DType::f16);
  EXPECT_EQ(all[0], 0x6801);
  EXPECT_EQ(summed<std::uint16_t>({0x7BFF}, {0x7BFF}, DType::f16)[0], 0x7C00) << "too large is infinite";
}

TEST(SumTest, TheSumGoesToBothPlacesAlsoIfTheseAreOperands) {
  constexpr std::size_t kCount = 5003;  // more than a block, and no whole number of steps
  for (const std::size_t operands : {1, 2, 3, 7}) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      const std::size_t bytes = kCount * size_of(dtype);
      std::vector<std::vector<std::byte>> tensors(operands, std::vector<std::byte>(bytes));
      for (std::size_t i = 0; i < operands; ++i) {
        for (std::size_t k = 0; k < bytes / 2; ++k) {
          const auto half = static_cast<std::uint16_t>(0x3F80 + (7 * i + k) % 64);  // 1.0 to 1.5, in both types
          std::memcpy(tensors[i].data() + 2 * k, &half, 2);
        }
      }
      std::vector<const std::byte*> from;
      for (const auto& tensor : tensors) from.push_back(tensor.data());
      std::vector<std::byte> expected(bytes);
      sum(from, std::array{expected.data()}, bytes, dtype);
      std::vector<std::byte> apart(bytes);
      sum(from, std::array{tensors[operands / 2].data(), apart.data()}, bytes, dtype);
      EXPECT_EQ(tensors[operands / 2], expected) << operands << " operands";
      EXPECT_EQ(apart, expected) << operands << " operands";
    }
  }
}

}  // namespace
}  // namespace dtr
