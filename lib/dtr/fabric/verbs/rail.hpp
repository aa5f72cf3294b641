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

/// Its life is its link's affair (link_rails.cpp); the steps of a queue pair are here. Progress thread; the ring, the
/// credits and `state` with the link's lock too.
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

  [[nodiscard]] bool usable() const noexcept { return state == State::open; }
  [[nodiscard]] std::uint64_t credits() const noexcept { return credit_limit + peer_consumed - spent; }

  void on_sent(const ibv_wc& completion) noexcept override;
  void on_received(const ibv_wc& completion, std::span<const std::byte> bytes) noexcept override;

  void start_counting() noexcept;

  Link& link;
  const std::uint32_t number;  ///< same at both ends
  const std::size_t nic;       ///< place in Hub::nics
  const std::size_t port;      ///< place in the peer's ports, and of its rkeys

  State state = State::idle;
  QueuePair queue_pair;
  std::uint32_t epoch = 0;
  std::uint32_t psn = 0;
  std::uint32_t max_inline = 0;

  SendRing ring;
  std::uint64_t bytes_under_way = 0;
  std::uint32_t ordered = 0;  ///< see Flight::order
  std::uint64_t credit_limit = 0;
  std::uint64_t spent = 0;          ///< credits used in this epoch
  std::uint64_t peer_consumed = 0;  ///< of them given back
  std::uint64_t consumed = 0;       ///< credits of the peer's that we have used up
  std::uint64_t returned = 0;       ///< of them told to the peer
  bool used = false;                ///< since the last flush
  int refused = 0;                  ///< errno of a doorbell that the device did not take

  std::uint64_t received = 0;  ///< in this epoch
  std::uint64_t flushed = 0;   ///< the device has given back all before this one
  std::int64_t drain_until = 0;
  std::int64_t opened_at = 0;
  GidEntry our_gid{};
  bool peer_ready = false;
  std::optional<std::uint64_t> peer_received;  ///< the peer's end of this epoch is drained, and got so many
  std::int64_t retry_at = 0;
  std::int64_t back_off = 0;
  std::int64_t answer_until = kNever;
  std::string gids;  ///< the addresses in words, and why these
};

}  // namespace fabric::verbs
}  // namespace dtr::inline v0
