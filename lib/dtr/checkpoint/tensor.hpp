// What a checkpoint holds: named tensors of fixed-width elements, cut into boxes over the ranks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "dtr/base/dtype.hpp"
#include "dtr/base/error.hpp"

namespace dtr::inline v0 {

using Shape = std::vector<std::uint64_t>;

/// A rectangular part of a tensor, in elements: [offset, offset + extent) in each dimension.
/// Both vectors empty means the whole tensor.
struct Box {
  Shape offset{};
  Shape extent{};

  friend bool operator==(const Box&, const Box&) = default;
};

/// A tensor, or this rank's box of one, in the caller's memory: row-major, without gaps, only read.
struct TensorView {
  std::string name{};  ///< UTF-8; '/' makes groups in the HDF5 files: "layers/0/weight"
  DType dtype = DType::f32;
  Shape global_shape{};  ///< of the whole tensor, at most 32 dimensions; empty = one element
  Box box{};             ///< what `data` holds of it; default: all
  std::span<const std::byte> data{};
  /// Every rank of the group passes the same tensor, and one of them writes it (which one is spread by size).
  bool replicated = false;

  /// From any contiguous container of numbers: `TensorView::of("weights", weights, {256, 784})`.
  /// Without a shape it is one-dimensional, as long as the container.
  template <class Container>
  [[nodiscard]] static TensorView of(std::string name, const Container& values, Shape global_shape = {}, Box box = {}) {
    const std::span elements(values);
    using T = typename decltype(elements)::value_type;
    if (global_shape.empty()) global_shape = {elements.size()};
    TensorView view;
    view.name = std::move(name);
    view.dtype = dtype_of<T>();
    view.global_shape = std::move(global_shape);
    view.box = std::move(box);
    view.data = std::as_bytes(elements);
    return view;
  }

  /// The same, marked as equal on all ranks.
  [[nodiscard]] TensorView same_on_all_ranks() && {
    replicated = true;
    return std::move(*this);
  }
};

/// Where a load puts a tensor or a box of one: row-major, without gaps.
struct TensorTarget {
  std::string name{};
  Box box{};  ///< default: all of it
  std::span<std::byte> data{};

  template <class Container>
  [[nodiscard]] static TensorTarget of(std::string name, Container& values, Box box = {}) {
    TensorTarget target;
    target.name = std::move(name);
    target.box = std::move(box);
    target.data = std::as_writable_bytes(std::span(values));
    return target;
  }
};

/// What a checkpoint knows of a tensor besides its bytes.
struct TensorInfo {
  std::string name{};
  DType dtype = DType::f32;
  Shape global_shape{};
};

}  // namespace dtr::inline v0
