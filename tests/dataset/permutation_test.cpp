#include "dtr/dataset/permutation.hpp"

#include <array>
#include <cmath>
#include <map>
#include <vector>

#include <gtest/gtest.h>

#include "dtr/base/error.hpp"
#include "dtr/dataset/mix.hpp"

namespace dtr {
namespace {

using dataset::KeyHash;
using dataset::mix64;

std::vector<std::uint64_t> order_of(const Permutation& permutation) {
  std::vector<std::uint64_t> order;
  for (std::uint64_t i = 0; i < permutation.size(); ++i) order.push_back(permutation(i));
  return order;
}

/// How far counts are from even, in standard deviations of the chi-square statistic.
double unevenness(const std::vector<double>& counts, double expected) {
  double chi_square = 0;
  for (const double count : counts) chi_square += (count - expected) * (count - expected) / expected;
  const auto degrees = static_cast<double>(counts.size() - 1);
  return (chi_square - degrees) / std::sqrt(2 * degrees);
}

TEST(PermutationTest, EverySizeUpTo2000IsABijectionWithItsInverse) {
  for (std::uint64_t size = 0; size <= 2000; ++size) {
    const Permutation permutation(size, mix64(size));
    std::vector<bool> seen(size, false);
    for (std::uint64_t i = 0; i < size; ++i) {
      const std::uint64_t image = permutation(i);
      ASSERT_LT(image, size);
      ASSERT_FALSE(seen[image]) << "size " << size;
      seen[image] = true;
      ASSERT_EQ(permutation.index_of(image), i);
    }
  }
}

TEST(PermutationTest, LargeSizesStayInRangeAndInvert) {
  for (const std::uint64_t size : {std::uint64_t{1'000'000'000'000}, (std::uint64_t{1} << 40) + 1,
                                   (std::uint64_t{1} << 62) - 1, Permutation::kLargest - 1, Permutation::kLargest}) {
    const Permutation permutation(size, 17);
    for (std::uint64_t i = 0; i < 2000; ++i) {
      const std::uint64_t index = i % 2 == 0 ? i : size - i;
      const std::uint64_t image = permutation(index);
      ASSERT_LT(image, size);
      ASSERT_EQ(permutation.index_of(image), index);
    }
  }
}

TEST(PermutationTest, TooLargeASizeIsRefusedInWords) {
  try {
    const Permutation permutation(Permutation::kLargest + 1, 0);
    FAIL() << "no exception";
  } catch (const Exception& exception) {
    EXPECT_EQ(exception.error().to_string(),
              "Permutation: invalid_argument: cannot permute 9223372036854775809 numbers, the most is 2^63");
  }
}

TEST(PermutationTest, NumbersOutsideMapToThemselves) {
  const Permutation permutation(10, 3);
  EXPECT_EQ(permutation(10), 10U);
  EXPECT_EQ(permutation.index_of(~std::uint64_t{0}), ~std::uint64_t{0});
  EXPECT_EQ(Permutation(0, 3)(0), 0U);
}

// The frozen stream. If this test fails, the change breaks every run that is resumed or repeated: make a new stream
// under a new name instead.
TEST(PermutationTest, StreamIsFrozen) {
  EXPECT_EQ(mix64(0), 0U);
  EXPECT_EQ(mix64(1), 6238072747940578789U);
  EXPECT_EQ(KeyHash("dataset/shards").add("imagenet").add(42U).add(7U).value(), 16675695172943567869U);
  EXPECT_EQ(order_of(Permutation(10, 1)), (std::vector<std::uint64_t>{2, 9, 1, 3, 4, 8, 7, 5, 0, 6}));
  EXPECT_EQ(order_of(Permutation(17, 0x0123456789abcdefU)),
            (std::vector<std::uint64_t>{12, 9, 13, 16, 0, 4, 1, 7, 14, 6, 10, 5, 3, 15, 11, 2, 8}));
  const Permutation large(1'000'000'000'000, 42);
  EXPECT_EQ((std::vector<std::uint64_t>{large(0), large(1), large(2), large(999'999'999'999)}),
            (std::vector<std::uint64_t>{609103006792, 665892727408, 97175595360, 74739897081}));
  const Permutation medium(1'281'167, 42);
  EXPECT_EQ((std::vector<std::uint64_t>{medium(0), medium(1), medium(2), medium(1'281'166)}),
            (std::vector<std::uint64_t>{171820, 1163977, 784635, 324108}));
}

TEST(PermutationTest, EveryOrderOfSixIsEquallyLikelyOverKeys) {
  std::map<std::vector<std::uint64_t>, double> orders;
  constexpr int kKeys = 72000;
  for (int key = 0; key < kKeys; ++key) ++orders[order_of(Permutation(6, mix64(static_cast<std::uint64_t>(key))))];
  ASSERT_EQ(orders.size(), 720U);
  std::vector<double> counts;
  for (const auto& [order, count] : orders) counts.push_back(count);
  EXPECT_LT(std::abs(unevenness(counts, kKeys / 720.0)), 4);
}

TEST(PermutationTest, PairsOfPositionsAreIndependent) {
  // (image of a, image of b) over keys, in a 10 x 10 grid: neighbours, opposite ends, halves.
  constexpr std::uint64_t kSize = 1000;
  constexpr int kKeys = 40000;
  for (const auto& [a, b] : {std::pair<std::uint64_t, std::uint64_t>{0, 1}, {0, 999}, {0, 512}, {498, 500}}) {
    std::vector<double> grid(100, 0);
    for (int key = 0; key < kKeys; ++key) {
      const Permutation permutation(kSize, mix64(static_cast<std::uint64_t>(key) + 1'000'000));
      ++grid[permutation(a) / 100 * 10 + permutation(b) / 100];
    }
    EXPECT_LT(std::abs(unevenness(grid, kKeys / 100.0)), 4.5) << a << ", " << b;
  }
}

TEST(PermutationTest, OneOrderHasNoFixedStructure) {
  // Steps between neighbours of one large order: as even as chance, and no more fixed points than chance gives.
  constexpr std::uint64_t kSize = 100'000;
  const Permutation permutation(kSize, 99);
  std::vector<double> steps(100, 0);
  int fixed = 0;
  for (std::uint64_t i = 0; i < kSize; ++i) {
    const std::uint64_t step = (permutation((i + 1) % kSize) + kSize - permutation(i)) % kSize;
    ++steps[step / (kSize / 100)];
    fixed += permutation(i) == i ? 1 : 0;
  }
  EXPECT_LT(std::abs(unevenness(steps, kSize / 100.0)), 4.5);
  EXPECT_LE(fixed, 8);
}

TEST(PermutationTest, KeysMadeOfNeighbouringSeedsAndEpochsDiffer) {
  // Sums collide: (seed 1, epoch 2) and (seed 2, epoch 1) would be one order.
  const auto key = [](std::uint64_t seed, std::uint64_t epoch) {
    return KeyHash("dataset/shards").add("set").add(seed).add(epoch).value();
  };
  std::map<std::uint64_t, int> keys;
  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    for (std::uint64_t epoch = 0; epoch < 100; ++epoch) ++keys[key(seed, epoch)];
  }
  EXPECT_EQ(keys.size(), 10'000U);
}

TEST(PermutationTest, KeyHashSeesBoundariesOfTexts) {
  EXPECT_NE(KeyHash("p").add("ab").add("c").value(), KeyHash("p").add("a").add("bc").value());
  EXPECT_NE(KeyHash("p").add("").value(), KeyHash("p").value());
  EXPECT_NE(KeyHash("p").add(std::string_view("\0", 1)).value(), KeyHash("p").add("").value());
}

}  // namespace
}  // namespace dtr
