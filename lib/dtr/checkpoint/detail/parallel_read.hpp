// Large reads and verifications on several threads: one alone waits for the disk, then checksums, in turn.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "dtr/base/deadline.hpp"
#include "dtr/base/error.hpp"
#include "dtr/checkpoint/detail/manifest.hpp"

namespace dtr::inline v0 {
namespace checkpoint {

/// A box of a tensor and where it goes.
struct BoxRead {
  const TensorEntry* tensor = nullptr;
  Box box{};  ///< written out, inside the tensor
  std::span<std::byte> target{};
};

/// As StepReader::read, for all of them.
[[nodiscard]] Result<void> read_boxes(const std::string& folder, const Manifest& manifest,
                                      const std::vector<BoxRead>& reads, Deadline deadline);

/// As StepReader::verify_share.
[[nodiscard]] Result<void> verify_share(const std::string& folder, const Manifest& manifest, int share, int parts,
                                        Deadline deadline);

/// Every byte of a step. Errors: those of read_manifest and verify_share.
[[nodiscard]] Result<void> verify_step(const std::string& folder, std::uint64_t step, Deadline deadline);

}  // namespace checkpoint
}  // namespace dtr::inline v0
