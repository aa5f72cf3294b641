// How a server posts its small messages.
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <string_view>

#include "dtr/pushpull/detail/server_core.hpp"

namespace dtr::inline v0 {
namespace pushpull {

/// What is posted ends by itself or with the peer.
[[nodiscard]] inline Deadline never() noexcept { return Deadline(std::chrono::hours(24 * 365)); }

/// Without the lock. Fills in the worker's epoch if the message names none; words that do not fit are cut.
template <class T>
void ServerCore::tell(int worker, const T& message, std::string_view words) noexcept {
  T stamped = message;
  if (stamped.head.epoch == 0) {
    const std::lock_guard lock(mutex_);
    stamped.head.epoch = workers_[static_cast<std::size_t>(worker)].epoch;
  }
  std::array<std::byte, kSmallestMessage> bytes;
  static_assert(sizeof(T) < kSmallestMessage);
  std::memcpy(bytes.data(), &stamped, sizeof stamped);
  words = words.substr(0, bytes.size() - sizeof stamped);
  std::copy(words.begin(), words.end(),
            reinterpret_cast<char*>(bytes.data() + sizeof stamped));  // may be none, and null
  const auto request =
      fabric::WorkRequest::send(worker_port_, std::span(bytes).first(sizeof stamped + words.size()), nullptr);
  fabric_.submit(static_cast<fabric::PeerId>(rank_of(worker)), {&request, 1}, never());
}

}  // namespace pushpull
}  // namespace dtr::inline v0
