#include "dtr/memory/segment.hpp"

#include <cerrno>
#include <fstream>
#include <optional>
#include <string>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

namespace dtr::inline v0 {

namespace {

constexpr const char* kOperation = "shared segment";

/// What the kernel could give without swapping or killing anybody; nothing if it does not say.
std::optional<std::uint64_t> available_bytes() {
  std::ifstream info("/proc/meminfo");
  std::string key;
  std::uint64_t kib = 0;
  std::string unit;
  while (info >> key >> kib >> unit) {
    if (key == "MemAvailable:") return kib * 1024;
  }
  return std::nullopt;
}

Result<std::byte*> map_populated(int fd, std::size_t length) {
  void* address = ::mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
  if (address == MAP_FAILED) {
    return fail(errno_error(errno, "mmap of " + std::to_string(length) + " bytes", kOperation));
  }
  return static_cast<std::byte*>(address);
}

}  // namespace

Result<std::shared_ptr<Segment>> Segment::create(std::uint64_t id, std::size_t bytes) {
  if (bytes == 0) return fail(Errc::invalid_argument, "length 0", kOperation);
  const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  const std::size_t length = (bytes + page - 1) / page * page;
  if (length < bytes) return fail(Errc::invalid_argument, "length overflows", kOperation);
  // The kernel takes the pages one by one and calls the OOM killer at the last: so ask before.
  if (const auto available = available_bytes(); available && length > *available) {
    return fail(
        Errc::resource_exhausted,
        std::to_string(length) + " bytes of shared memory; this machine has " + std::to_string(*available) + " left",
        kOperation);
  }
  UniqueFd fd(::memfd_create("dtr", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (fd.get() < 0) return fail(errno_error(errno, "memfd_create", kOperation));
  // fallocate takes the pages now: a full machine is an Error here and not SIGBUS in the middle of a copy.
  if (const int failure = ::posix_fallocate(fd.get(), 0, static_cast<off_t>(length)); failure != 0) {
    Error error = errno_error(failure, "no " + std::to_string(length) + " bytes of shared memory", kOperation);
    error.code = Errc::resource_exhausted;
    return fail(std::move(error));
  }
  if (::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
    return fail(errno_error(errno, "F_ADD_SEALS", kOperation));
  }
  auto data = map_populated(fd.get(), length);
  if (!data) return fail(std::move(data.error()));
  return std::shared_ptr<Segment>(new Segment(id, std::move(fd), *data, length));
}

Result<std::shared_ptr<Segment>> Segment::map(std::uint64_t id, UniqueFd fd) {
  const int seals = ::fcntl(fd.get(), F_GET_SEALS);
  if (seals < 0 || (seals & F_SEAL_SHRINK) == 0) {
    return fail(Errc::protocol_error, "the peer's segment is not sealed against shrinking", kOperation);
  }
  struct stat status {};
  if (::fstat(fd.get(), &status) != 0) return fail(errno_error(errno, "fstat", kOperation));
  if (status.st_size <= 0) return fail(Errc::protocol_error, "the peer's segment is empty", kOperation);
  const auto length = static_cast<std::size_t>(status.st_size);
  auto data = map_populated(fd.get(), length);
  if (!data) return fail(std::move(data.error()));
  return std::shared_ptr<Segment>(new Segment(id, UniqueFd(), *data, length));
}

Segment::Segment(std::uint64_t id, UniqueFd fd, std::byte* data, std::size_t length) noexcept
    : id_(id), fd_(std::move(fd)), data_(data), length_(length) {}

Segment::~Segment() { ::munmap(data_, length_); }

}  // namespace dtr::inline v0
