// Samples along dimension 0 of a dataset in an HDF5 file.
#pragma once

#include <string>

#include "dtr/dataset/readers/reader.hpp"

namespace dtr::inline v0 {

/// Opens `dataset` (a path like "/train/images") in an HDF5 file; an empty name means the only dataset at the root.
/// Reads are hyperslabs along dimension 0; one thread at a time is inside HDF5 (see storage/hdf5_lock.hpp).
/// Errors, naming file and dataset: not_found (the file, or the dataset: then the message lists those at the root),
/// corrupt (no HDF5 file, damaged), unsupported (element types other than integers of 1-8 bytes and f32, f64; a
/// scalar).
[[nodiscard]] Result<ReaderPtr> open_hdf5(const std::string& path, const std::string& dataset);

}  // namespace dtr::inline v0
