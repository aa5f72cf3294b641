// One list of element types for tensors, samples and checkpoints.
#include "dtr/base/dtype.hpp"

#include <gtest/gtest.h>

namespace dtr {
namespace {

TEST(DTypeTest, NamesGoBothWaysAndSizesAreTheirBits) {
  for (std::size_t i = 0; i < kDTypes; ++i) {
    const auto dtype = static_cast<DType>(i);
    const std::string_view name = to_string(dtype);
    EXPECT_EQ(parse_dtype(name), dtype) << name;
    const std::size_t bits = std::stoul(std::string(name.substr(name.find_first_of("0123456789"))));
    EXPECT_EQ(size_of(dtype) * 8, bits) << name;
  }
  EXPECT_EQ(parse_dtype("f31"), std::nullopt);
  EXPECT_EQ(to_string(static_cast<DType>(200)), "unknown");
  EXPECT_EQ(size_of(static_cast<DType>(200)), 0U);
}

TEST(DTypeTest, TypesOfTheLanguageHaveOne) {
  static_assert(dtype_of<float>() == DType::f32 && dtype_of<const double>() == DType::f64);
  static_assert(dtype_of<long long>() == DType::i64 && dtype_of<unsigned short>() == DType::u16);
  static_assert(dtype_of<std::byte>() == DType::u8 && dtype_of<bool>() == DType::u8);
}

}  // namespace
}  // namespace dtr
