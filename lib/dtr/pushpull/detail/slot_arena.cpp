#include "dtr/pushpull/detail/slot_arena.hpp"

#include <algorithm>
#include <chrono>

#include "dtr/base/log.hpp"

namespace dtr::inline v0 {
namespace pushpull {

namespace {

constexpr std::size_t kFirstChunk = 64 << 10;
constexpr std::size_t kLargestStep = 32 << 20;
constexpr auto kUnregisterBound = std::chrono::seconds(1);

}  // namespace

SlotArena::~SlotArena() {
  if (chunks_.empty()) return;
  const EndWait wait(*runtime_, kUnregisterBound);  // for all together
  for (Chunk& chunk : chunks_) {
    const auto gone = fabric_->unregister_memory(*chunk.region, wait.deadline());
    if (!gone && gone.error().code != Errc::forked)
      DTR_LOG_WARN("push_pull: receive slots: ", gone.error().to_string());
  }
}

Result<SlotArena::Piece> SlotArena::allocate(std::size_t bytes) {
  for (Chunk& chunk : chunks_) {
    if (const auto offset = chunk.blocks.allocate(bytes)) return Piece{chunk.region, *offset};
  }
  // Chunks double, so that few keys cost little and many keys few regions.
  const std::size_t wanted = std::max({kFirstChunk, BuddyAllocator::block_size(bytes), std::min(total_, kLargestStep)});
  auto region = fabric_->allocate_segment(wanted, {.access = Access::read_write});
  if (!region) return fail(std::move(region.error()));
  total_ += wanted;
  Chunk& chunk = chunks_.emplace_back(Chunk{*region, BuddyAllocator(wanted)});
  return Piece{chunk.region, chunk.blocks.allocate(bytes).value()};
}

void SlotArena::release(const Piece& piece, std::size_t bytes) {
  const auto chunk =
      std::find_if(chunks_.begin(), chunks_.end(), [&](const Chunk& one) { return one.region == piece.region; });
  if (chunk != chunks_.end()) chunk->blocks.release(piece.offset, bytes);
}

}  // namespace pushpull
}  // namespace dtr::inline v0
