// One rank's HDF5 file: where HDF5 puts each tensor, and the bytes around them.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "dtr/base/error.hpp"
#include "dtr/checkpoint/tensor.hpp"

namespace dtr::inline v0 {
namespace checkpoint {

/// A dataset to be: its extents are the rank's box.
struct DatasetSpec {
  std::string name{};
  DType dtype = DType::f32;
  Shape extent{};

  friend bool operator==(const DatasetSpec&, const DatasetSpec&) = default;
};

/// [begin, begin + bytes) of a file.
struct Stretch {
  std::uint64_t begin = 0;
  std::uint64_t bytes = 0;
};

/// Bytes to be written at an offset.
struct Segment {
  std::uint64_t offset = 0;
  std::vector<std::byte> bytes{};
};

struct FileLayout {
  std::uint64_t size = 0;
  std::vector<std::uint64_t> positions{};  ///< of each dataset's bytes; 0 for an empty one
  std::vector<Segment> segments{};         ///< all other bytes that are not zero, ascending, none inside a dataset
  std::uint64_t structure = 0;             ///< checksum of all bytes outside the datasets
};

/// Lets HDF5 lay out a file with these contiguous datasets. Cost: 10 to 20 us a dataset, one caller at a time.
[[nodiscard]] Result<FileLayout> lay_out_rank_file(std::span<const DatasetSpec> datasets);

/// What `taken` (any order, not overlapping) leaves of [0, size).
[[nodiscard]] std::vector<Stretch> gaps(std::vector<Stretch> taken, std::uint64_t size);

/// Checksum of the bytes in `stretches`, which `read` fetches in parts of bounded size.
[[nodiscard]] Result<std::uint64_t> checksum_of(
    std::span<const Stretch> stretches,
    const std::function<Result<void>(std::uint64_t offset, std::span<std::byte>)>& read);

}  // namespace checkpoint
}  // namespace dtr::inline v0
