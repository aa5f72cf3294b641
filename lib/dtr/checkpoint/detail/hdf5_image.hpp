// An HDF5 file that exists in memory only, and only as far as the library wrote to it: gigabytes of tensor data that
// HDF5 merely allots take no room. Written out afterwards by our own I/O, so that HDF5 never meets a failing disk
// (a file that it cannot flush it cannot close either), and never holds its lock during slow I/O.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "dtr/base/error.hpp"
#include "dtr/checkpoint/detail/hdf5_support.hpp"

namespace dtr::inline v0 {
namespace checkpoint {

/// Bytes that were written; all others are zero.
class SparseImage {
 public:
  void write(std::uint64_t offset, const std::byte* data, std::size_t bytes);
  void read(std::uint64_t offset, std::byte* data, std::size_t bytes) const;

  [[nodiscard]] std::uint64_t size() const noexcept { return size_; }
  void set_size(std::uint64_t size) noexcept { size_ = size; }

 private:
  static constexpr std::uint64_t kPage = 4096;
  std::map<std::uint64_t, std::vector<std::byte>> pages_;
  std::uint64_t size_ = 0;
};

/// A new HDF5 file in `image`, in the newest file format of the library (whose metadata has checksums); objects of
/// at least 1 MiB begin at multiples of it. Hold storage::hdf5_lock() until it is closed; image outlives it.
[[nodiscard]] Result<Hid> create_in_memory(SparseImage& image);

}  // namespace checkpoint
}  // namespace dtr::inline v0
