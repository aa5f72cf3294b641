// What a Messenger is made of. Internal to messaging/.
//
// One lock holds all of it. What comes from peers is handled on progress, with the turn; copies of pieces are made
// there too, without the lock: an operation that is being copied from or to is pinned, and whoever ends it waits for
// that.
#pragma once

#include <deque>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "dtr/base/fork_guard.hpp"
#include "dtr/fabric/spin_lock.hpp"
#include "dtr/messaging/detail/operations.hpp"
#include "dtr/messaging/detail/wire.hpp"
#include "dtr/messaging/messenger.hpp"

namespace dtr::inline v0 {

class Messenger::Core final : public fabric::PortHandler, private fabric::ProgressSource {
 public:
  Core(Runtime& runtime, MessengerOptions options);
  ~Core() override;

  // core.cpp: any thread; beginning and end: core_life.cpp
  [[nodiscard]] Result<MessageHandle> send(int rank, std::uint64_t tag, std::span<const std::byte> data,
                                           Deadline deadline);
  [[nodiscard]] Result<MessageHandle> recv(int rank, std::uint64_t tag, std::uint64_t mask, std::span<std::byte> buffer,
                                           Deadline deadline);
  [[nodiscard]] bool done(MessageHandle handle) const noexcept;
  [[nodiscard]] Result<Message> wait(MessageHandle handle);
  bool cancel(MessageHandle handle) noexcept;
  [[nodiscard]] const Thresholds& thresholds() const noexcept { return thresholds_; }
  [[nodiscard]] Deadline default_deadline() const noexcept { return Deadline::about(runtime_.operation_timeout()); }

  // core_receive.cpp, core_pieces.cpp: on progress
  void on_message(fabric::PeerId from, std::span<const std::byte> payload) noexcept override;
  void on_notify(fabric::PeerId from, std::uint32_t value) noexcept override;
  void on_peer_down(fabric::PeerId peer, const Error& error) noexcept override;

 private:
  /// Held for some ten nanoseconds mostly. A mutex is given back by an atomic read-modify-write, which waits until what
  /// was just written into a ring has reached the other core: that took two thirds of the time of a small message.
  using Lock = std::unique_lock<fabric::SpinLock>;
  using Operation = messaging::Operation;
  using Stage = messaging::Stage;

  struct Peer;

  /// A message that nobody has asked for yet.
  struct Unexpected {
    std::uint64_t arrival = 0;  ///< counts those of all peers
    std::uint64_t tag = 0;
    std::uint64_t bytes = 0;
    std::uint64_t offer = 0;  ///< the sender's operation; 0 = eager
    std::uint64_t cost = 0;   ///< eager: of the room that its sender has here
    std::uint64_t left = 0;   ///< the same, of a sender that has ended since
    std::vector<std::byte> payload{};
    std::unique_ptr<messaging::Source> source{};  ///< of an offer that may be read
  };

  /// A message that is read in its sender's memory.
  struct Reading {
    std::uint64_t operation = 0;
    messaging::Offer offer{};
    Peer* peer = nullptr;
    std::uint64_t moved = 0;
    const fabric::RemoteRegion* memory = nullptr;  ///< mapped here; null: read by `address`
    std::uint64_t offset = 0;
    std::uint64_t address = 0;
    const fabric::RemoteRegion* lease = nullptr;
    std::uint64_t lease_offset = 0;
  };

  /// A message that a peer has asked for, on its way into the peer's slots.
  struct Outgoing {
    std::uint64_t number = 0;
    std::uint64_t operation = 0;
    std::uint64_t bytes = 0;
    std::uint64_t moved = 0;
    std::uint32_t piece = 0;
  };

  /// A message that was asked for, on its way out of our slots.
  struct Incoming {
    std::uint64_t operation = 0;
    std::uint64_t bytes = 0;
    std::uint64_t moved = 0;
    std::uint32_t piece = 0;
  };

  /// The last of a peer's regions that was used for something: mostly it is the next one too.
  struct Known {
    RemoteKey key{};
    const fabric::RemoteRegion* region = nullptr;
  };

