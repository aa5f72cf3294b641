// The caller's tensors as regions of the fabric: registered when first used, kept, given back at the end.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "dtr/base/deadline.hpp"
#include "dtr/fabric/fabric.hpp"
#include "dtr/runtime/runtime.hpp"

namespace dtr::inline v0 {
namespace pushpull {

/// One thread at a time; hold and release: any thread.
class UserMemory {
 public:
  struct Registration {
    Region* region = nullptr;
    std::atomic<std::uint32_t> users{0};  ///< pieces of open rounds
    bool revoked = false;                 ///< its end has begun
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

  /// `gone` is told the key of each registration that ends before this object does.
  explicit UserMemory(Runtime& runtime, std::function<void(const RemoteKey&)> gone = {})
      : runtime_(runtime), fabric_(runtime.fabric()), gone_(std::move(gone)) {}
  ~UserMemory();
  UserMemory(const UserMemory&) = delete;
  UserMemory& operator=(const UserMemory&) = delete;

  /// Errors: overlap and busy (a part is registered or in use otherwise), permission_denied (registered without
  /// the access needed), resource_exhausted.
  [[nodiscard]] Result<Place> locate(std::span<const std::byte> memory, Access access);

  /// Ends a registration although open rounds use it: when this returns ok, no peer touches the memory any more.
  /// Errors: busy (somebody still may, at the deadline).
  [[nodiscard]] Result<void> take_back(Registration& registration, Deadline deadline);

  /// Ends the registrations that touch this memory. Errors: busy (in use by an open round).
  [[nodiscard]] Result<void> forget(std::span<const std::byte> memory, Deadline deadline);

 private:
  using ByAddress = std::map<const std::byte*, std::unique_ptr<Registration>>;

  /// The first registration that reaches beyond the start of the memory.
  [[nodiscard]] ByAddress::iterator first_touching(std::span<const std::byte> memory);

  Runtime& runtime_;
  fabric::Fabric& fabric_;
  std::function<void(const RemoteKey&)> gone_;
  ByAddress registrations_;
  std::vector<std::unique_ptr<Registration>> taken_back_;  ///< ended, but rounds still count themselves as users
};

}  // namespace pushpull
}  // namespace dtr::inline v0
