// Memory that one worker may write into: its own regions, so that they can be taken from it alone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "dtr/fabric/fabric.hpp"
#include "dtr/memory/buddy.hpp"
#include "dtr/runtime/runtime.hpp"

namespace dtr::inline v0 {
namespace pushpull {

/// One thread at a time.
class SlotArena {
 public:
  struct Piece {
    Region* region = nullptr;
    std::uint64_t offset = 0;
  };

  explicit SlotArena(Runtime& runtime) noexcept : runtime_(&runtime), fabric_(&runtime.fabric()) {}
  /// Takes the memory back from the worker. What it may still be writing into stays quarantined in the fabric.
  ~SlotArena();
  SlotArena(SlotArena&&) noexcept = default;
  SlotArena& operator=(SlotArena&&) = delete;
  SlotArena(const SlotArena&) = delete;
  SlotArena& operator=(const SlotArena&) = delete;

  /// Errors: resource_exhausted.
  [[nodiscard]] Result<Piece> allocate(std::size_t bytes);
  void release(const Piece& piece, std::size_t bytes);

 private:
  struct Chunk {
    Region* region;
    BuddyAllocator blocks;
  };

  Runtime* runtime_;
  fabric::Fabric* fabric_;
  std::vector<Chunk> chunks_;
  std::size_t total_ = 0;
};

}  // namespace pushpull
}  // namespace dtr::inline v0
