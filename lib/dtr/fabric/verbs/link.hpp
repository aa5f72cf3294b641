// Everything between this process and one peer: the requests that are open, and the rails that carry them.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "dtr/fabric/endings.hpp"
#include "dtr/fabric/spin_lock.hpp"
#include "dtr/fabric/verbs/operation.hpp"
#include "dtr/fabric/verbs/rail.hpp"

namespace dtr::inline v0 {
namespace fabric::verbs {

/// In Status::cause: an atomic that was under way on a lost rail.
inline constexpr std::int32_t kFateUnknown = -1;

/// One object serves both directions: the queue pairs carry our requests and the peer's. lock_ guards the requests and
/// the rails' rings; completions are told without it, so that a continuation may call anything.
class Link {
 public:
  Link(Hub& hub, PeerId peer);
  ~Link();
  Link(const Link&) = delete;
  Link& operator=(const Link&) = delete;

  // For the Channel; any thread.
  [[nodiscard]] PostResult post(std::span<const WorkRequest> requests, Deadline deadline) noexcept;
  [[nodiscard]] std::uint32_t cancel(Completion& completion) noexcept;
  [[nodiscard]] bool quiesced() const noexcept { return lingering_.load(std::memory_order_acquire) == 0; }
  void reset() noexcept;
  void close() noexcept;
  void abort(Errc code) noexcept;
  [[nodiscard]] ChannelState state() const noexcept { return state_.load(std::memory_order_acquire); }
  [[nodiscard]] std::string path() const;
  [[nodiscard]] std::string explain(const Status& status) const;
  /// A channel object uses the link from now on, until it is detached. False: there is one.
  [[nodiscard]] bool attach(std::span<const std::byte> address, std::int64_t connect_deadline);
  void detach() noexcept;

  // Progress thread.
  [[nodiscard]] PeerId peer() const noexcept { return peer_; }
  [[nodiscard]] bool knows_peer() const noexcept { return their_.has_value(); }
  [[nodiscard]] const Address& address() const noexcept { return *their_; }
  /// How to reach the peer. `early`: queue pairs of the start, one a NIC, to be taken into use.
  void introduce(Address address, std::vector<EarlyQueuePair> early);
  void on_control(const ControlMessage& message, std::span<const std::byte> rest);
  /// Moves everything on that is not a completion; returns how much it did.
  int drive(std::int64_t now);
  [[nodiscard]] std::int64_t next_time() const noexcept { return next_time_; }
  void nic_changed(std::size_t nic, const Nic::Change& change);
  /// The peer is gone; tells nobody.
  void peer_is_down(Errc code, const std::string& why) noexcept;
  /// The transport ends: nothing of this link touches the NICs afterwards.
  void shut_down() noexcept;
  [[nodiscard]] Nic& nic_of(const Rail& rail) const noexcept { return *hub_.nics[rail.nic]; }
  [[nodiscard]] Rail* rail_of(std::uint32_t queue_pair_number) noexcept;
  void on_sent(Rail& rail, const ibv_wc& completion) noexcept;
  void on_received(Rail& rail, const ibv_wc& completion, std::span<const std::byte> bytes) noexcept;
  /// The peer was declared failed by this process; any thread.
  void fence() noexcept;

  /// What the transport keeps for this peer; progress thread.
  std::unique_ptr<Channel> control;
  std::deque<std::vector<std::byte>> unsaid;
  bool told_down = false;

 private:
  enum class Step : std::uint8_t { done, blocked, full };

  // link_post.cpp: from requests to work requests
  [[nodiscard]] Errc check(const WorkRequest& request) const noexcept;
  [[nodiscard]] bool is_done_already(const WorkRequest& request) noexcept;
  [[nodiscard]] bool keep_message(Operation& operation) noexcept;
  void pump(Endings& endings) noexcept;
  void ring() noexcept;
  [[nodiscard]] Step run_lanes(Endings& endings) noexcept;
  [[nodiscard]] Step advance(std::uint64_t position, Endings& endings) noexcept;
  [[nodiscard]] Step advance_data(Operation& operation, std::uint32_t number) noexcept;
  [[nodiscard]] Step advance_message(Operation& operation, std::uint32_t number) noexcept;
  [[nodiscard]] Step advance_notify(Operation& operation, std::uint32_t number) noexcept;
  [[nodiscard]] Step advance_atomic(Operation& operation, std::uint32_t number) noexcept;
  [[nodiscard]] Step advance_flush(Operation& operation, std::uint32_t number, Endings& endings) noexcept;
  [[nodiscard]] bool fly(Rail& rail, const Flight& flight) noexcept;
  void send_again(const Flight& flight) noexcept;
  [[nodiscard]] bool fly_again(const Flight& flight) noexcept;
  [[nodiscard]] bool fly_result(const ResultBody& result) noexcept;
  [[nodiscard]] bool fly_buffer(std::uint32_t buffer) noexcept;
  void return_credits() noexcept;
  [[nodiscard]] Rail* data_rail() noexcept;
  [[nodiscard]] Rail* message_rail(bool spends) noexcept;
  [[nodiscard]] bool rides_credits(const Operation& operation) const noexcept;