  /// The slots of a peer for what we send, as it has described them.
  struct TheirSlots {
    const fabric::RemoteRegion* region = nullptr;
    RemoteKey key{};
    std::uint64_t offset = 0;
    std::uint32_t count = 0;
    std::uint32_t bytes = 0;
    std::uint64_t filled = 0;  ///< pieces so far
    std::uint64_t freed = 0;   ///< that the peer has taken out
    Deadline::Clock::time_point since{};
    bool blocked = false;  ///< nothing goes now for want of something that no message tells of
    // Where puts read user memory later than at once, they read a copy.
    Buffer copies{};
    std::unique_ptr<fabric::Completion[]> puts{};  ///< one for each slot
    std::uint32_t put_count = 0;
  };

  /// Our slots for what a peer sends.
  struct OurSlots {
    Buffer memory{};
    std::vector<std::uint8_t> arrived{};  ///< by slot: 0, kPiece or kStopped
    std::uint64_t emptied = 0;            ///< pieces so far
    std::uint64_t told = 0;               ///< of these
    std::uint64_t takes = 0;
    std::deque<Incoming> schedule{};  ///< what fills them, in order
  };

  struct Peer {
    explicit Peer(fabric::PeerId number) : id(number) {}

    const fabric::PeerId id;
    const std::vector<ThresholdRow>* rows = nullptr;
    std::uint64_t largest_eager = 0;     ///< at present
    std::uint64_t eager_to_known = 0;    ///< once its Messenger has been heard of
    std::uint64_t eager_to_unknown = 0;  ///< before, for what is held until it is there is held with that of all ranks
    bool shares_memory = false;
    fabric::Channel* channel = nullptr;
    bool met = false;     ///< something was sent to it, or came from it
    bool parted = false;  ///< while this Messenger ends: it puts nothing towards us any more
    bool said_bye = false;

    // towards it
    std::uint32_t next_out = 0;
    std::uint64_t spent = 0;  ///< of its room for eager messages
    std::uint64_t freed = 0;
    std::uint32_t offers = 0;   ///< that it has not answered
    std::uint64_t offered = 0;  ///< ever
    std::uint64_t asked = 0;    ///< its takes: one for each offer at most
    messaging::OperationList waiting{};
    bool has_room = false;         ///< what waits may go on the next look
    std::deque<Outgoing> takes{};  ///< by number
    std::uint64_t next_take = 0;
    TheirSlots theirs{};

    // from it
    std::uint32_t next_in = 0;
    std::map<std::uint32_t, std::vector<std::byte>> early{};  ///< messages that have overtaken others
    std::list<Unexpected> unexpected{};
    std::uint64_t held = 0;  ///< cost of the eager ones
    std::uint64_t left = 0;  ///< of those of its former Messengers
    std::uint32_t offers_held = 0;
    std::uint64_t received = 0;  ///< cost of eager messages that somebody has
    std::uint64_t told = 0;      ///< of these
    messaging::OperationList posted{};
    OurSlots ours{};
    Known read{};
    Known leases{};
  };

  static constexpr std::uint8_t kPiece = 1;
  static constexpr std::uint8_t kStopped = 2;

  // core.cpp
  [[nodiscard]] bool is_sound(int rank, std::span<const std::byte> memory, bool any_allowed) const noexcept;
  [[nodiscard]] Error why_unsound(int rank, std::span<const std::byte> memory, const char* name) const;
  /// nullptr: there are too many, or this Messenger ends.
  [[nodiscard]] Operation* make(bool is_send, int rank, std::uint64_t tag, Deadline deadline);
  [[nodiscard]] Error why_not_made(int rank, const char* name) const;
  [[nodiscard]] Peer& peer(fabric::PeerId id) {
    const auto& known = peers_[id];
    return known != nullptr ? *known : make_peer(id);
  }
  [[nodiscard]] Peer& make_peer(fabric::PeerId id);
  [[nodiscard]] bool try_receive(Lock& lock, Operation& recv);
  [[nodiscard]] static bool noticed(const Operation& operation) noexcept {
    if (operation.ended.load(std::memory_order_acquire)) return true;
    if (!operation.completion.done()) return false;
    return operation.carried.load(std::memory_order_acquire) || !operation.completion.status().ok();
  }
  void settle(Operation& operation) noexcept {
    if (operation.stage == Stage::flying || operation.stage == Stage::offered) settle_carried(operation);
  }
  void settle_carried(Operation& operation) noexcept;
  [[nodiscard]] Error why_failed(const Operation& operation) const;
  /// Its outcome has been told.
  void put_away(Operation& operation) noexcept;
  void reuse_zombies() noexcept;

