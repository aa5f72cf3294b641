// The caller's tensors as regions of the fabric: registered when first used, kept, given back at the end.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <span>

#include "dtr/base/deadline.hpp"
#include "dtr/fabric/fabric.hpp"

namespace dtr::inline v0 {
namespace pushpull {

/// One thread at a time; hold and release: any thread.
class UserMemory {
 public:
  struct Registration {
    Region* region = nullptr;
    std::atomic<std::uint32_t> users{0};  ///< pieces of open rounds
  };

  /// A tensor inside a region. `owner` is null for memory that somebody else registered.
  struct Place {
    Region* region = nullptr;
    std::uint64_t offset = 0;
    Registration* owner = nullptr;

    void hold() const noexcept {
      if (owner != nullptr) owner->users.fetch_add(1, std::memory_order_relaxed);
    }
    void release() const noexcept {
      if (owner != nullptr) owner->users.fetch_sub(1, std::memory_order_release);
    }
  };

  explicit UserMemory(fabric::Fabric& fabric) noexcept : fabric_(fabric) {}
  ~UserMemory();
  UserMemory(const UserMemory&) = delete;
  UserMemory& operator=(const UserMemory&) = delete;

  /// Errors: overlap and busy (a part is registered or in use otherwise), permission_denied (registered without
  /// the access needed), resource_exhausted.
  [[nodiscard]] Result<Place> locate(std::span<const std::byte> memory, Access access);

  /// Ends the registrations that touch this memory. Errors: busy (in use by an open round).
  [[nodiscard]] Result<void> forget(std::span<const std::byte> memory, Deadline deadline);

 private:
  using ByAddress = std::map<const std::byte*, std::unique_ptr<Registration>>;

  /// The first registration that reaches beyond the start of the memory.
  [[nodiscard]] ByAddress::iterator first_touching(std::span<const std::byte> memory);

  fabric::Fabric& fabric_;
  ByAddress registrations_;
};

}  // namespace pushpull
}  // namespace dtr::inline v0
