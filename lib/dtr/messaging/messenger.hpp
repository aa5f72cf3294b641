// Tagged messages between ranks, from the sender's buffer into the receiver's own: what MPI_Send and MPI_Recv do, with
// deadlines, cancelling and peers that may die.
//
//   dtr::Messenger messenger(rt);
//   auto sent = messenger.send(1, 7, std::as_bytes(std::span(numbers))).value();
//   auto came = messenger.recv(dtr::kAnyRank, 7, std::as_writable_bytes(std::span(buffer))).value();
//   auto message = messenger.wait(came).value();   // message.source, message.tag, message.bytes
//   messenger.wait(sent).value();
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "dtr/base/deadline.hpp"
#include "dtr/base/error.hpp"
#include "dtr/messaging/thresholds.hpp"
#include "dtr/runtime/runtime.hpp"

namespace dtr::inline v0 {

/// For recv: from whoever sends first.
inline constexpr int kAnyRank = -1;

/// For recv: all bits of the tag count; 0 = any tag.
inline constexpr std::uint64_t kWholeTag = ~std::uint64_t{0};

/// What a message was, at either end.
struct Message {
  int source = 0;         ///< the rank that sent it
  std::uint64_t tag = 0;  ///< the sender's whole tag, whatever the receiver's mask
  std::size_t bytes = 0;
};

/// One send or recv under way. Plain numbers: copy it freely. It is over once wait() has told its outcome; from then on
/// it is stale, never somebody else's.
struct MessageHandle {
  std::uint32_t slot = 0;
  std::uint32_t generation = 0;  ///< 0 = no operation

  friend bool operator==(const MessageHandle&, const MessageHandle&) = default;
};

struct MessengerOptions {
  /// Messengers of one group talk to each other: 0 to 63, at most one of a group in a Runtime at a time. Before a rank
  /// makes the next one, all have ended the last: put a barrier between.
  int group = 0;
  /// Which way a message of which size goes; unset = messages.thresholds of the configuration, else built in.
  std::optional<Thresholds> thresholds{};
};

/// Any thread may call; calls that wait make progress. Make it before others send to it (what comes earlier is kept, up
/// to fabric.hold_bytes), and end it before the Runtime.
///
/// - Each operation ends exactly once: well, or with an Error at its deadline at the latest. Without a deadline of its
///   own it has timeout.operation_ms, give or take 10 ms. Every handle is given to wait() once; the Messenger's end
///   ends what is left.
/// - Messages of one sender whose tags both fit a recv come in the order of their sends. Recvs that fit a message get
///   it in the order of their calls.
/// - A send has ended well when its buffer may be reused: a small message is on its way then, a larger one has been
///   copied out for a recv that fits it.
/// - A message longer than the buffer: the recv ends with `truncated`, naming both sizes; the buffer holds nothing of
///   use, the message is gone, and its send ends well: the receiver is who can do something about it.
/// - An operation that has ended touches its buffer no more: it is quiesced on return of wait(). A receiver in the same
///   host may still be reading the buffer of a send that was given up, and drops what it reads; the buffer may be
///   written or freed all the same.
/// - Dead peer: `peer_failed`, one that has finalized: `peer_left`. What it sent before as small messages can still be
///   received. A recv from kAnyRank waits on for others.
/// - Small messages that nobody has asked for yet are kept, up to 1 MiB from each sender; what is more, and what is
///   larger, stays with the sender until somebody asks. So a send may wait for its recv, always.
/// - A recv that is cancelled, or comes to its deadline, while its message is coming in loses that message: its send
///   then ends with `cancelled`, or well if all was under way. The other way round the recv ends with `cancelled`.
class Messenger {
 public:
  /// Throws Exception: already_exists (the group is taken), out_of_range (group), config_error (fabric.eager_bytes
  /// below 256, a file of thresholds that cannot be read).
  explicit Messenger(Runtime& runtime, MessengerOptions options = {});

  /// Ends what is open with `closed`, and waits a moment for the peers to know it.
  ~Messenger();
  Messenger(const Messenger&) = delete;
  Messenger& operator=(const Messenger&) = delete;

  /// Sends `data`, which must stay as it is until wait(). Oneself is a rank like others.
  /// Errors at once: not_found (no such rank), invalid_argument (null memory), peer_failed, peer_left, closed, forked.
  /// Later, by wait(): timed_out, cancelled, peer_failed, peer_left, closed (also: the peer's Messenger has ended).
  [[nodiscard]] Result<MessageHandle> send(int rank, std::uint64_t tag, std::span<const std::byte> data,
                                           Deadline deadline);
  [[nodiscard]] Result<MessageHandle> send(int rank, std::uint64_t tag, std::span<const std::byte> data);

  /// Receives the next message from `rank` (or kAnyRank) whose tag equals `tag` in the bits of `mask`.
  /// Errors: as send; by wait() also truncated.
  [[nodiscard]] Result<MessageHandle> recv(int rank, std::uint64_t tag, std::span<std::byte> buffer, Deadline deadline,
                                           std::uint64_t mask = kWholeTag);
  [[nodiscard]] Result<MessageHandle> recv(int rank, std::uint64_t tag, std::span<std::byte> buffer);

  /// Has it ended? Makes no progress; true for a stale handle. No lock.
  [[nodiscard]] bool done(MessageHandle handle) const noexcept;

  /// Makes progress until it has ended, at its deadline at the latest; tells how, and the handle is stale.
  /// Errors: those of send and recv, stale_handle; would_deadlock (inside a callback; the handle stays good).
  [[nodiscard]] Result<Message> wait(MessageHandle handle);

  /// Ends it with `cancelled`; wait() then says so, and frees it. False: it had ended before, or is stale.
  bool cancel(MessageHandle handle) noexcept;

  /// Which way messages go to a rank, and by whose word.
  [[nodiscard]] const Thresholds& thresholds() const noexcept;

 private:
  class Core;
  std::unique_ptr<Core> core_;
};

}  // namespace dtr::inline v0
