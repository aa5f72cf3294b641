// What a Checkpoint refers to.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "dtr/base/deadline.hpp"
#include "dtr/checkpoint/detail/manifest.hpp"
#include "dtr/checkpoint/detail/parallel_read.hpp"
#include "dtr/checkpoint/tensor.hpp"

namespace dtr::inline v0 {
namespace checkpoint {

struct LoadedStep {
  std::string folder{};
  Manifest manifest{};
  std::vector<std::string> skipped{};

  /// A target that fits the manifest; else the caller's error.
  [[nodiscard]] Result<BoxRead> resolve(const TensorTarget& target) const;
  [[nodiscard]] Result<void> check(std::span<const TensorTarget> targets) const;
  [[nodiscard]] Result<void> read(std::span<const TensorTarget> targets, Deadline deadline) const;
};

}  // namespace checkpoint
}  // namespace dtr::inline v0
