// Files that are read at offsets, by any number of threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "dtr/base/error.hpp"
#include "dtr/base/fd.hpp"

namespace dtr::inline v0 {
namespace dataset {

struct OpenFile {
  UniqueFd fd;
  std::uint64_t size = 0;
};

/// Errors: not_found, permission_denied, io_error, invalid_argument (no regular file), naming the path.
[[nodiscard]] Result<OpenFile> open_file(const std::string& path);

/// Fills `out` from an offset. Errors: io_error, truncated (the file ends before), naming the path.
[[nodiscard]] Result<void> read_at(int fd, std::span<std::byte> out, std::uint64_t offset, const std::string& path);

}  // namespace dataset
}  // namespace dtr::inline v0
