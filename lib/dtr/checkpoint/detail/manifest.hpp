// manifest.json: the truth about one step. Which tensors there are, where each box of them lies, and its checksums.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "dtr/base/error.hpp"
#include "dtr/checkpoint/tensor.hpp"

namespace dtr::inline v0 {
namespace checkpoint {

inline constexpr int kFormatVersion = 1;

/// A shard's bytes are checksummed in pieces of this size (the last one shorter), so that a partial read verifies
/// what it uses and no more.
inline constexpr std::uint64_t kPieceBytes = std::uint64_t{4} << 20;

/// One rank's HDF5 file.
struct FileEntry {
  int rank = 0;
  std::uint64_t size = 0;
  std::uint64_t structure = 0;  ///< checksum of all bytes that are no tensor data, in file order

  [[nodiscard]] std::string name() const;
};

/// One rank's box of one tensor, contiguous in that rank's file.
struct ShardEntry {
  std::size_t file = 0;  ///< index into Manifest::files
  Box box{};
  std::uint64_t position = 0;           ///< byte offset in the file
  std::uint64_t length = 0;             ///< bytes
  std::vector<std::uint64_t> pieces{};  ///< checksum of each piece
};

struct TensorEntry {
  TensorInfo info{};
  std::vector<ShardEntry> shards{};
};

struct Manifest {
  std::uint64_t step = 0;
  int world = 1;
  std::uint64_t piece_bytes = kPieceBytes;
  std::vector<FileEntry> files{};      ///< by rank; ranks without data have none
  std::vector<TensorEntry> tensors{};  ///< by name

  /// nullptr if there is none.
  [[nodiscard]] const TensorEntry* find(std::string_view name) const noexcept;
};

/// Number of pieces of a shard.
[[nodiscard]] std::uint64_t piece_count(std::uint64_t length, std::uint64_t piece_bytes) noexcept;

/// JSON whose first line holds the checksum of all that follows it.
[[nodiscard]] std::string encode_manifest(const Manifest& manifest);

/// Checks the checksum first, then every field: what comes out is consistent in itself. A part of a manifest (one
/// rank's) has the same form. Errors: corrupt (with what is wrong), unsupported (a later format version).
[[nodiscard]] Result<Manifest> decode_manifest(std::string_view text);

/// One manifest of the ranks' parts. Errors: invalid_argument or overlap, naming the tensor and ranks, if the parts
/// differ about a tensor, overlap, or leave a hole in it.
[[nodiscard]] Result<Manifest> merge_manifests(std::vector<Manifest> parts);

}  // namespace checkpoint
}  // namespace dtr::inline v0
