// What a round carries: numbers in the caller's memory, to be pushed or to be filled.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <ranges>
#include <span>
#include <string_view>
#include <type_traits>
#include <vector>

#include "dtr/memory/buffer.hpp"

namespace dtr::inline v0 {

/// What the bytes of a tensor are. Only a Reducer looks at it.
enum class Element : std::uint8_t { bytes, f32, f64, f16, bf16, i32, i64 };

[[nodiscard]] std::string_view to_string(Element element) noexcept;

/// Bytes of one element.
[[nodiscard]] std::size_t size_of(Element element) noexcept;

/// The Element of a C++ type; types without one are plain bytes.
template <class T>
[[nodiscard]] constexpr Element element_of() noexcept {
  using U = std::remove_cv_t<T>;
  if constexpr (std::is_floating_point_v<U> && sizeof(U) == 4) return Element::f32;
  if constexpr (std::is_floating_point_v<U> && sizeof(U) == 8) return Element::f64;
  if constexpr (std::is_integral_v<U> && std::is_signed_v<U> && sizeof(U) == 4) return Element::i32;
  if constexpr (std::is_integral_v<U> && std::is_signed_v<U> && sizeof(U) == 8) return Element::i64;
  return Element::bytes;
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
  Element element = Element::bytes;

  PushView() = default;
  PushView(std::span<const std::byte> memory, Element what) noexcept
      : data(memory.data()), bytes(memory.size()), element(what) {}
  PushView(const Buffer& buffer, Element what) noexcept : PushView(buffer.span(), what) {}
  template <ViewSource Container>
  requires(!std::same_as<std::remove_cvref_t<Container>, PushView>)  //
      PushView(Container&& values)
  noexcept  // NOLINT(google-explicit-constructor): reads as `.push = gradient`
      : data(reinterpret_cast<const std::byte*>(std::ranges::data(values))),
        bytes(std::ranges::size(values) * sizeof(std::ranges::range_value_t<Container>)),
        element(element_of<std::ranges::range_value_t<Container>>()) {}
};

/// A tensor to fill: written until the round has ended.
struct PullView {
  std::byte* data = nullptr;
  std::uint64_t bytes = 0;
  Element element = Element::bytes;

  PullView() = default;
  PullView(std::span<std::byte> memory, Element what) noexcept
      : data(memory.data()), bytes(memory.size()), element(what) {}
  PullView(const Buffer& buffer, Element what) noexcept : PullView(buffer.span(), what) {}
  template <ViewSource Container>
  requires(!std::same_as<std::remove_cvref_t<Container>, PullView> &&
           !std::is_const_v<std::remove_reference_t<std::ranges::range_reference_t<Container>>>)  //
      PullView(Container&& values)
  noexcept  // NOLINT(google-explicit-constructor): reads as `.pull = sum`
      : data(reinterpret_cast<std::byte*>(std::ranges::data(values))),
        bytes(std::ranges::size(values) * sizeof(std::ranges::range_value_t<Container>)),
        element(element_of<std::ranges::range_value_t<Container>>()) {}
};

/// One key of a round: what to push under it, where to put its answer; either may be missing. The same memory may
/// stand on both sides of one key.
struct PushPull {
  std::uint64_t key = 0;
  PushView push{};
  PullView pull{};
};

}  // namespace dtr::inline v0
