// The Runtime's buffers: a buddy allocator over shared segments that grow on demand. Internal to runtime/.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "dtr/fabric/fabric.hpp"
#include "dtr/memory/buddy.hpp"
#include "dtr/memory/buffer.hpp"
#include "dtr/runtime/runtime.hpp"

namespace dtr::inline v0 {

class Runtime::Pool final : public BufferSource, public std::enable_shared_from_this<Pool> {
 public:
  /// Each new segment has at least `segment_bytes`, all together at most `limit`.
  Pool(fabric::Fabric& fabric, std::size_t segment_bytes, std::size_t limit)
      : fabric_(&fabric), segment_bytes_(segment_bytes), limit_(limit) {}

  [[nodiscard]] Result<Buffer> allocate(std::size_t bytes);
  void release(const Buffer& buffer) noexcept override;

  /// The fabric is about to go: buffers given back later only vanish. Returns how many are still out.
  std::size_t detach() noexcept;

 private:
  struct Arena {
    Region* region;
    BuddyAllocator blocks;
  };

  std::mutex mutex_;
  fabric::Fabric* fabric_;
  std::size_t segment_bytes_;
  std::size_t limit_;
  std::size_t total_ = 0;
  std::size_t out_ = 0;
  std::vector<Arena> arenas_;
};

}  // namespace dtr::inline v0
