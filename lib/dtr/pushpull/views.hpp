// What a round carries: numbers in the caller's memory, to be pushed or to be filled.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <ranges>
#include <span>
#include <type_traits>

#include "dtr/base/dtype.hpp"
#include "dtr/memory/buffer.hpp"

namespace dtr::inline v0 {

/// The DType of a C++ type; what is no number is plain bytes. Only a Reducer looks at it.
template <class T>
[[nodiscard]] constexpr DType view_dtype() noexcept {
  if constexpr ((std::is_arithmetic_v<T> && sizeof(T) <= 8) || std::is_same_v<T, std::byte>) return dtype_of<T>();
  return DType::u8;
}

/// A container of plain values that lies in one piece and outlives the expression.
template <class Container>
concept ViewSource = std::ranges::contiguous_range<Container> && std::ranges::sized_range<Container> &&
    (std::is_lvalue_reference_v<Container> ||
     std::ranges::enable_borrowed_range<
         std::remove_cvref_t<Container>>)&&std::is_trivially_copyable_v<std::ranges::range_value_t<Container>>;

/// A tensor to push: read until the round has ended. From any contiguous container of numbers.
struct PushView {
  const std::byte* data = nullptr;
  std::uint64_t bytes = 0;
  DType dtype = DType::u8;

  PushView() = default;
  PushView(std::span<const std::byte> memory, DType what) noexcept
      : data(memory.data()), bytes(memory.size()), dtype(what) {}
  PushView(const Buffer& buffer, DType what) noexcept : PushView(buffer.span(), what) {}
  template <ViewSource Container>
  requires(!std::same_as<std::remove_cvref_t<Container>, PushView>)  //
      PushView(Container&& values)  // NOLINT: `requires` leaves copies to the copy constructor
  noexcept                          // NOLINT(google-explicit-constructor): reads as `.push = gradient`
      : data(reinterpret_cast<const std::byte*>(std::ranges::data(values))),
        bytes(std::ranges::size(values) * sizeof(std::ranges::range_value_t<Container>)),
        dtype(view_dtype<std::ranges::range_value_t<Container>>()) {}
};

/// A tensor to fill: written until the round has ended.
struct PullView {
  std::byte* data = nullptr;
  std::uint64_t bytes = 0;
  DType dtype = DType::u8;

  PullView() = default;
  PullView(std::span<std::byte> memory, DType what) noexcept : data(memory.data()), bytes(memory.size()), dtype(what) {}
  PullView(const Buffer& buffer, DType what) noexcept : PullView(buffer.span(), what) {}
  template <ViewSource Container>
  requires(!std::same_as<std::remove_cvref_t<Container>, PullView> &&
           !std::is_const_v<std::remove_reference_t<std::ranges::range_reference_t<Container>>>)  //
      PullView(Container&& values)  // NOLINT: `requires` leaves copies to the copy constructor
  noexcept                          // NOLINT(google-explicit-constructor): reads as `.pull = sum`
      : data(reinterpret_cast<std::byte*>(std::ranges::data(values))),
        bytes(std::ranges::size(values) * sizeof(std::ranges::range_value_t<Container>)),
        dtype(view_dtype<std::ranges::range_value_t<Container>>()) {}
};

/// One key of a round: what to push under it, where to put its answer; either may be missing. The same memory may
/// stand on both sides of one key.
struct PushPull {
  std::uint64_t key = 0;
  PushView push{};
  PullView pull{};
};

}  // namespace dtr::inline v0