  // link_complete.cpp: from completions to ends; what takes an Endings is called with the lock
  void blame(Rail& rail, const ibv_wc& completion) noexcept;
  void landed(const Flight& flight, Endings& endings) noexcept;
  void tell(Operation& operation, Status status, Endings& endings) noexcept;
  void settle(Operation& operation) noexcept;
  void let_go(const Flight& flight) noexcept;
  void answer(const AtomicBody& body) noexcept;
  void take_result(const ResultBody& body) noexcept;
  template <class Which>
  std::uint32_t end_some(Errc code, Which&& which) noexcept;
  [[nodiscard]] std::int64_t expire(std::int64_t now) noexcept;
  void end_atomics() noexcept;

  // link_rails.cpp: the life of rails
  void build_rails();
  void begin(Rail& rail, std::uint32_t epoch);
  void complete(Rail& rail, const ControlMessage& message);
  void open(Rail& rail);
  void fault(Rail& rail, std::int32_t cause, const std::string& why) noexcept;
  void lose_unopened(Rail& rail, const std::string& why) noexcept;
  void finish_drain(Rail& rail);
  void finish_fence(Rail& rail);
  [[nodiscard]] int drive_rail(Rail& rail, std::int64_t now);
  void say(Rail& rail, ControlType type, std::uint64_t received = 0);
  [[nodiscard]] std::optional<GidChoice> gids_of(const Rail& rail) const;
  void note_fault(const Rail& rail, const std::string& why) noexcept;
  void give_up(Errc code, const std::string& why) noexcept;
  void take_early(std::vector<EarlyQueuePair> early);

  // link.cpp
  void end_all(Errc code, const std::string& why, bool target_gone) noexcept;
  void look_again(std::int64_t when) noexcept;
  void take_address();
  void bury(Rail& rail) noexcept;
  void drop_waiting() noexcept;  // with lock_

  Hub& hub_;
  const PeerId peer_;
  std::atomic<ChannelState> state_{ChannelState::connecting};
  std::atomic<bool> attached_{false};

  mutable SpinLock lock_;
  std::unique_ptr<OperationRing> operations_;  ///< made when a channel attaches
  std::vector<std::unique_ptr<Rail>> rails_;   ///< made once, when the peer is known
  std::uint32_t open_rails_ = 0;
  std::uint64_t data_cursor_ = 0;              ///< the lane of puts, gets and the NIC's atomics
  std::uint64_t message_cursor_ = 0;           ///< the lane of what needs a credit
  FixedQueue<std::uint64_t> held_;             ///< positions of fenced requests
  FixedQueue<std::uint64_t> late_;             ///< positions whose notification can go now
  FixedQueue<Flight> again_data_;              ///< to be sent anew
  FixedQueue<Flight> again_messages_;          ///< likewise, in the other lane
  FixedQueue<ResultBody> results_;             ///< answers to atomics, not sent yet
  std::vector<std::uint32_t> result_buffers_;  ///< idle ones
  std::uint32_t asked_ = 0;                    ///< atomics at the target's CPU
  std::atomic<std::uint32_t> lingering_{0};
  std::int64_t earliest_ = kNever;  ///< a bound below which no deadline lies
  bool closing_ = false;
  std::int64_t attach_deadline_ = kNever;
  std::vector<std::byte> given_address_;  ///< for progress to read
  std::atomic<bool> reset_wanted_{false};
  std::atomic<bool> fence_wanted_{false};
  std::atomic<bool> shut_{false};  ///< the hub is not to be used any more
  Errc end_code_ = Errc::ok;       ///< what posts are answered with

  mutable std::mutex words_mutex_;
  std::string why_;         ///< of the end
  std::string last_fault_;  ///< of a rail
  std::string path_;
  std::string shortage_;  ///< the limit that keeps rails from being made

  // Progress thread only.
  std::optional<Address> their_;
  std::int64_t unreachable_since_ = kNever;
  int shortages_ = 0;  ///< attempts in a row that a limit of this process has ended
  std::int64_t next_time_ = kNever;
  bool wanted_ = false;  ///< rails are to be up
  bool over_ = false;    ///< the peer is gone, or we are
};

}  // namespace fabric::verbs
}  // namespace dtr::inline v0
