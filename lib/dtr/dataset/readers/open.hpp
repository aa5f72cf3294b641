// From a DatasetInfo to its samples: which files there are, and one reader over all of them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "dtr/dataset/info.hpp"
#include "dtr/dataset/readers/reader.hpp"

namespace dtr::inline v0 {

/// The files of a path: itself, or what a folder holds, by name. Left out: folders, names that begin with '.' or '_'.
/// Errors: not_found (nothing there, or an empty folder), unsupported (s3://...), io_error.
[[nodiscard]] Result<std::vector<std::string>> dataset_files(const std::string& path);

/// Opens one file in the format of `info`. metadata: "dataset" for hdf5; "delimiter", "header" (true, false) and
/// "type" (f32, f64) for csv. Errors: unsupported (formats that this build lacks; lists those it has), and those of
/// the format.
[[nodiscard]] Result<ReaderPtr> open_dataset_file(const DatasetInfo& info, const std::string& file);

/// Opens all files of `info` as one row of samples, in the order of dataset_files(). Keeps at most 64 files open.
/// Errors: corrupt (a file with samples of another shape or type, or another total than info.total_samples), and those
/// above.
[[nodiscard]] Result<ReaderPtr> open_dataset(const DatasetInfo& info);

/// Samples in each of `files`.
[[nodiscard]] Result<std::vector<std::uint64_t>> count_samples(const DatasetInfo& info,
                                                               const std::vector<std::string>& files);

}  // namespace dtr::inline v0
