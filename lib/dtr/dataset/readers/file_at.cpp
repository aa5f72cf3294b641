#include "dtr/dataset/readers/file_at.hpp"

#include <cerrno>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace dtr::inline v0 {
namespace dataset {

Result<OpenFile> open_file(const std::string& path) {
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));  // a FIFO must not hold us up
  if (!fd) return fail(errno_error(errno, "open " + path, "open dataset"));
  struct stat status {};
  if (::fstat(fd.get(), &status) != 0) return fail(errno_error(errno, "stat " + path, "open dataset"));
  if (!S_ISREG(status.st_mode)) {
    return fail(Errc::invalid_argument, "'" + path + "' is no regular file", "open dataset");
  }
  return OpenFile{std::move(fd), static_cast<std::uint64_t>(status.st_size)};
}

Result<void> read_at(int fd, std::span<std::byte> out, std::uint64_t offset, const std::string& path) {
  while (!out.empty()) {
    const ssize_t got = ::pread(fd, out.data(), out.size(), static_cast<off_t>(offset));
    if (got < 0) {
      if (errno == EINTR) continue;
      return fail(errno_error(errno, "read " + path, "read samples"));
    }
    if (got == 0) {
      return fail(Errc::truncated, "'" + path + "' became shorter while it was open", "read samples");
    }
    out = out.subspan(static_cast<std::size_t>(got));
    offset += static_cast<std::uint64_t>(got);
  }
  return {};
}

}  // namespace dataset
}  // namespace dtr::inline v0
