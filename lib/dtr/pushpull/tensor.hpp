// Tensors as push_pull sees them: contiguous bytes in the caller's memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

#include "dtr/memory/buffer.hpp"

namespace dtr::inline v0 {

/// Names a tensor within a group; the same number means the same tensor on all workers.
using Key = std::uint64_t;

/// Bytes to read. Made from any contiguous container or span of trivially copyable values, or a Buffer.
class ConstTensor {
 public:
  ConstTensor() = default;
  template <class Container>
  requires requires(const Container& c) { std::as_bytes(std::span(c)); }
  ConstTensor(const Container& values)  // NOLINT(google-explicit-constructor): `.push = gradient`
      : bytes_(std::as_bytes(std::span(values))) {}
  ConstTensor(const Buffer& buffer) : bytes_(buffer.span()) {}  // NOLINT(google-explicit-constructor)

  [[nodiscard]] std::span<const std::byte> bytes() const noexcept { return bytes_; }
  [[nodiscard]] bool empty() const noexcept { return bytes_.empty(); }

 private:
  std::span<const std::byte> bytes_;
};

/// Bytes to write.
class Tensor {
 public:
  Tensor() = default;
  template <class Container>
  requires requires(Container& c) { std::as_writable_bytes(std::span(c)); }
  Tensor(Container& values)  // NOLINT(google-explicit-constructor): `.pull = sum`
      : bytes_(std::as_writable_bytes(std::span(values))) {}
  template <class T, std::size_t N>
  Tensor(std::span<T, N> values)  // NOLINT(google-explicit-constructor)
      : bytes_(std::as_writable_bytes(values)) {}
  Tensor(Buffer& buffer) : bytes_(buffer.span()) {}  // NOLINT(google-explicit-constructor)

  [[nodiscard]] std::span<std::byte> bytes() const noexcept { return bytes_; }
  [[nodiscard]] bool empty() const noexcept { return bytes_.empty(); }

 private:
  std::span<std::byte> bytes_;
};

/// One tensor of a round that goes up, comes down, or both.
struct PushPull {
  Key key = 0;
  ConstTensor push{};  ///< empty = this key is only pulled
  Tensor pull{};       ///< empty = this key is only pushed
};

}  // namespace dtr::inline v0
