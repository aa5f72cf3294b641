#include "dtr/base/file.hpp"

#include <cerrno>

#include <fcntl.h>
#include <unistd.h>

#include "dtr/base/clock.hpp"
#include "dtr/base/fd.hpp"

namespace dtr::inline v0 {

Result<std::string> read_file(const std::string& path) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return fail(errno_error(errno, "open " + path, "read_file"));
  std::string bytes;
  char piece[1 << 16];
  for (;;) {
    const ssize_t got = ::read(fd.get(), piece, sizeof(piece));
    if (got == 0) return bytes;
    if (got > 0) {
      bytes.append(piece, static_cast<std::size_t>(got));
    } else if (errno != EINTR) {
      return fail(errno_error(errno, "read " + path, "read_file"));
    }
  }
}

namespace {

Result<void> write_all(int fd, std::string_view bytes, const std::string& path) {
  while (!bytes.empty()) {
    const ssize_t put = ::write(fd, bytes.data(), bytes.size());
    if (put >= 0) {
      bytes.remove_prefix(static_cast<std::size_t>(put));
    } else if (errno != EINTR) {
      return fail(errno_error(errno, "write " + path, "replace_file"));
    }
  }
  return {};
}

}  // namespace

Result<void> replace_file(const std::string& path, std::string_view bytes) {
  // Not mkstemp: its files are private, and a metrics collector often runs as somebody else.
  const std::string temporary = path + ".tmp." + std::to_string(::getpid()) + "." + std::to_string(monotonic_ns());
  const UniqueFd fd(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
  if (!fd) return fail(errno_error(errno, "create " + temporary, "replace_file"));
  auto done = write_all(fd.get(), bytes, temporary);
  if (done && ::rename(temporary.c_str(), path.c_str()) != 0) {
    done = fail(errno_error(errno, "rename to " + path, "replace_file"));
  }
  if (!done) ::unlink(temporary.c_str());
  return done;
}

std::string rank_path(std::string_view pattern, int rank) {
  constexpr std::string_view kPlace = "{rank}";
  std::string path(pattern);
  const std::string number = rank >= 0 ? std::to_string(rank) : std::string();
  auto place = path.find(kPlace);
  if (place == std::string::npos) {
    if (number.empty()) return path;
    const auto name = path.rfind('/') + 1;  // npos + 1 == 0
    const auto dot = path.rfind('.');
    const bool has_extension = dot != std::string::npos && dot > name;
    return path.insert(has_extension ? dot : path.size(), "." + number);
  }
  for (; place != std::string::npos; place = path.find(kPlace, place + number.size())) {
    path.replace(place, kPlace.size(), number);
  }
  return path;
}

}  // namespace dtr::inline v0
