// Copies from and to another process by system call, for memory that cannot be mapped.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include <sys/types.h>

#include "dtr/base/error.hpp"

namespace dtr::inline v0 {
namespace fabric::shm {

struct ForeignCopy {
  Errc code = Errc::ok;  ///< out_of_range (not mapped there), peer_failed (no such process), permission_denied
  int cause = 0;         ///< errno
};

[[nodiscard]] ForeignCopy write_foreign(pid_t pid, std::uint64_t address, const std::byte* from,
                                        std::size_t bytes) noexcept;
[[nodiscard]] ForeignCopy read_foreign(pid_t pid, std::uint64_t address, std::byte* to, std::size_t bytes) noexcept;

}  // namespace fabric::shm
}  // namespace dtr::inline v0
