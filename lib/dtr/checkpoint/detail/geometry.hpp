// Boxes: volumes, intersections, and the contiguous runs that copy one box's elements into another's.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "dtr/checkpoint/tensor.hpp"

namespace dtr::inline v0 {
namespace checkpoint {

/// Product of the extents (1 for none); nothing if it overflows 64 bits.
[[nodiscard]] std::optional<std::uint64_t> volume(const Shape& extent) noexcept;

/// `box`, with the default (empty) replaced by the whole tensor.
[[nodiscard]] Box whole_or(const Box& box, const Shape& shape);

/// Same number of dimensions, and inside in each.
[[nodiscard]] bool is_inside(const Box& box, const Shape& shape) noexcept;

/// The common part; nothing if that has no element. Both boxes have the same number of dimensions.
[[nodiscard]] std::optional<Box> intersect(const Box& a, const Box& b);

/// "[2:5, 0:784]", for messages.
[[nodiscard]] std::string to_string(const Box& box);
[[nodiscard]] std::string shape_string(const Shape& shape);

/// A stretch of bytes that is contiguous on both sides.
struct Run {
  std::uint64_t source = 0;  ///< byte offset in the source box
  std::uint64_t target = 0;  ///< byte offset in the target box
  std::uint64_t bytes = 0;
};

/// Calls `visit` for each run of `common` (inside both boxes), source offsets ascending; ends at its first Error.
[[nodiscard]] Result<void> for_each_run(const Box& common, const Box& source, const Box& target,
                                        std::uint64_t element_bytes,
                                        const std::function<Result<void>(const Run&)>& visit);

}  // namespace checkpoint
}  // namespace dtr::inline v0
