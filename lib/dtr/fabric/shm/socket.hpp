// Unix sockets with names outside of the file system: for set-up, for passing descriptors, and as a sign of life.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <sys/types.h>

#include "dtr/base/error.hpp"
#include "dtr/base/fd.hpp"

namespace dtr::inline v0 {
namespace fabric::shm {

/// What a process tells its peers at start.
struct Address {
  std::array<std::byte, 16> name{};  ///< random
  std::uint32_t pid = 0;             ///< for people
  std::uint32_t reserved = 0;
};
static_assert(sizeof(Address) == 24);

/// Errors: unsupported (no such sockets here), resource_exhausted.
[[nodiscard]] Result<UniqueFd> listen_at(const Address& address);

/// Never waits. Errors: again (too many wait there), not_found (nobody listens: the process is gone), io_error.
[[nodiscard]] Result<UniqueFd> connect_to(const Address& address);

/// The next connection, or none.
[[nodiscard]] UniqueFd accept_from(int listener) noexcept;

/// Sends everything or fails; descriptors go with the first byte. Never waits: what is sent here is small, and a peer
/// that leaves a socket's buffer full does not read.
[[nodiscard]] bool send_all(int socket, std::span<const std::byte> bytes, std::span<const int> fds = {}) noexcept;

template <class T>
[[nodiscard]] bool send_value(int socket, const T& value, std::span<const int> fds = {}) noexcept {
  return send_all(socket, std::as_bytes(std::span(&value, 1)), fds);
}

/// As this process's pid namespace knows it; 0 = not visible from here.
[[nodiscard]] pid_t peer_pid(int socket) noexcept;

/// A descriptor that becomes readable when the peer's process ends; none where that is not to be had.
[[nodiscard]] UniqueFd watch_process(int socket) noexcept;

/// Reads values of known size from a non-blocking socket, never past the end of one.
class ExactReader {
 public:
  enum class Got : std::uint8_t { nothing, all, ended };

  template <class T>
  void expect(T& value, std::size_t max_fds = 0) noexcept {
    into_ = std::as_writable_bytes(std::span(&value, 1));
    max_fds_ = max_fds;
    got_ = 0;
    fds_.clear();
  }

  /// `all` once the expected value is complete. `ended`: closed, or an error.
  [[nodiscard]] Got read(int socket) noexcept;

  /// The descriptors that came with the value.
  [[nodiscard]] std::vector<UniqueFd>& fds() noexcept { return fds_; }

 private:
  std::span<std::byte> into_{};
  std::size_t got_ = 0;
  std::size_t max_fds_ = 0;
  std::vector<UniqueFd> fds_;
};

}  // namespace fabric::shm
}  // namespace dtr::inline v0
