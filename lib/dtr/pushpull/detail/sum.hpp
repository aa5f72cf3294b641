// Sums whose bits depend on nothing but the operands and their order.
#pragma once

#include <cstddef>
#include <span>

#include "dtr/base/error.hpp"
#include "dtr/pushpull/views.hpp"

namespace dtr::inline v0 {
namespace pushpull {

/// Floating-point numbers, and integers of 32 and 64 bits.
[[nodiscard]] bool can_sum(DType dtype) noexcept;

/// ((operands[0] + operands[1]) + operands[2]) + ... element by element, in the element's own precision for f32 and
/// f64, modulo 2^n for integers; f16 and bf16 are summed in f32 and rounded once at the end, to nearest even; a single
/// operand is copied. Written to one or two places, each of which may be one of the operands but overlap none.
/// `bytes` is a multiple of the element's size. No alignment is needed.
void sum(std::span<const std::byte* const> operands, std::span<std::byte* const> places, std::size_t bytes,
         DType dtype) noexcept;

}  // namespace pushpull
}  // namespace dtr::inline v0
