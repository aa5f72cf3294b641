#include "dtr/checkpoint/detail/geometry.hpp"

#include <algorithm>

namespace dtr::inline v0 {
namespace checkpoint {

std::optional<std::uint64_t> volume(const Shape& extent) noexcept {
  if (std::find(extent.begin(), extent.end(), 0U) != extent.end()) return 0;
  std::uint64_t product = 1;
  for (const auto side : extent) {
    if (__builtin_mul_overflow(product, side, &product)) return std::nullopt;
  }
  return product;
}

Box whole_or(const Box& box, const Shape& shape) {
  if (!box.offset.empty() || !box.extent.empty()) return box;
  return Box{.offset = Shape(shape.size(), 0), .extent = shape};
}

bool is_inside(const Box& box, const Shape& shape) noexcept {
  if (box.offset.size() != shape.size() || box.extent.size() != shape.size()) return false;
  for (std::size_t d = 0; d < shape.size(); ++d) {
    if (box.offset[d] > shape[d] || box.extent[d] > shape[d] - box.offset[d]) return false;
  }
  return true;
}

std::optional<Box> intersect(const Box& a, const Box& b) {
  Box common;
  for (std::size_t d = 0; d < a.offset.size(); ++d) {
    const auto begin = std::max(a.offset[d], b.offset[d]);
    const auto end = std::min(a.offset[d] + a.extent[d], b.offset[d] + b.extent[d]);
    if (begin >= end) return std::nullopt;
    common.offset.push_back(begin);
    common.extent.push_back(end - begin);
  }
  return common;
}

std::string to_string(const Box& box) {
  std::string text = "[";
  for (std::size_t d = 0; d < std::min(box.offset.size(), box.extent.size()); ++d) {
    if (d > 0) text += ", ";
    text += std::to_string(box.offset[d]) + ":" + std::to_string(box.offset[d] + box.extent[d]);
  }
  return text + "]";
}

std::string shape_string(const Shape& shape) {
  std::string text = "[";
  for (std::size_t d = 0; d < shape.size(); ++d) text += (d > 0 ? ", " : "") + std::to_string(shape[d]);
  return text + "]";
}

namespace {

/// Byte offset of the element at `position` (global coordinates) in row-major `box`.
std::uint64_t byte_offset(const Shape& position, const Box& box, std::uint64_t element_bytes) {
  std::uint64_t index = 0;
  for (std::size_t d = 0; d < position.size(); ++d) index = index * box.extent[d] + (position[d] - box.offset[d]);
  return index * element_bytes;
}

}  // namespace

Result<void> for_each_run(const Box& common, const Box& source, const Box& target, std::uint64_t element_bytes,
                          const std::function<Result<void>(const Run&)>& visit) {
  // Dimensions from `inner` on form one run: all of them but the outermost are whole on both sides.
  std::size_t inner = common.extent.size();
  std::uint64_t bytes = element_bytes;
  while (inner > 0) {
    --inner;
    bytes *= common.extent[inner];
    if (common.extent[inner] != source.extent[inner] || common.extent[inner] != target.extent[inner]) break;
  }

  Shape position = common.offset;
  for (;;) {
    auto done = visit(Run{.source = byte_offset(position, source, element_bytes),
                          .target = byte_offset(position, target, element_bytes),
                          .bytes = bytes});
    if (!done) return done;
    std::size_t d = inner;
    for (; d > 0; --d) {
      if (++position[d - 1] < common.offset[d - 1] + common.extent[d - 1]) break;
      position[d - 1] = common.offset[d - 1];
    }
    if (d == 0) return {};
  }
}

}  // namespace checkpoint
}  // namespace dtr::inline v0
