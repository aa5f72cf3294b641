#include "dtr/fabric/tcp/outbox.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "dtr/fabric/tcp/socket.hpp"

namespace dtr::inline v0 {
namespace fabric::tcp {

Outbox::Outbox() : staging_(new std::byte[kStagingBytes]) {}

void Outbox::copy(const void* data, std::size_t bytes) noexcept {
  if (bytes == 0) return;
  std::byte* at = staging_.get() + staged_;
  std::memcpy(at, data, bytes);
  staged_ += bytes;
  bytes_ += bytes;
  if (!empty()) {
    iovec& last = pieces_[count_ - 1];
    if (static_cast<std::byte*>(last.iov_base) + last.iov_len == at) {
      last.iov_len += bytes;
      return;
    }
  }
  pieces_[count_++] = {at, bytes};
}

void Outbox::refer(const std::byte* data, std::size_t bytes) noexcept {
  if (bytes == 0) return;
  // iovec has no const form; the kernel only reads these.
  pieces_[count_++] = {const_cast<std::byte*>(data), bytes};
  bytes_ += bytes;
}

Flushed Outbox::flush(int fd, std::size_t& budget, int& error) noexcept {
  while (!empty()) {
    if (budget == 0) return Flushed::blocked;
    const std::ptrdiff_t sent = send_from(fd, pieces_.data() + first_, count_ - first_);
    if (sent < 0) {
      if (sent == -EAGAIN) return Flushed::blocked;
      error = static_cast<int>(-sent);
      return Flushed::failed;
    }
    auto left = static_cast<std::size_t>(sent);
    budget -= std::min(budget, left);
    while (first_ < count_ && left >= pieces_[first_].iov_len) left -= pieces_[first_++].iov_len;
    if (first_ < count_) {
      iovec& piece = pieces_[first_];
      piece.iov_base = static_cast<std::byte*>(piece.iov_base) + left;
      piece.iov_len -= left;
    }
  }
  clear();
  return Flushed::drained;
}

void Outbox::clear() noexcept { staged_ = first_ = count_ = bytes_ = 0; }

}  // namespace fabric::tcp
}  // namespace dtr::inline v0
