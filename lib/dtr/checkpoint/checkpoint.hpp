// A step that was loaded: what is in it, and any part of it.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dtr/base/deadline.hpp"
#include "dtr/base/error.hpp"
#include "dtr/checkpoint/tensor.hpp"

namespace dtr::inline v0 {

namespace checkpoint {
struct LoadedStep;
}

/// Each rank reads what it wants, however the tensors were cut when they were saved: a box that spans several saved
/// boxes is put together from them. All reads verify checksums before the bytes count as read; after an Error the
/// target's contents are unspecified. Copies share the step. Any thread; no rank needs another one to read.
/// Retention may remove the step meanwhile (then not_found): read before you save keep_last_n more.
class Checkpoint {
 public:
  static constexpr auto kReadTimeout = std::chrono::hours(1);

  explicit Checkpoint(std::shared_ptr<const checkpoint::LoadedStep> loaded) noexcept : loaded_(std::move(loaded)) {}

  [[nodiscard]] std::uint64_t step() const noexcept;

  /// Number of ranks that saved it.
  [[nodiscard]] int world() const noexcept;

  /// By name.
  [[nodiscard]] std::vector<TensorInfo> tensors() const;

  /// Error: not_found.
  [[nodiscard]] Result<TensorInfo> find(std::string_view name) const;

  /// Why newer steps were passed over, newest first; empty if this is the newest.
  [[nodiscard]] const std::vector<std::string>& skipped() const noexcept;

  /// Errors: not_found (no such tensor), out_of_range (box), invalid_argument (size of the target), corrupt,
  /// truncated, timed_out.
  [[nodiscard]] Result<void> read(const TensorTarget& target, Deadline deadline = kReadTimeout) const;
  [[nodiscard]] Result<void> read(std::span<const TensorTarget> targets, Deadline deadline = kReadTimeout) const;

  /// A tensor, or a box of it, as numbers. Error also: invalid_argument if T is not the tensor's type.
  template <class T>
  [[nodiscard]] Result<std::vector<T>> get(const std::string& name, const Box& box = {},
                                           Deadline deadline = kReadTimeout) const {
    const auto elements = count(name, dtype_of<T>(), box);
    if (!elements) return fail(elements.error());
    std::vector<T> values(*elements);
    auto done = read(TensorTarget::of(name, values, box), deadline);
    if (!done) return fail(done.error());
    return values;
  }

 private:
  [[nodiscard]] Result<std::size_t> count(const std::string& name, DType dtype, const Box& box) const;

  std::shared_ptr<const checkpoint::LoadedStep> loaded_;
};

}  // namespace dtr::inline v0
