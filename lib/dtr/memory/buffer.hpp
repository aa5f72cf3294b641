// Memory that a user asks libdtr for: registered, shareable, given back when the object goes.
#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <span>
#include <utility>

#include "dtr/memory/region.hpp"

namespace dtr::inline v0 {

class Buffer;

/// Where buffers come from and go back to. Any thread.
class BufferSource {
 public:
  virtual ~BufferSource() = default;
  virtual void release(const Buffer& buffer) noexcept = 0;
};

/// A piece of a registered region. Moves, does not copy; the source outlives the memory's use.
class Buffer {
 public:
  Buffer() = default;
  Buffer(std::shared_ptr<BufferSource> source, Region* region, std::uint64_t offset, std::size_t bytes) noexcept
      : source_(std::move(source)), region_(region), offset_(offset), bytes_(bytes) {}
  ~Buffer() { reset(); }
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    if (this != &other) {
      reset();
      swap(other);
    }
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  [[nodiscard]] explicit operator bool() const noexcept { return region_ != nullptr; }
  [[nodiscard]] std::byte* data() const noexcept { return region_ == nullptr ? nullptr : region_->data() + offset_; }
  [[nodiscard]] std::size_t size() const noexcept { return bytes_; }
  [[nodiscard]] std::span<std::byte> span() const noexcept { return {data(), bytes_}; }

  /// The whole buffer as values of T. Its alignment is 4 KiB.
  template <class T>
  [[nodiscard]] std::span<T> as() const noexcept {
    return {reinterpret_cast<T*>(data()), bytes_ / sizeof(T)};
  }

  /// For requests on the fabric.
  [[nodiscard]] Region* region() const noexcept { return region_; }
  [[nodiscard]] std::uint64_t offset() const noexcept { return offset_; }

  /// Gives it up without giving it back: somebody may still write into it, so it is nobody else's until its source
  /// ends.
  void abandon() noexcept {
    source_.reset();
    reset();
  }

  void reset() noexcept {
    if (source_ != nullptr) source_->release(*this);
    source_.reset();
    region_ = nullptr;
    offset_ = 0;
    bytes_ = 0;
  }

 private:
  void swap(Buffer& other) noexcept {
    std::swap(source_, other.source_);
    std::swap(region_, other.region_);
    std::swap(offset_, other.offset_);
    std::swap(bytes_, other.bytes_);
  }

  std::shared_ptr<BufferSource> source_;
  Region* region_ = nullptr;
  std::uint64_t offset_ = 0;
  std::size_t bytes_ = 0;
};

}  // namespace dtr::inline v0
