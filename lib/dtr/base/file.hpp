// Whole small files: read at once, replaced at once.
#pragma once

#include <string>
#include <string_view>

#include "dtr/base/error.hpp"

namespace dtr::inline v0 {

/// The file's bytes. Errors: not_found, permission_denied, io_error, naming the path.
[[nodiscard]] Result<std::string> read_file(const std::string& path);

/// Replaces `path` by rename, so that a reader sees the old file or the new one, never a part. Not synced to disk:
/// after a crash of the machine either may be there. Errors: not_found (no such folder), no_space, ... naming the path.
[[nodiscard]] Result<void> replace_file(const std::string& path, std::string_view bytes);

/// The file of one rank: `{rank}` replaced, else the rank put before the extension: "run.prom" -> "run.3.prom".
/// A negative rank (not known) leaves the name without one.
[[nodiscard]] std::string rank_path(std::string_view pattern, int rank);

}  // namespace dtr::inline v0
