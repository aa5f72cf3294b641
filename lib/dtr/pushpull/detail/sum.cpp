#include "dtr/pushpull/detail/sum.hpp"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>

namespace dtr::inline v0 {
namespace pushpull {

namespace {

/// Each operand is read once and the accumulator stays in the first-level cache meanwhile.
constexpr std::size_t kBlock = 8 << 10;

/// Sixteen bytes at a time, as every x86-64 and ARMv8 can. Lanes are added like scalars, so the bits are the same.
template <class T>
struct alignas(16) Lanes {
  static constexpr std::size_t kCount = 16 / sizeof(T);
  using Vector __attribute__((vector_size(16))) = T;
};

template <class T>
void add_block(std::byte* to, const std::byte* from, std::size_t bytes) noexcept {
  using Vector = typename Lanes<T>::Vector;
  std::size_t at = 0;
  for (; at + 4 * sizeof(Vector) <= bytes; at += 4 * sizeof(Vector)) {
    Vector a[4];
    Vector b[4];
    std::memcpy(a, to + at, sizeof a);
    std::memcpy(b, from + at, sizeof b);
    for (int i = 0; i < 4; ++i) a[i] += b[i];
    std::memcpy(to + at, a, sizeof a);
  }
  for (; at < bytes; at += sizeof(T)) {
    T a;
    T b;
    std::memcpy(&a, to + at, sizeof a);
    std::memcpy(&b, from + at, sizeof b);
    a += b;
    std::memcpy(to + at, &a, sizeof a);
  }
}

template <class T>
void sum_plain(std::byte* accumulator, std::span<const std::byte* const> others, std::size_t bytes) noexcept {
  for (std::size_t at = 0; at < bytes; at += kBlock) {
    const std::size_t block = std::min(kBlock, bytes - at);
    for (const std::byte* other : others) add_block<T>(accumulator + at, other + at, block);
  }
}

float from_bf16(std::uint16_t bits) noexcept { return std::bit_cast<float>(std::uint32_t{bits} << 16); }

std::uint16_t to_bf16(float value) noexcept {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7FFF'FFFF) > 0x7F80'0000) return static_cast<std::uint16_t>(bits >> 16 | 0x40);  // stays a NaN
  return static_cast<std::uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

float from_f16(std::uint16_t bits) noexcept {
  const std::uint32_t sign = std::uint32_t{bits & 0x8000U} << 16;
  const std::uint32_t rest = bits & 0x7FFFU;
  if (rest >= 0x7C00) return std::bit_cast<float>(sign | 0x7F80'0000 | (rest & 0x3FF) << 13);
  if (rest >= 0x0400) return std::bit_cast<float>(sign | ((rest << 13) + (112U << 23)));
  const float small = static_cast<float>(rest) * 0x1p-24F;  // exact
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(small) | sign);
}

std::uint16_t to_f16(float value) noexcept {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const auto sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000);
  const std::uint32_t size = bits & 0x7FFF'FFFF;
  if (size > 0x7F80'0000) return static_cast<std::uint16_t>(sign | 0x7E00 | (size >> 13 & 0x3FF));
  if (size >= 0x4780'0000) return static_cast<std::uint16_t>(sign | 0x7C00);  // 65536 and more
  if (size < 0x3880'0000) {
    // Below the normal range: adding 0.5 puts the rounding where the last bit of a subnormal is.
    const float shifted = std::bit_cast<float>(size) + 0.5F;
    return static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(shifted) - 0x3F00'0000));
  }
  const std::uint32_t odd = size >> 13 & 1;
  return static_cast<std::uint16_t>(sign | ((size - (112U << 23) + 0xFFF + odd) >> 13));
}

template <float (*kWiden)(std::uint16_t) noexcept, std::uint16_t (*kNarrow)(float) noexcept>
void sum_half(std::byte* accumulator, std::span<const std::byte* const> others, std::size_t bytes) noexcept {
  constexpr std::size_t kCount = kBlock / sizeof(float);
  float wide[kCount];
  std::uint16_t half[kCount];
  for (std::size_t at = 0; at < bytes; at += kCount * 2) {
    const std::size_t block = std::min(kCount * 2, bytes - at);
    std::memcpy(half, accumulator + at, block);
    for (std::size_t i = 0; i < block / 2; ++i) wide[i] = kWiden(half[i]);
    for (const std::byte* other : others) {
      std::memcpy(half, other + at, block);
      for (std::size_t i = 0; i < block / 2; ++i) wide[i] += kWiden(half[i]);
    }
    for (std::size_t i = 0; i < block / 2; ++i) half[i] = kNarrow(wide[i]);
    std::memcpy(accumulator + at, half, block);
  }
}

}  // namespace

bool can_sum(DType dtype) noexcept { return dtype < DType::u16 && dtype != DType::i16 && dtype != DType::i8; }

void sum_into(std::byte* accumulator, std::span<const std::byte* const> others, std::size_t bytes,
              DType dtype) noexcept {
  if (others.empty()) return;
  switch (dtype) {
    case DType::f32:
      return sum_plain<float>(accumulator, others, bytes);
    case DType::f64:
      return sum_plain<double>(accumulator, others, bytes);
    case DType::i32:  // as unsigned: overflow wraps
    case DType::u32:
      return sum_plain<std::uint32_t>(accumulator, others, bytes);
    case DType::i64:
    case DType::u64:
      return sum_plain<std::uint64_t>(accumulator, others, bytes);
    case DType::f16:
      return sum_half<from_f16, to_f16>(accumulator, others, bytes);
    case DType::bf16:
      return sum_half<from_bf16, to_bf16>(accumulator, others, bytes);
    case DType::i16:
    case DType::i8:
    case DType::u16:
    case DType::u8:
      return;
  }
}

}  // namespace pushpull
}  // namespace dtr::inline v0
