// Files on a local or mounted file system: exact reads and writes at an offset, and what it takes to make them last.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <sys/types.h>

#include "dtr/base/error.hpp"
#include "dtr/base/fd.hpp"

namespace dtr::inline v0 {
namespace storage {

/// All errors name the path: not_found, permission_denied, already_exists, no_space, io_error...
[[nodiscard]] Result<UniqueFd> open_file(const std::string& path, int flags, mode_t mode = 0666);

/// Exactly `data.size()` bytes at `offset`. Error: truncated if the file ends before that.
[[nodiscard]] Result<void> read_at(int fd, std::uint64_t offset, std::span<std::byte> data, const std::string& path);
[[nodiscard]] Result<void> write_at(int fd, std::uint64_t offset, std::span<const std::byte> data,
                                    const std::string& path);

[[nodiscard]] Result<std::uint64_t> file_size(int fd, const std::string& path);

/// The whole file, if it has at most `limit` bytes; else resource_exhausted.
[[nodiscard]] Result<std::string> read_small_file(const std::string& path, std::uint64_t limit);

/// A new file with these bytes, synced. Its folder is not: see sync_folder.
[[nodiscard]] Result<void> write_new_file(const std::string& path, std::string_view bytes);

/// Data and size are on disk afterwards.
[[nodiscard]] Result<void> sync_file(int fd, const std::string& path);

/// Names created, renamed or removed in the folder are on disk afterwards.
[[nodiscard]] Result<void> sync_folder(const std::string& path);

/// Like mkdir -p. An existing folder is fine.
[[nodiscard]] Result<void> make_folders(const std::string& path);

[[nodiscard]] Result<void> rename_path(const std::string& from, const std::string& to);

/// Names in a folder, without "." and "..", in no order.
[[nodiscard]] Result<std::vector<std::string>> list_folder(const std::string& path);

/// The folder and all in it; follows no links. A path that does not exist is fine.
[[nodiscard]] Result<void> remove_tree(const std::string& path);

}  // namespace storage
}  // namespace dtr::inline v0
