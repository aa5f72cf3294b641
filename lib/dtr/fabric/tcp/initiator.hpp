// This process's connection to a peer: sends requests, reads replies, comes back after a break.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "dtr/base/fd.hpp"
#include "dtr/fabric/endings.hpp"
#include "dtr/fabric/tcp/dialer.hpp"
#include "dtr/fabric/tcp/hub.hpp"
#include "dtr/fabric/tcp/outbox.hpp"
#include "dtr/fabric/tcp/send_queue.hpp"
#include "dtr/fabric/tcp/stream_reader.hpp"

namespace dtr::inline v0 {
namespace fabric::tcp {

/// Two locks. rx_mutex_ is for who reads from the socket or changes the connection; mutex_ for the queue and what is
/// written. rx_mutex_ is taken first. Completions are told under neither, so that a continuation may call anything.
class Initiator final : public Pollable {
 public:
  Initiator(Hub& hub, PeerRecord& peer, std::vector<Endpoint> addresses, Deadline deadline);

  // For the Channel; any thread.
  void start() noexcept;
  [[nodiscard]] PostResult post(std::span<const WorkRequest> requests, Deadline deadline) noexcept;
  [[nodiscard]] std::uint32_t cancel(Completion& completion) noexcept;
  [[nodiscard]] bool quiesced() const noexcept;
  void reset() noexcept;
  void close() noexcept;
  void abort(Errc code) noexcept;
  [[nodiscard]] ChannelState state() const noexcept { return state_.load(std::memory_order_acquire); }
  [[nodiscard]] std::string path() const;
  [[nodiscard]] std::string explain(const Status& status) const;
  /// The channel object is gone.
  void detach() noexcept;
  [[nodiscard]] bool detached() const noexcept { return detached_.load(std::memory_order_acquire); }
  [[nodiscard]] bool over() const noexcept {
    const ChannelState now = state();
    return now == ChannelState::closed || now == ChannelState::failed;
  }
  /// We are leaving, or have left, this peer.
  [[nodiscard]] bool leaving() const noexcept { return closing_.load(std::memory_order_acquire); }

  // Progress thread.
  void on_ready(std::uint32_t events) noexcept override;
  [[nodiscard]] std::int64_t on_time(std::int64_t now) noexcept;
  /// Somebody found out that the peer is down.
  void end(Errc code, const std::string& why) noexcept;

 private:
  enum class Phase : std::uint8_t { dialing, greeting, open, over };
  enum class Parsed : std::uint8_t { all, full, nonsense };
  enum class Slice : std::uint8_t { idle, more, lost, nonsense, closed, left };

  // initiator.cpp
  void pump() noexcept;
  void watch(bool writable) noexcept;
  void drop_connection() noexcept;
  void end_open_atomics() noexcept;
  [[nodiscard]] Errc check(const WorkRequest& request) const noexcept;

  // initiator_rx.cpp
  void receive() noexcept;
  [[nodiscard]] Slice receive_slice(std::size_t& budget, Endings& endings, int& error) noexcept;
  [[nodiscard]] Parsed parse(Endings& endings) noexcept;
  [[nodiscard]] Parsed obey(const ReplyHeader& header, Endings& endings) noexcept;

  // initiator_dial.cpp
  void dial() noexcept;
  void act_on(Dial step) noexcept;
  void connection_lost(const std::string& why, int error) noexcept;
  [[nodiscard]] std::int64_t dial_on_time(std::int64_t now) noexcept;
  void give_up(Errc code, const std::string& why) noexcept;

  Hub& hub_;
  PeerRecord& peer_;
  const std::vector<Endpoint> addresses_;
  const std::int64_t connect_deadline_;

  std::atomic<ChannelState> state_{ChannelState::connecting};
  std::atomic<bool> closing_{false};
  std::atomic<bool> detached_{false};

  mutable std::mutex rx_mutex_;
  mutable std::mutex mutex_;

  // Changed with both locks, read with either.
  Phase phase_ = Phase::dialing;
  UniqueFd fd_;
  bool was_open_ = false;

  // With rx_mutex_.
  Dialer dialer_;
  std::size_t address_ = 0;  ///< the one in use or being tried
  std::size_t refused_in_a_row_ = 0;
  bool healable_ = false;  ///< of this round through the addresses: an attempt broke
  bool rejected_ = false;  ///< of this round: somebody else answered
  std::int64_t refused_since_ = kNever;
  std::int64_t lost_since_ = kNever;  ///< the connection broke; kNever: it stands, or never did
  std::int64_t attempt_until_ = kNever;
  std::int64_t retry_at_ = kNever;
  std::int64_t retry_pause_ = 0;
  bool stopped_for_room_ = false;  ///< endings were full in the middle of what is buffered

  // With mutex_.
  StreamReader stream_;  ///< its pieces also with rx_mutex_ alone, between prepare and accept
  bool data_pending_ = false;
  bool peer_leaves_ = false;
  Refusals refusals_;
  SendQueue queue_;
  Outbox outbox_;
  bool write_blocked_ = false;
  bool look_arranged_ = false;
  SilenceWatch silence_;
  Errc end_code_ = Errc::ok;  ///< what posts are answered with
  std::string why_;
};

}  // namespace fabric::tcp
}  // namespace dtr::inline v0