  // core_life.cpp
  void part() noexcept;

  // core_send.cpp: with the lock
  /// Eager, or as an offer; false: the peer has no room for either.
  [[nodiscard]] inline bool transmit(Peer& peer, Operation& send) noexcept;
  [[nodiscard]] bool offer(Peer& peer, Operation& send) noexcept;
  [[nodiscard]] fabric::Channel* make_channel(Peer& peer) noexcept;
  void transmit_waiting(Peer& peer) noexcept;
  /// Something does not stand before what waits any more: that goes on the next look, for the caller may be going
  /// through the operations, or have no turn.
  void make_room(Peer& peer) noexcept;
  void transmit_where_room() noexcept;
  [[nodiscard]] inline bool post_now(Peer& peer, std::span<const std::byte> packet) noexcept;
  void tell(Peer& peer, const void* message, std::size_t bytes, fabric::Completion* done = nullptr,
            bool fenced = false) noexcept;
  [[nodiscard]] bool tell_numbered(Peer& peer, const void* message, std::size_t bytes,
                                   fabric::Completion& done) noexcept;
  void tell_done(Peer& peer, std::uint64_t offer, Errc code) noexcept;
  void tell_credit(Peer& peer) noexcept;

  // core_receive.cpp: with the lock; false: malformed
  [[nodiscard]] bool handle(Lock& lock, Peer& peer, std::span<const std::byte> message);
  [[nodiscard]] bool handle_in_order(Lock& lock, Peer& peer, const messaging::Head& head,
                                     std::span<const std::byte> message);
  [[nodiscard]] bool handle_sequenced(Lock& lock, Peer& peer, messaging::Kind kind, std::span<const std::byte> message);
  [[nodiscard]] bool handle_early(Lock& lock, Peer& peer);
  [[nodiscard]] bool take_eager(Peer& peer, std::span<const std::byte> message);
  [[nodiscard]] bool take_offer(Lock& lock, Peer& peer, std::span<const std::byte> message);
  [[nodiscard]] bool take_withdrawal(Peer& peer, std::span<const std::byte> message);
  [[nodiscard]] bool take_take(Peer& peer, std::span<const std::byte> message);
  [[nodiscard]] bool take_done(Peer& peer, std::span<const std::byte> message);
  [[nodiscard]] bool take_credit(Peer& peer, std::span<const std::byte> message);
  [[nodiscard]] Operation* match(Peer& peer, std::uint64_t tag) noexcept;
  Unexpected& keep(Peer& peer, std::uint64_t tag, std::uint64_t bytes, std::span<const std::byte> payload);
  void drop(Peer& peer, std::list<Unexpected>::iterator message) noexcept;
  void deliver(Operation& recv, Peer& peer, std::uint64_t tag, std::span<const std::byte> payload,
               std::uint64_t cost) noexcept;
  /// Gets what was offered for this recv.
  void accept(Lock& lock, Peer& peer, Operation& recv, const messaging::Offer& offer, const messaging::Source* source);
  void ask_through_slots(Peer& peer, Operation& recv, const messaging::Offer& offer);
  void copy_from_self(Lock& lock, Operation& recv, std::uint64_t offer);

