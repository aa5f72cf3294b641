// What one rank stages and writes of the tensors it was given; wrong input ends here.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "dtr/base/error.hpp"
#include "dtr/checkpoint/tensor.hpp"

namespace dtr::inline v0 {
namespace checkpoint {

/// A tensor that this rank writes.
struct PlannedTensor {
  TensorInfo info{};
  Box box{};               ///< never the default: written out
  std::size_t source = 0;  ///< index into the caller's tensors
  std::uint64_t bytes = 0;
  std::uint64_t staging = 0;  ///< offset in the staging memory
};

struct RankPlan {
  std::vector<PlannedTensor> tensors{};  ///< by name
  std::uint64_t staging_bytes = 0;
  std::uint64_t replicated = 0;  ///< digest of the replicated tensors' names and types: equal on all ranks
};

/// Errors: invalid_argument (name, shape, data size, replicated box), already_exists (a name twice), out_of_range
/// (box outside of the shape); each names the tensor.
[[nodiscard]] Result<RankPlan> make_plan(std::span<const TensorView> tensors, int rank, int world);

}  // namespace checkpoint
}  // namespace dtr::inline v0
