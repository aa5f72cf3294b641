#include "dtr/storage/local_file.hpp"

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <memory>

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace dtr::inline v0 {
namespace storage {

namespace {

/// More than this in one call and some kernels answer short or EINVAL.
constexpr std::size_t kLargestCall = std::size_t{1} << 30;

Error failure(int number, const std::string& verb, const std::string& path) {
  return errno_error(number, verb + " " + path, "storage");
}

}  // namespace

Result<UniqueFd> open_file(const std::string& path, int flags, mode_t mode) {
  for (;;) {
    UniqueFd fd(::open(path.c_str(), flags | O_CLOEXEC, mode));
    if (fd) return fd;
    if (errno != EINTR) return fail(failure(errno, (flags & O_CREAT) != 0 ? "create" : "open", path));
  }
}

Result<void> read_at(int fd, std::uint64_t offset, std::span<std::byte> data, const std::string& path) {
  while (!data.empty()) {
    const ssize_t got = ::pread(fd, data.data(), std::min(data.size(), kLargestCall), static_cast<off_t>(offset));
    if (got == 0) {
      return fail(
          Errc::truncated,
          path + " ends at byte " + std::to_string(offset) + ", " + std::to_string(data.size()) + " bytes too early",
          "storage");
    }
    if (got > 0) {
      offset += static_cast<std::uint64_t>(got);
      data = data.subspan(static_cast<std::size_t>(got));
    } else if (errno != EINTR) {
      return fail(failure(errno, "read", path));
    }
  }
  return {};
}

Result<void> write_at(int fd, std::uint64_t offset, std::span<const std::byte> data, const std::string& path) {
  while (!data.empty()) {
    const ssize_t put = ::pwrite(fd, data.data(), std::min(data.size(), kLargestCall), static_cast<off_t>(offset));
    if (put >= 0) {
      offset += static_cast<std::uint64_t>(put);
      data = data.subspan(static_cast<std::size_t>(put));
    } else if (errno != EINTR) {
      return fail(failure(errno, "write", path));
    }
  }
  return {};
}

Result<std::uint64_t> file_size(int fd, const std::string& path) {
  struct stat info {};
  if (::fstat(fd, &info) != 0) return fail(failure(errno, "stat", path));
  return static_cast<std::uint64_t>(info.st_size);
}

Result<std::string> read_small_file(const std::string& path, std::uint64_t limit) {
  const auto fd = open_file(path, O_RDONLY);
  if (!fd) return fail(fd.error());
  const auto size = file_size(fd->get(), path);
  if (!size) return fail(size.error());
  if (*size > limit) {
    return fail(Errc::resource_exhausted,
                path + " has " + std::to_string(*size) + " bytes, at most " + std::to_string(limit) + " are read",
                "storage");
  }
  std::string bytes(*size, '\0');
  auto done = read_at(fd->get(), 0, std::as_writable_bytes(std::span(bytes)), path);
  if (!done) return fail(done.error());
  return bytes;
}

Result<void> write_new_file(const std::string& path, std::string_view bytes) {
  const auto fd = open_file(path, O_WRONLY | O_CREAT | O_EXCL);
  if (!fd) return fail(fd.error());
  auto done = write_at(fd->get(), 0, std::as_bytes(std::span(bytes)), path);
  return done ? sync_file(fd->get(), path) : done;
}

Result<void> sync_file(int fd, const std::string& path) {
  // Not repeated after a failure: Linux drops the dirty pages, and the second fsync would report success.
  if (::fsync(fd) != 0) return fail(failure(errno, "fsync", path));
  return {};
}

Result<void> sync_folder(const std::string& path) {
  const auto fd = open_file(path, O_RDONLY | O_DIRECTORY);
  if (!fd) return fail(fd.error());
  // Some network file systems cannot sync a folder and say so with EINVAL; they order their metadata on the server.
  if (::fsync(fd->get()) != 0 && errno != EINVAL) return fail(failure(errno, "fsync", path));
  return {};
}

Result<void> make_folders(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) return fail(failure(error.value(), "create folder", path));
  if (!std::filesystem::is_directory(path, error)) return fail(failure(ENOTDIR, "create folder", path));
  return {};
}

Result<void> rename_path(const std::string& from, const std::string& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) return fail(failure(errno, "rename " + from + " to", to));
  return {};
}

Result<std::vector<std::string>> list_folder(const std::string& path) {
  const auto closer = [](DIR* folder) { ::closedir(folder); };
  const std::unique_ptr<DIR, decltype(closer)> folder(::opendir(path.c_str()), closer);
  if (!folder) return fail(failure(errno, "list", path));
  std::vector<std::string> names;
  errno = 0;
  while (const dirent* entry = ::readdir(folder.get())) {
    const std::string name = entry->d_name;
    if (name != "." && name != "..") names.push_back(name);
    errno = 0;
  }
  if (errno != 0) return fail(failure(errno, "list", path));
  return names;
}

Result<void> remove_tree(const std::string& path) {
  std::error_code error;
  std::filesystem::remove_all(path, error);
  if (error && error.value() != ENOENT) return fail(failure(error.value(), "remove", path));
  return {};
}

}  // namespace storage
}  // namespace dtr::inline v0
