// A file descriptor that closes itself.
#pragma once

#include <cerrno>
#include <utility>

#include <unistd.h>

namespace dtr::inline v0 {

/// Owns one descriptor, or none (-1). Open it CLOEXEC; this class cannot add that without a race.
class UniqueFd {
 public:
  UniqueFd() noexcept = default;
  explicit UniqueFd(int fd) noexcept : fd_(fd) {}
  ~UniqueFd() { reset(); }
  UniqueFd(UniqueFd&& other) noexcept : fd_(other.release()) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    if (this != &other) reset(other.release());
    return *this;
  }
  UniqueFd(const UniqueFd&) = delete;
  UniqueFd& operator=(const UniqueFd&) = delete;

  [[nodiscard]] int get() const noexcept { return fd_; }
  [[nodiscard]] explicit operator bool() const noexcept { return fd_ >= 0; }

  /// Gives the descriptor away.
  [[nodiscard]] int release() noexcept { return std::exchange(fd_, -1); }

  /// Closes what is held and takes `fd`. Keeps errno, so that an error path may close before it reports.
  void reset(int fd = -1) noexcept {
    const int old = std::exchange(fd_, fd);
    if (old < 0) return;
    const int saved = errno;
    ::close(old);  // never repeated on EINTR: Linux has released the number by then
    errno = saved;
  }

 private:
  int fd_ = -1;
};

}  // namespace dtr::inline v0
