// The idx format of the MNIST family: a big-endian header, then the elements. Plain or gzip.
#pragma once

#include <string>

#include "dtr/dataset/readers/reader.hpp"

namespace dtr::inline v0 {

/// Opens an idx file. A gzip file is unpacked into memory; a plain one is read on demand. Dimension 0 counts samples.
/// Errors, naming the file: not_found, permission_denied, io_error, corrupt (wrong magic, sizes that overflow, bytes
/// behind the data, bad gzip), truncated.
[[nodiscard]] Result<ReaderPtr> open_idx(const std::string& path);

}  // namespace dtr::inline v0
