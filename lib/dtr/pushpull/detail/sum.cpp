#include "dtr/pushpull/detail/sum.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>

namespace dtr::inline v0 {
namespace pushpull {

namespace {

/// Each operand is read once, and what is not finished stays in the first-level cache meanwhile.
constexpr std::size_t kBlock = 8 << 10;

/// Sixteen bytes at a time, as every x86-64 and ARMv8 can. Lanes are added like scalars, so the bits are the same.
template <class T>
struct Lanes {
  using Vector __attribute__((vector_size(16), aligned(1), may_alias)) = T;
};

/// to[0] = to[1] = ... = a + b. A place may be a or b: all of a step is read before any of it is written.
template <class T, std::size_t kPlaces>
void add(std::array<std::byte*, kPlaces> to, const std::byte* a, const std::byte* b, std::size_t bytes) noexcept {
  using Vector = typename Lanes<T>::Vector;
  constexpr std::size_t kStep = 4 * sizeof(Vector);
  std::size_t at = 0;
  for (; at + kStep <= bytes; at += kStep) {
    const auto* left = reinterpret_cast<const Vector*>(a + at);
    const auto* right = reinterpret_cast<const Vector*>(b + at);
    // Four names and no array: the compiler would keep that in memory.
    const Vector sum0 = left[0] + right[0];
    const Vector sum1 = left[1] + right[1];
    const Vector sum2 = left[2] + right[2];
    const Vector sum3 = left[3] + right[3];
    for (std::byte* place : to) {
      auto* const out = reinterpret_cast<Vector*>(place + at);
      out[0] = sum0;
      out[1] = sum1;
      out[2] = sum2;
      out[3] = sum3;
    }
  }
  for (; at < bytes; at += sizeof(T)) {
    T left;
    T right;
    std::memcpy(&left, a + at, sizeof left);
    std::memcpy(&right, b + at, sizeof right);
    left += right;
    for (std::byte* place : to) std::memcpy(place + at, &left, sizeof left);
  }
}

template <class T, std::size_t kPlaces>
void sum_plain(std::span<const std::byte* const> operands, std::array<std::byte*, kPlaces> places,
               std::size_t bytes) noexcept {
  alignas(64) std::byte partial[kBlock];
  for (std::size_t at = 0; at < bytes; at += kBlock) {
    const std::size_t block = std::min(kBlock, bytes - at);
    const std::byte* left = operands.front() + at;
    for (const std::byte* operand : operands.subspan(1, operands.size() - 2)) {
      add<T, 1>({partial}, left, operand + at, block);
      left = partial;
    }
    auto to = places;
    for (std::byte*& place : to) place += at;
    add<T, kPlaces>(to, left, operands.back() + at, block);
  }
}

template <class T>
void sum_plain(std::span<const std::byte* const> operands, std::span<std::byte* const> places,
               std::size_t bytes) noexcept {
  if (places.size() == 1) return sum_plain<T, 1>(operands, {places[0]}, bytes);
  sum_plain<T, 2>(operands, {places[0], places[1]}, bytes);
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
void sum_half(std::span<const std::byte* const> operands, std::span<std::byte* const> places,
              std::size_t bytes) noexcept {
  constexpr std::size_t kCount = kBlock / sizeof(float);
  float wide[kCount];
  std::uint16_t half[kCount];
  for (std::size_t at = 0; at < bytes; at += kCount * 2) {
    const std::size_t block = std::min(kCount * 2, bytes - at);
    std::memcpy(half, operands.front() + at, block);
    for (std::size_t i = 0; i < block / 2; ++i) wide[i] = kWiden(half[i]);
    for (const std::byte* operand : operands.subspan(1)) {
      std::memcpy(half, operand + at, block);
      for (std::size_t i = 0; i < block / 2; ++i) wide[i] += kWiden(half[i]);
    }
    for (std::size_t i = 0; i < block / 2; ++i) half[i] = kNarrow(wide[i]);
    for (std::byte* place : places) std::memcpy(place + at, half, block);
  }
}

}  // namespace

bool can_sum(DType dtype) noexcept { return dtype < DType::u16 && dtype != DType::i16 && dtype != DType::i8; }

void sum(std::span<const std::byte* const> operands, std::span<std::byte* const> places, std::size_t bytes,
         DType dtype) noexcept {
  if (operands.empty() || places.empty()) return;
  if (operands.size() == 1) {
    for (std::byte* place : places) {
      if (place != operands[0]) std::memcpy(place, operands[0], bytes);
    }
    return;
  }
  switch (dtype) {
    case DType::f32:
      return sum_plain<float>(operands, places, bytes);
    case DType::f64:
      return sum_plain<double>(operands, places, bytes);
    case DType::i32:  // as unsigned: overflow wraps
    case DType::u32:
      return sum_plain<std::uint32_t>(operands, places, bytes);
    case DType::i64:
    case DType::u64:
      return sum_plain<std::uint64_t>(operands, places, bytes);
    case DType::f16:
      return sum_half<from_f16, to_f16>(operands, places, bytes);
    case DType::bf16:
      return sum_half<from_bf16, to_bf16>(operands, places, bytes);
    case DType::i16:
    case DType::i8:
    case DType::u16:
    case DType::u8:
      return;
  }
}

}  // namespace pushpull
}  // namespace dtr::inline v0