  // core_read.cpp: with the lock
  /// Lets the peer read what `send` offers; false: it goes through slots.
  [[nodiscard]] bool lend(Peer& peer, Operation& send, messaging::Source& source) noexcept;
  [[nodiscard]] bool open_leases();
  [[nodiscard]] std::atomic_ref<std::uint64_t> lease_word(std::uint32_t lease) const noexcept;
  void end_lease(Operation& send) noexcept;
  /// False: it cannot be read, or had better go through slots.
  [[nodiscard]] bool begin_reading(Peer& peer, Operation& recv, const messaging::Offer& offer,
                                   const messaging::Source& source);
  [[nodiscard]] const fabric::RemoteRegion* mapped_here(Peer& peer, Known& known, const RemoteKey& key);
  /// On progress; lets go of the lock while it copies.
  int read_on(Lock& lock);
  [[nodiscard]] static fabric::Status read_piece(const Reading& reading, std::span<std::byte> to) noexcept;
  [[nodiscard]] static bool still_lent(const Reading& reading) noexcept;
  void end_failed_reading(const Reading& reading, Operation& recv, fabric::Status status);

  // core_pieces.cpp: on progress, with the lock, which they let go of while they copy
  int progress(int budget) noexcept override;
  [[nodiscard]] int wait_descriptor() const noexcept override { return -1; }
  [[nodiscard]] bool prepare_sleep() noexcept override;
  [[nodiscard]] Deadline::Clock::time_point next_deadline() const noexcept override;
  int fill(Lock& lock, Peer& peer);
  [[nodiscard]] bool may_fill(const Peer& peer) const noexcept;
  [[nodiscard]] fabric::Status put_piece(Lock& lock, Peer& peer, Operation* send, std::uint64_t offset,
                                         std::uint32_t bytes) noexcept;
  [[nodiscard]] bool put_is_immediate(Peer& peer) noexcept;
  static void drop_copies(TheirSlots& theirs) noexcept;
  /// A peer that will never get a piece that was counted, and why.
  struct Broken {
    fabric::PeerId peer = 0;
    Errc code = Errc::ok;
  };
  [[nodiscard]] std::optional<Broken> first_broken() const noexcept;
  [[nodiscard]] Result<void> open_slots(Peer& peer);
  void empty_slots(Lock& lock, Peer& peer);

  // core_end.cpp: with the lock
  [[nodiscard]] bool take_bye(Peer& peer);
  void finish(Operation& operation) noexcept;
  /// It has failed: takes it out of where it waits, and tells the peer if that has to know.
  void end(Operation& operation, Errc code, std::string_view words) noexcept;
  /// False: some are being copied just now, and go on.
  [[nodiscard]] bool end_all(Errc code, std::string_view words) noexcept;
  void end_expired(Deadline::Clock::time_point now) noexcept;
  [[nodiscard]] std::string late_words(const Operation& operation) const;
  void forget(Peer& peer, Errc code, std::string_view words, bool memory_is_quiet) noexcept;

  Runtime& runtime_;
  fabric::Fabric& fabric_;
  const ForkGuard fork_guard_;
  const Thresholds thresholds_;
  messaging::Counts counts_;
  const fabric::Port port_;
  const std::uint32_t slot_bytes_;
  const std::uint32_t slot_count_;

  mutable fabric::SpinLock mutex_;
  std::unique_ptr<messaging::OperationTable> operations_;
  std::vector<std::unique_ptr<Peer>> peers_;  ///< by rank; null = not used yet
  std::vector<Peer*> known_;                  ///< those that are not null
  std::list<Unexpected> spare_;               ///< to be used again, with the memory of their payloads
  messaging::OperationList posted_for_any_;
  std::vector<Operation*> zombies_;  ///< outdated, but the fabric still knows their Completion
  std::vector<std::byte> packet_;
  std::uint64_t orders_ = 0;
  std::uint64_t arrivals_ = 0;
  bool closing_ = false;
  int ended_now_ = 0;            ///< operations that ended in this look
  std::vector<Peer*> active_{};  ///< with `takes`
  Deadline::Clock::time_point earliest_ = Deadline::Clock::time_point::max();
  bool has_room_ = false;          ///< somebody has_room
  std::atomic<bool> busy_{false};  ///< active_ or readings_ is not empty, or has_room_
  std::deque<Reading> readings_{};
  Buffer leases_{};  ///< words: the id of the operation whose memory may be read
  std::vector<std::uint32_t> free_leases_{};
  std::uint32_t looks_ = 0;  ///< progress only
};

}  // namespace dtr::inline v0
