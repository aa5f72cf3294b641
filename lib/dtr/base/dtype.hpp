// The types of numbers that tensors and samples are made of.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <type_traits>

namespace dtr::inline v0 {

/// Fixed-width, little-endian in memory and on disk. Plain bytes are u8. The values cross the wire.
enum class DType : std::uint8_t { f64, f32, f16, bf16, i64, i32, i16, i8, u64, u32, u16, u8 };

constexpr std::size_t kDTypes = 12;

/// "bf16" for DType::bf16, as manifests say; "unknown" for a value that is none.
[[nodiscard]] std::string_view to_string(DType dtype) noexcept;

/// "bf16" -> DType::bf16; nothing for an unknown name.
[[nodiscard]] std::optional<DType> parse_dtype(std::string_view name) noexcept;

/// Bytes an element; 0 for a value that is no DType.
[[nodiscard]] std::size_t size_of(DType dtype) noexcept;

/// The DType of a C++ arithmetic type. f16 and bf16 have none in C++20: name those explicitly.
template <class T>
[[nodiscard]] constexpr DType dtype_of() noexcept {
  using U = std::remove_cv_t<T>;
  static_assert(std::is_arithmetic_v<U> || std::is_same_v<U, std::byte>, "tensors hold numbers or bytes");
  if constexpr (std::is_floating_point_v<U>) {
    static_assert(sizeof(U) == 4 || sizeof(U) == 8, "no such floating-point type");
    return sizeof(U) == 8 ? DType::f64 : DType::f32;
  } else if constexpr (std::is_signed_v<U>) {
    return sizeof(U) == 8 ? DType::i64 : sizeof(U) == 4 ? DType::i32 : sizeof(U) == 2 ? DType::i16 : DType::i8;
  } else {
    return sizeof(U) == 8 ? DType::u64 : sizeof(U) == 4 ? DType::u32 : sizeof(U) == 2 ? DType::u16 : DType::u8;
  }
}

}  // namespace dtr::inline v0
