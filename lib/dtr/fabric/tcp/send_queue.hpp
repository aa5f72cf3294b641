// The open requests of one channel, from post to reply: a ring in the order of posting. No sockets, no locks: the
// channel's mutex guards it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>

#include "dtr/fabric/endings.hpp"
#include "dtr/fabric/refusals.hpp"
#include "dtr/fabric/tcp/outbox.hpp"
#include "dtr/fabric/tcp/wire.hpp"
#include "dtr/fabric/traffic.hpp"
#include "dtr/fabric/work_request.hpp"

namespace dtr::inline v0 {
namespace fabric::tcp {

inline constexpr std::int64_t kNever = std::numeric_limits<std::int64_t>::max();

/// Positions: tail <= sent <= next <= head. [tail, sent) are wholly in the kernel's hands, [sent, next) are in the
/// outbox, [next, head) have not started. A request that ended early keeps its place until its reply comes, because
/// the target counts. Functions that end requests return false when `endings` is full; they then go on where they
/// stopped when called again.
class SendQueue {
 public:
  /// `depth` is a power of two; one less can be open.
  SendQueue(std::uint32_t depth, std::size_t message_bytes);

  /// Where it tells of requests that do not end well; both outlive the queue. Without them nobody is told.
  void report_to(Refusals& refusals, TrafficMeter& traffic, std::uint64_t max_message) noexcept {
    refusals_ = &refusals;
    traffic_ = &traffic;
    max_message_ = max_message;
  }

  /// Takes a request that check_request found good. False = no room now.
  [[nodiscard]] bool push(const WorkRequest& request, std::int64_t deadline_ns) noexcept;

  /// The last request of all; there is always room for it.
  void push_goodbye() noexcept;

  [[nodiscard]] bool empty() const noexcept { return tail_ == head_; }
  [[nodiscard]] std::uint64_t size() const noexcept { return head_ - tail_; }
  [[nodiscard]] bool has_unsent() const noexcept { return next_ != head_; }
  [[nodiscard]] bool has_unanswered() const noexcept { return tail_ != next_; }
  [[nodiscard]] bool goodbye_answered() const noexcept { return goodbye_answered_; }

  /// Packs what may start into the empty outbox. False = nothing may.
  [[nodiscard]] bool fill(Outbox& outbox) noexcept;

  /// The outbox is empty: no memory of these requests is read any more.
  void flushed() noexcept;

  // Replies. `nonsense`: no honest target answers so.
  enum class Answer { done, full, nonsense };
  [[nodiscard]] Answer acknowledge(std::uint64_t sequence, Endings& endings) noexcept;
  [[nodiscard]] Answer refuse(std::uint64_t sequence, Errc code, Endings& endings) noexcept;
  [[nodiscard]] Answer result(std::uint64_t sequence, std::uint64_t old_value, Endings& endings) noexcept;

  /// An answer to a get of `length` bytes begins: it becomes the one being received.
  [[nodiscard]] Answer begin_data(std::uint64_t sequence, std::uint64_t length, Endings& endings) noexcept;

  /// Where the data being received goes: the start of the local range, or nullptr if the get has ended.
  [[nodiscard]] std::byte* data_target() const noexcept;

  /// While `writing`, somebody outside the lock writes to the local range of the get being received.
  void set_writing(bool writing) noexcept;

  /// All data have come. Needs endings.has_room().
  void finish_data(Endings& endings) noexcept;

  /// Ends what is past its deadline.
  [[nodiscard]] bool expire(std::int64_t now_ns, Endings& endings) noexcept;
  /// A bound below which no deadline lies, kNever if nothing is open.
  [[nodiscard]] std::int64_t earliest() const noexcept { return earliest_; }

  /// Ends what is open of this completion: how many, by kind of end.
  [[nodiscard]] std::uint32_t cancel(const Completion& completion, Endings& endings) noexcept;

  /// Requests that have ended while their memory was still in use.
  [[nodiscard]] std::uint32_t lingering() const noexcept { return lingering_; }

