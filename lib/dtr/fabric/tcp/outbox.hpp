// What is on its way into a socket: small things copied together, large ones by reference.
#pragma once

#include <array>
#include <cstddef>
#include <memory>

#include <sys/uio.h>

namespace dtr::inline v0 {
namespace fabric::tcp {

enum class Flushed { drained, blocked, failed };

/// Filled while empty, then written until empty: a few large system calls instead of many small ones.
class Outbox {
 public:
  static constexpr std::size_t kInlineBytes = 2048;  ///< up to here a copy is cheaper than a piece of its own
  static constexpr std::size_t kMaxPieces = 256;

  Outbox();

  [[nodiscard]] bool empty() const noexcept { return first_ == count_; }

  /// True if a header with an inline payload, or a header and a reference, still fits.
  [[nodiscard]] bool has_room() const noexcept {
    return staged_ + 128 + kInlineBytes <= kStagingBytes && count_ + 2 <= kMaxPieces && bytes_ < kEnoughBytes;
  }

  void copy(const void* data, std::size_t bytes) noexcept;

  /// The memory must stay until the outbox is empty.
  void refer(const std::byte* data, std::size_t bytes) noexcept;

  /// Writes at most about `budget` bytes and takes them off it; `blocked` also when the budget is spent.
  [[nodiscard]] Flushed flush(int fd, std::size_t& budget, int& error) noexcept;

  void clear() noexcept;

 private:
  static constexpr std::size_t kStagingBytes = 64 << 10;
  static constexpr std::size_t kEnoughBytes = 1 << 20;

  std::unique_ptr<std::byte[]> staging_;
  std::array<iovec, kMaxPieces> pieces_;  ///< left as it is, so that what is not used takes no memory
  std::size_t staged_ = 0;
  std::size_t first_ = 0;
  std::size_t count_ = 0;
  std::size_t bytes_ = 0;
};

}  // namespace fabric::tcp
}  // namespace dtr::inline v0
