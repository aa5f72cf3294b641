// Sums of each element type against the plain way.
#include "dtr/pushpull/detail/sum.hpp"

#include <cmath>
#include <cstring>
#include <vector>

#include <gtest/gtest.h>

namespace dtr {
namespace {

using pushpull::sum_into;

template <class T>
std::vector<T> summed(std::vector<T> first, const std::vector<T>& second, DType dtype) {
  const std::byte* other = reinterpret_cast<const std::byte*>(second.data());
  sum_into(reinterpret_cast<std::byte*>(first.data()), std::span(&other, 1), first.size() * sizeof(T), dtype);
  return first;
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
  std::vector<std::uint16_t> sum{0x6800};
  const std::vector<std::uint16_t> one{0x3C00};
  EXPECT_EQ(summed(sum, one, DType::f16)[0], 0x6800);
  const std::byte* others[2] = {reinterpret_cast<const std::byte*>(one.data()),
                                reinterpret_cast<const std::byte*>(one.data())};
  sum_into(reinterpret_cast<std::byte*>(sum.data()), others, 2, DType::f16);
  EXPECT_EQ(sum[0], 0x6801);
  EXPECT_EQ(summed<std::uint16_t>({0x7BFF}, {0x7BFF}, DType::f16)[0], 0x7C00) << "too large is infinite";
}

}  // namespace
}  // namespace dtr
