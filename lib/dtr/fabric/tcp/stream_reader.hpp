// Reads a stream of headers and payloads: headers through a read-ahead buffer, payloads straight to their place.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>

#include <sys/uio.h>

namespace dtr::inline v0 {
namespace fabric::tcp {

/// Knows nothing of sockets: prepare() says where the next bytes go, accept() that they came.
class StreamReader {
 public:
  static constexpr std::size_t kBufferBytes = 64 << 10;

  StreamReader() : buffer_(new std::byte[kBufferBytes]) {}

  /// Number of pieces filled in, at least one. Nothing else may be called before accept or forget.
  [[nodiscard]] std::size_t prepare(iovec (&pieces)[2]) noexcept {
    if (remaining_ == 0) {
      if (begin_ == end_) {
        begin_ = end_ = 0;
      } else if (begin_ > kBufferBytes / 4) {
        std::memmove(buffer_.get(), buffer_.get() + begin_, end_ - begin_);
        end_ -= begin_;
        begin_ = 0;
      }
      // After a large payload a large one is likely: a long read would only mean one more copy of its first part.
      const std::size_t room = kBufferBytes - end_;
      pieces[0] = {buffer_.get() + end_, large_ ? std::min(room, kShortAheadBytes) : room};
      return 1;
    }
    // All that was buffered has gone into the payload.
    begin_ = end_ = 0;
    if (target_ == nullptr) {
      pieces[0] = {buffer_.get(), static_cast<std::size_t>(std::min<std::uint64_t>(remaining_, kBufferBytes))};
      direct_ = pieces[0].iov_len;
      return 1;
    }
    direct_ = static_cast<std::size_t>(std::min<std::uint64_t>(remaining_, kSliceBytes));
    pieces[0] = {target_, direct_};
    if (direct_ < remaining_) return 1;
    // The next headers come with the end of this payload.
    pieces[1] = {buffer_.get(), large_ ? kShortAheadBytes : kBufferBytes};
    return 2;
  }

  void accept(std::size_t bytes) noexcept {
    if (remaining_ == 0) {
      end_ += bytes;
      return;
    }
    const std::size_t direct = std::min(bytes, direct_);
    remaining_ -= direct;
    if (target_ != nullptr) {
      target_ += direct;
      end_ = bytes - direct;
    }
  }

  /// Bytes read but not looked at; none while a payload is under way.
  [[nodiscard]] std::span<const std::byte> buffered() const noexcept {
    return {buffer_.get() + begin_, remaining_ == 0 ? end_ - begin_ : 0};
  }
  void consume(std::size_t bytes) noexcept { begin_ += bytes; }

  /// The next `length` bytes of the stream go to `target`; nullptr = nowhere.
  void expect_payload(std::byte* target, std::uint64_t length) noexcept {
    const auto have = static_cast<std::size_t>(std::min<std::uint64_t>(length, end_ - begin_));
    if (target != nullptr && have > 0) {
      std::memcpy(target, buffer_.get() + begin_, have);
      target += have;
    }
    begin_ += have;
    remaining_ = length - have;
    target_ = target;
    large_ = length >= kBufferBytes;
  }

  [[nodiscard]] bool in_payload() const noexcept { return remaining_ > 0; }

  /// The rest of the payload goes nowhere.
  void divert() noexcept { target_ = nullptr; }

  /// A new connection.
  void forget() noexcept {
    begin_ = end_ = 0;
    remaining_ = 0;
    target_ = nullptr;
  }

 private:
  static constexpr std::size_t kSliceBytes = 1 << 20;
  static constexpr std::size_t kShortAheadBytes = 2048;

  std::unique_ptr<std::byte[]> buffer_;
  std::size_t begin_ = 0;
  std::size_t end_ = 0;
  std::byte* target_ = nullptr;
  std::uint64_t remaining_ = 0;
  std::size_t direct_ = 0;
  bool large_ = false;
};

}  // namespace fabric::tcp
}  // namespace dtr::inline v0
