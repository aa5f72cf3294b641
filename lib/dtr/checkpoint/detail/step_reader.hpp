// Reads a step's bytes by the offsets in its manifest, and trusts none of them before their checksum was right.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>

#include "dtr/base/deadline.hpp"
#include "dtr/base/fd.hpp"
#include "dtr/checkpoint/detail/manifest.hpp"
#include "dtr/checkpoint/detail/rank_file.hpp"

namespace dtr::inline v0 {
namespace checkpoint {

/// The manifest of `step` in `folder`, self-checked. Errors: not_found (folder or manifest), corrupt, unsupported.
[[nodiscard]] Result<Manifest> read_manifest(const std::string& folder, std::uint64_t step);

/// True for what another, older step may make good: a missing, short or altered file. False for what would hit that
/// one as well (no permission, no descriptors, no time).
[[nodiscard]] bool is_damage(Errc code) noexcept;

/// One user at a time; files are opened when first needed and stay open. The manifest outlives it.
class StepReader {
 public:
  StepReader(std::string folder, const Manifest& manifest) : folder_(std::move(folder)), manifest_(manifest) {}

  /// Row-major into `target`, which has the size of the box. Reads the pieces that the box touches. Errors: corrupt,
  /// truncated, not_found (file), not_found (elements that no shard has), timed_out...; each names tensor or file.
  [[nodiscard]] Result<void> read(const TensorEntry& tensor, const Box& box, std::span<std::byte> target,
                                  Deadline deadline);

  /// All files are there and have the size that the manifest says.
  [[nodiscard]] Result<void> check_sizes();

  /// Every `parts`-th share of all bytes, shares counted from 0: sizes, data, and what HDF5 wrote around it. All
  /// shares together touch every byte of the rank files once.
  [[nodiscard]] Result<void> verify_share(int share, int parts, Deadline deadline);

 private:
  /// Valid until the next call.
  [[nodiscard]] Result<int> open(std::size_t file);
  [[nodiscard]] std::string path(std::size_t file) const;
  [[nodiscard]] Result<void> read_piece(const TensorEntry& tensor, const ShardEntry& shard, std::uint64_t piece,
                                        std::span<std::byte> target, Deadline deadline);
  [[nodiscard]] Result<void> read_from_shard(const TensorEntry& tensor, const ShardEntry& shard, const Box& common,
                                             const Box& box, std::span<std::byte> target, Deadline deadline);
  [[nodiscard]] Result<void> verify_structure(std::size_t file, std::vector<Stretch> taken, Deadline deadline);
  [[nodiscard]] std::uint64_t piece_bytes(const ShardEntry& shard, std::uint64_t piece) const;

  std::string folder_;
  const Manifest& manifest_;
  std::map<std::size_t, UniqueFd> files_;
  std::vector<std::byte> scratch_;
};

}  // namespace checkpoint
}  // namespace dtr::inline v0
