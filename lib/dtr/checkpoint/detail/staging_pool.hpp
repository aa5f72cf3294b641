// Memory that a save copies the caller's tensors into. Its pages are there before they are needed: a copy into
// untouched pages runs at a tenth of the speed.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <span>

#include "dtr/base/deadline.hpp"
#include "dtr/base/error.hpp"

namespace dtr::inline v0 {
namespace checkpoint {

class StagingPool {
 public:
  /// A part of the pool on loan; goes back with the object. The pool outlives it.
  class Lease {
   public:
    Lease() noexcept = default;
    Lease(StagingPool& pool, std::span<std::byte> memory) noexcept : pool_(&pool), memory_(memory) {}
    ~Lease() { give_back(); }
    Lease(Lease&& other) noexcept;
    Lease& operator=(Lease&& other) noexcept;
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;

    [[nodiscard]] std::span<std::byte> span() const noexcept { return memory_; }
    void give_back() noexcept;

   private:
    StagingPool* pool_ = nullptr;
    std::span<std::byte> memory_{};
  };

  StagingPool() = default;
  ~StagingPool();
  StagingPool(const StagingPool&) = delete;
  StagingPool& operator=(const StagingPool&) = delete;

  /// Takes `capacity` bytes from the system now, for good; 0 = what the largest save needs, when it comes.
  [[nodiscard]] Result<void> reserve(std::uint64_t capacity);

  /// `bytes` at a page boundary. Errors: busy if too little came back by the deadline, resource_exhausted if `bytes`
  /// is more than the capacity or the system has no memory. Any thread.
  [[nodiscard]] Result<Lease> acquire(std::uint64_t bytes, Deadline deadline);

 private:
  [[nodiscard]] std::optional<std::uint64_t> find_room(std::uint64_t bytes) const;
  [[nodiscard]] Result<void> map(std::uint64_t bytes);
  void put_back(std::span<std::byte> memory) noexcept;

  std::mutex mutex_;
  std::condition_variable returned_;
  std::span<std::byte> memory_{};
  std::map<std::uint64_t, std::uint64_t> on_loan_;  ///< offset and bytes
  bool fixed_ = false;
};

}  // namespace checkpoint
}  // namespace dtr::inline v0
