#include "dtr/fabric/shm/foreign_memory.hpp"

#include <cerrno>

#include <sys/uio.h>

namespace dtr::inline v0 {
namespace fabric::shm {

namespace {

using Call = ssize_t (*)(pid_t, const iovec*, unsigned long, const iovec*, unsigned long, unsigned long);

ForeignCopy copy(Call call, pid_t pid, std::uint64_t address, std::byte* local, std::size_t bytes) noexcept {
  std::size_t done = 0;
  while (done < bytes) {
    const iovec here{local + done, bytes - done};
    // The peer's address space: nothing here can point there.
    const iovec there{reinterpret_cast<void*>(address + done), bytes - done};  // NOLINT(performance-no-int-to-ptr)
    const ssize_t moved = call(pid, &here, 1, &there, 1, 0);
    if (moved > 0) {
      done += static_cast<std::size_t>(moved);
      continue;
    }
    const int error = moved < 0 ? errno : EFAULT;
    switch (error) {
      case EINTR:
        continue;
      case ESRCH:
        return {Errc::peer_failed, error};
      case EPERM:
        return {Errc::permission_denied, error};
      case EFAULT:
        return {Errc::out_of_range, error};
      default:
        return {Errc::io_error, error};
    }
  }
  return {};
}

}  // namespace

ForeignCopy write_foreign(pid_t pid, std::uint64_t address, const std::byte* from, std::size_t bytes) noexcept {
  return copy(::process_vm_writev, pid, address, const_cast<std::byte*>(from), bytes);
}

ForeignCopy read_foreign(pid_t pid, std::uint64_t address, std::byte* to, std::size_t bytes) noexcept {
  return copy(::process_vm_readv, pid, address, to, bytes);
}

}  // namespace fabric::shm
}  // namespace dtr::inline v0
