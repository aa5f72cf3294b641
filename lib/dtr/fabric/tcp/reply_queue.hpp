// What a target owes an initiator, in the order of the requests.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "dtr/fabric/tcp/outbox.hpp"
#include "dtr/fabric/tcp/wire.hpp"
#include "dtr/memory/region_table.hpp"

namespace dtr::inline v0 {
namespace fabric::tcp {

/// Fixed room; the reader of requests stops while it is full. Progress thread only.
class ReplyQueue {
 public:
  static constexpr std::size_t kReplies = 1024;

  /// `greetings` more than usual fit at the beginning; `processed` requests are answered already.
  ReplyQueue(std::size_t greetings, std::uint64_t processed);
  ~ReplyQueue();
  ReplyQueue(const ReplyQueue&) = delete;
  ReplyQueue& operator=(const ReplyQueue&) = delete;

  [[nodiscard]] bool full() const noexcept { return head_ - tail_ + 1 >= room_; }
  [[nodiscard]] bool empty() const noexcept { return head_ == tail_; }

  void greet(const ReplyHeader& header) noexcept { push(header, {}); }

  /// All requests below `processed` have been worked off; those without an answer of their own ended well.
  void acknowledge(std::uint64_t processed) noexcept;
  /// How many of them are not covered by a reply yet.
  [[nodiscard]] std::uint64_t owed(std::uint64_t processed) const noexcept { return processed - answered_; }
  void refuse(std::uint64_t sequence, Errc code) noexcept;
  void result(std::uint64_t sequence, std::uint64_t old_value) noexcept;
  /// The region is held until its bytes have left.
  void data(std::uint64_t sequence, std::uint64_t length, RegionTable::Use use) noexcept;

  /// Packs into the empty outbox. False = nothing to send.
  [[nodiscard]] bool fill(Outbox& outbox) noexcept;

  /// The outbox is empty: lets go of the regions that it referred to.
  void flushed() noexcept { leaving_.clear(); }

 private:
  struct Reply {
    ReplyHeader header{};
    RegionTable::Use use{};
  };
  void push(const ReplyHeader& header, RegionTable::Use use) noexcept;
  void pop() noexcept;

  const std::size_t room_;
  std::unique_ptr<std::byte[]> memory_;  ///< untouched where it is not used, which takes no memory
  Reply* ring_;                          ///< [tail, head) are there; an empty one starts at the front again
  std::size_t tail_ = 0;
  std::size_t head_ = 0;
  std::uint64_t answered_;  ///< requests below this are covered by replies in the ring or before
  std::vector<RegionTable::Use> leaving_;
};

}  // namespace fabric::tcp
}  // namespace dtr::inline v0
