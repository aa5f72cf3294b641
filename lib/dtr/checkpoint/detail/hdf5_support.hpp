// The few things every use of HDF5 needs: handles that close themselves, silence, and its errors in words.
#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "dtr/base/error.hpp"
#include "dtr/checkpoint/tensor.hpp"

namespace dtr::inline v0 {
namespace checkpoint {

/// Owns an HDF5 identifier (hid_t, which is an int64_t in every version we build with).
class Hid {
 public:
  using Closer = int (*)(std::int64_t);

  Hid() noexcept = default;
  Hid(std::int64_t id, Closer closer) noexcept : id_(id), closer_(closer) {}
  ~Hid() { close(); }
  Hid(Hid&& other) noexcept : id_(std::exchange(other.id_, -1)), closer_(other.closer_) {}
  Hid& operator=(Hid&& other) noexcept {
    if (this != &other) {
      close();
      id_ = std::exchange(other.id_, -1);
      closer_ = other.closer_;
    }
    return *this;
  }
  Hid(const Hid&) = delete;
  Hid& operator=(const Hid&) = delete;

  [[nodiscard]] std::int64_t get() const noexcept { return id_; }
  [[nodiscard]] explicit operator bool() const noexcept { return id_ >= 0; }

  /// False if HDF5 could not close it. Once is all there is.
  bool close() noexcept { return id_ < 0 || closer_(std::exchange(id_, -1)) >= 0; }

 private:
  std::int64_t id_ = -1;
  Closer closer_ = nullptr;
};

/// No error text on stderr from this thread while the object lives.
class QuietHdf5 {
 public:
  QuietHdf5() noexcept;
  ~QuietHdf5();
  QuietHdf5(const QuietHdf5&) = delete;
  QuietHdf5& operator=(const QuietHdf5&) = delete;

 private:
  int (*function_)(std::int64_t, void*) = nullptr;
  void* data_ = nullptr;
};

/// What HDF5 says about the last call that failed on this thread, as Errc::internal (or resource_exhausted).
[[nodiscard]] Error hdf5_error(const std::string& what);

/// A new handle to the on-disk type.
[[nodiscard]] Hid hdf5_type(DType dtype);

/// Links are UTF-8 and make the groups on their way; datasets keep no times, so that equal input gives equal bytes.
[[nodiscard]] Hid link_creation();
[[nodiscard]] Hid dataset_creation();

}  // namespace checkpoint
}  // namespace dtr::inline v0
