// Numbers in lines of text: one sample a line.
#pragma once

#include <string>

#include "dtr/dataset/readers/reader.hpp"

namespace dtr::inline v0 {

struct CsvOptions {
  char delimiter = ',';
  bool header = false;      ///< the first line names the columns
  DType type = DType::f32;  ///< f32 or f64: what the numbers become
};

/// Opens a file of numbers; all lines have as many as the first. The file is read through once to find the lines and
/// keeps 8 bytes in memory for every 64 of them. Lines end in \n or \r\n; spaces around numbers are skipped; quotes and
/// empty lines (but the last) are Errors. Errors: those of opening, corrupt (naming file and line, on open or read),
/// unsupported (another type).
[[nodiscard]] Result<ReaderPtr> open_csv(const std::string& path, const CsvOptions& options = {});

}  // namespace dtr::inline v0
