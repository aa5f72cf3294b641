// One of the ways to a peer: a port here, a port there, and the queue pair between them that is in use now.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "dtr/fabric/verbs/hub.hpp"
#include "dtr/fabric/verbs/send_ring.hpp"

namespace dtr::inline v0 {
namespace fabric::verbs {

class Link;

/// A queue pair that was made before the peers were known.
struct EarlyQueuePair {
  QueuePair queue_pair{};
  std::uint32_t psn = 0;
  std::uint32_t max_inline = 0;
};

/// A packet sequence number that nobody can foresee, another one than `before`: a late packet of an earlier connection
/// must not fit into the next.
[[nodiscard]] std::uint32_t new_psn(std::uint32_t before) noexcept;

/// Its life is its link's affair (link_connect.cpp, link_rails.cpp); the steps of a queue pair are here. Locking: see
/// the two groups of fields.
class Rail final : public CompletionSink {
 public:
  enum class State : std::uint8_t {
    idle,        ///< no queue pair
    connecting,  ///< ours is made and the peer knows; the peer's is missing
    ready,       ///< ours takes and sends; the peer has not said so of its own
    open,
    draining,  ///< in error: the device gives back what was posted
    drained,   ///< ours is gone and the peer knows; whether its own is, it has not said
  };

  Rail(Link& owner, std::uint32_t place, std::size_t nic_place, std::size_t port_place, std::uint32_t depth);

  /// Queue pair in INIT, for the next epoch. Errors: as Nic::make_queue_pair.
  [[nodiscard]] Result<void> make(Nic& nic, std::uint32_t receives);
  /// Takes over one in INIT, as epoch 1.
  void adopt(EarlyQueuePair made);
  /// Towards the peer's queue pair: takes requests, sends requests. Errors: device_error.
  [[nodiscard]] Result<void> connect(const PortAddress& peer, const GidChoice& gids, QueuePairName theirs,
                                     std::chrono::milliseconds detect);
  /// Nothing lands through the queue pair any more, and what was posted comes back.
  void stop() noexcept;
  void drop(Nic& nic) noexcept;

  [[nodiscard]] bool usable() const noexcept { return state == State::open && refused == 0; }
  /// Lost, and what the peer has got of it is not known yet.
  [[nodiscard]] bool in_doubt() const noexcept {
    return (state == State::open && refused != 0) || state == State::draining || state == State::drained;
  }
  [[nodiscard]] std::uint64_t credits() const noexcept { return credit_limit + peer_consumed - spent; }
  /// In error, and the device has nothing more to give back, or takes too long.
  [[nodiscard]] bool at_rest(std::int64_t now) const noexcept {
    return now >= drain_until || (flushed >= ring.head() && (last_receive || now >= receives_until));
  }

  void on_sent(const ibv_wc& completion) noexcept override;
  void on_received(const ibv_wc& completion, std::span<const std::byte> bytes) noexcept override;

  /// For a new queue pair; with the lock.
  void start_counting() noexcept;

  Link& link;
  const std::uint32_t number;  ///< same at both ends
  const std::size_t nic;       ///< place in Hub::nics
  const std::size_t port;      ///< place in the peer's ports, and of its rkeys

  // With the link's lock. Only progress changes the state, and so may read it without.
  State state = State::idle;
  SendRing ring;
  std::uint64_t bytes_under_way = 0;
  std::uint32_t ordered = 0;  ///< see Flight::order
  std::uint64_t credit_limit = 0;
  std::uint64_t spent = 0;          ///< credits used in this epoch
  std::uint64_t peer_consumed = 0;  ///< of them given back
  std::uint64_t consumed = 0;       ///< credits of the peer's that we have used up
  std::uint64_t returned = 0;       ///< of them told to the peer
  bool used = false;                ///< since the last flush, and not fenced since
  int refused = 0;                  ///< errno of the doorbell that the device did not take: progress ends the rail

  // Progress thread. Posts read these while the rail is open, when they do not change.
  QueuePair queue_pair;
  std::uint32_t epoch = 0;
  std::uint32_t psn = 0;
  std::uint32_t max_inline = 0;
  std::uint64_t mailbox = 0;  ///< the peer's
  std::uint32_t mailbox_rkey = 0;

  // Progress thread.
  std::uint64_t received = 0;  ///< in this epoch
  std::uint64_t flushed = 0;   ///< the device has given back all before this one
  bool errored = false;        ///< the device has given one back with an error
  bool last_receive = false;   ///< the device says that no receive completes any more
  std::int64_t receives_until = 0;
  std::int64_t drain_until = 0;
  std::int64_t opened_at = 0;
  GidEntry our_gid{};  ///< what the queue pair sends from
  std::uint16_t our_lid = 0;
  bool peer_ready = false;
  std::optional<std::uint64_t> peer_received;  ///< the peer's end of this epoch is drained, and got so many
  std::optional<ControlMessage> next_connect;  ///< the peer is ahead of us: for when this epoch is fenced
  std::int64_t retry_at = 0;
  std::int64_t back_off = 0;
  std::int64_t answer_until = kNever;
  std::string gids;  ///< the addresses in words, and why these
};

}  // namespace fabric::verbs
}  // namespace dtr::inline v0