  /// The connection is closed and nobody receives.
  void disconnected() noexcept;
  /// Open atomics end with cancelled: nobody knows whether the target executed them.
  [[nodiscard]] bool end_atomics(Endings& endings) noexcept;
  /// The target said, before its welcome, that it had refused this one.
  void note_refusal(std::uint64_t sequence, Errc code) noexcept;
  /// A new connection stands and the target has worked off `processed` requests in all. What is open beyond that,
  /// and gets whose answer is missing, start anew. The first time it only says where counting starts.
  [[nodiscard]] Answer resume(std::uint64_t processed, Endings& endings) noexcept;

  /// Ends everything; the connection is closed. `target_gone`: nothing can land there any more.
  [[nodiscard]] bool fail_all(Errc code, bool target_gone, Endings& endings) noexcept;

 private:
  // Flags of a slot.
  static constexpr std::uint8_t kOpen = 1;       ///< its completion has not been told
  static constexpr std::uint8_t kHolds = 2;      ///< counted in the local region's uses
  static constexpr std::uint8_t kLingering = 4;  ///< ended, memory still in use
  static constexpr std::uint8_t kGoodbye = 8;
  static constexpr std::uint8_t kReturns = 16;  ///< went out as a get or an atomic and is not answered
  struct Slot {
    WorkRequest request{};
    std::int64_t deadline_ns = kNever;
    std::uint8_t flags = 0;
    Errc refusal = Errc::ok;
  };
  static constexpr std::uint64_t kNobody = ~std::uint64_t{0};

  [[nodiscard]] Slot& at(std::uint64_t position) noexcept { return slots_[(position - first_) & mask_]; }
  [[nodiscard]] const Slot& at(std::uint64_t position) const noexcept { return slots_[(position - first_) & mask_]; }
  /// The next slot, written anew.
  Slot& append(const WorkRequest& request, std::int64_t deadline_ns, std::uint8_t flags) noexcept;
  [[nodiscard]] bool locate(std::uint64_t sequence, std::uint64_t& position) const noexcept;
  [[nodiscard]] RequestHeader header_of(const Slot& slot) const noexcept;
  [[nodiscard]] bool copy_message(Slot& slot) noexcept;
  [[nodiscard]] Answer settle_before(std::uint64_t position, Endings& endings) noexcept;
  [[nodiscard]] bool in_use(std::uint64_t position) const noexcept;
  Status end_early(std::uint64_t position, Errc code) noexcept;
  void finish_oldest(Status status, Endings& endings) noexcept;
  void release(Slot& slot) noexcept;
  void free_message(const Slot& slot) noexcept;
  void drop_ended() noexcept;

  [[nodiscard]] Status refused(const Slot& slot, Errc code) const noexcept {
    const Status status{.code = code};
    return refusals_ == nullptr || (slot.flags & kOpen) == 0 ? status
                                                             : refusals_->remember(slot.request, status, max_message_);
  }

  void count_failure(Errc code) const noexcept {
    if (traffic_ != nullptr) traffic_->count_failure(code);
  }

  Refusals* refusals_ = nullptr;
  TrafficMeter* traffic_ = nullptr;
  std::uint64_t max_message_ = 0;
  std::unique_ptr<std::byte[]> memory_;  ///< of the slots: untouched until they are used, which takes no memory
  Slot* slots_;                          ///< one of them is kept free for the goodbye
  std::uint64_t mask_;
  std::uint64_t first_ = 0;  ///< position of slots_[0]: an empty queue starts there again, where the memory is warm
  std::uint32_t depth_;
  std::uint64_t tail_ = 0, sent_ = 0, next_ = 0, head_ = 0;
  std::uint64_t sequence_offset_ = 0;  ///< wire sequence = position + this
  std::uint64_t receiving_ = kNobody;
  std::uint32_t returning_ = 0;  ///< started gets and atomics that are not answered
  std::uint32_t lingering_ = 0;
  std::int64_t earliest_ = kNever;
  bool writing_ = false;
  bool resumed_ = false;
  bool goodbye_answered_ = false;

  std::size_t message_bytes_;
  std::unique_ptr<std::byte[]> messages_;  ///< made with the first message
  std::uint64_t messages_tail_ = 0, messages_head_ = 0;
  std::uint32_t messages_open_ = 0;
};

}  // namespace fabric::tcp
}  // namespace dtr::inline v0
