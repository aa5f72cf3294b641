// Finds or makes the registration of memory that a user passes. Internal to pushpull/.
#pragma once

#include <chrono>
#include <mutex>
#include <span>
#include <vector>

#include "dtr/fabric/fabric.hpp"

namespace dtr::inline v0 {
namespace pushpull {

/// Registrations that it made itself are kept until forget() or the end. Any thread, not from callbacks.
class Registrar {
 public:
  Registrar(fabric::Fabric& fabric, std::chrono::milliseconds timeout) : fabric_(fabric), timeout_(timeout) {}
  ~Registrar();
  Registrar(const Registrar&) = delete;
  Registrar& operator=(const Registrar&) = delete;

  struct Place {
    Region* region = nullptr;
    std::uint64_t offset = 0;
  };

  /// Errors: overlap (with memory that somebody else registered), resource_exhausted, busy (an old registration of
  /// ours that overlaps is still in use).
  [[nodiscard]] Result<Place> locate(std::span<const std::byte> memory);

  /// Gives back our registrations that touch this memory. Errors: busy.
  [[nodiscard]] Result<void> forget(std::span<const std::byte> memory);

 private:
  fabric::Fabric& fabric_;
  std::chrono::milliseconds timeout_;
  std::mutex mutex_;
  std::vector<Region*> own_;
};

}  // namespace pushpull
}  // namespace dtr::inline v0
