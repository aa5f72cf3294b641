// One thread at a time inside the HDF5 library, whatever its build.
#pragma once

#include <mutex>

namespace dtr::inline v0 {
namespace storage {

/// Hold it around every HDF5 call of libdtr. The library's own global lock makes more than one caller no faster,
/// and a serial build need not have that lock at all.
[[nodiscard]] std::unique_lock<std::mutex> hdf5_lock();

}  // namespace storage
}  // namespace dtr::inline v0
