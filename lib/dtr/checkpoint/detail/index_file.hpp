// index.h5: every tensor whole, for people with h5py, h5dump or HDFView. Never read by libdtr.
#pragma once

#include "dtr/base/error.hpp"
#include "dtr/checkpoint/detail/manifest.hpp"
#include "dtr/checkpoint/detail/rank_file.hpp"

namespace dtr::inline v0 {
namespace checkpoint {

/// Virtual datasets over the rank files beside it; tensors without dimensions or elements are external links.
/// Cost: about 50 us a tensor, and more with many shards.
[[nodiscard]] Result<FileLayout> lay_out_index(const Manifest& manifest);

/// True if both have the same index: equal tensors, cut in the same way. Positions and bytes do not matter.
[[nodiscard]] bool same_index(const Manifest& a, const Manifest& b);

}  // namespace checkpoint
}  // namespace dtr::inline v0
