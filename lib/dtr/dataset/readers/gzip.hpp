// Whole gzip files in memory.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "dtr/base/error.hpp"

namespace dtr::inline v0 {
namespace dataset {

[[nodiscard]] bool looks_gzipped(std::span<const std::byte> bytes) noexcept;

/// Unpacks all members of a gzip file. `name` is the file, for the Errors: truncated, corrupt (checksum, garbage
/// behind the last member), resource_exhausted.
[[nodiscard]] Result<std::vector<std::byte>> gunzip(std::span<const std::byte> packed, const std::string& name);

}  // namespace dataset
}  // namespace dtr::inline v0
