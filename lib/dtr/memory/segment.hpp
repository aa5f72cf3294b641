// Shared memory that peers on the same host can map: an anonymous file, populated and sealed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "dtr/base/error.hpp"
#include "dtr/base/fd.hpp"

namespace dtr::inline v0 {

/// One memfd mapping. The descriptor is what a peer gets; the file cannot shrink, so a mapping never faults.
class Segment {
 public:
  /// Creates and maps `bytes` (rounded up to pages), with every page present.
  /// Errors: resource_exhausted (memory, descriptors), io_error.
  [[nodiscard]] static Result<std::shared_ptr<Segment>> create(std::uint64_t id, std::size_t bytes);

  /// Maps a descriptor that a peer passed, and closes it. Refuses one that could shrink under the mapping.
  [[nodiscard]] static Result<std::shared_ptr<Segment>> map(std::uint64_t id, UniqueFd fd);

  ~Segment();
  Segment(const Segment&) = delete;
  Segment& operator=(const Segment&) = delete;

  [[nodiscard]] std::uint64_t id() const noexcept { return id_; }
  /// For passing on; -1 once closed.
  [[nodiscard]] int fd() const noexcept { return fd_.get(); }
  /// The mapping stays; nobody new can map it.
  void close_fd() noexcept { fd_.reset(); }
  [[nodiscard]] std::byte* data() const noexcept { return data_; }
  [[nodiscard]] std::size_t length() const noexcept { return length_; }
  [[nodiscard]] bool contains(const std::byte* address, std::size_t bytes) const noexcept {
    return address >= data_ && bytes <= length_ && static_cast<std::size_t>(address - data_) <= length_ - bytes;
  }

 private:
  Segment(std::uint64_t id, UniqueFd fd, std::byte* data, std::size_t length) noexcept;

  std::uint64_t id_;
  UniqueFd fd_;
  std::byte* data_;
  std::size_t length_;
};

}  // namespace dtr::inline v0
