// Everything between this process and one peer: the requests that are open, and the rails that carry them.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "dtr/fabric/endings.hpp"
#include "dtr/fabric/refusals.hpp"
#include "dtr/fabric/spin_lock.hpp"
#include "dtr/fabric/verbs/operation.hpp"
#include "dtr/fabric/verbs/rail.hpp"

namespace dtr::inline v0 {
namespace fabric::verbs {

/// In Status::cause: an atomic that was under way on a lost rail.
inline constexpr std::int32_t kFateUnknown = -1;

/// One object serves both directions: the queue pairs carry our requests and the peer's.
///
/// Locks: lock_ guards the requests, the queues of what goes again, and of each rail what rail.hpp says, its state
/// included; posts come from any thread. words_mutex_ guards texts for people. Neither is held while the other is
/// taken, nor while a completion is told: a continuation may call anything. What runs without a catch allocates
/// nothing; where memory is short, the peer is given up.
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
  void nic_changed(std::size_t nic, const Nic::Event& event) noexcept;
  /// The peer is gone; tells nobody but the requests.
  void peer_is_down(Errc code, std::string_view why) noexcept;
  /// The transport ends: nothing of this link touches the NICs afterwards.
  void shut_down() noexcept;
  [[nodiscard]] Nic& nic_of(const Rail& rail) const noexcept { return *hub_.nics[rail.nic]; }
  void on_sent(Rail& rail, const ibv_wc& completion) noexcept;
  void on_received(Rail& rail, const ibv_wc& completion, std::span<const std::byte> bytes) noexcept;
  /// The peer was declared failed by this process; any thread.
  void fence() noexcept;

  // What the transport keeps for this peer; progress thread.
  std::unique_ptr<Channel> control;
  std::deque<std::vector<std::byte>> unsaid;
  bool lost_words = false;  ///< there was no memory for a control message
  bool told_down = false;
  Link* next_link = nullptr;  ///< set before anybody else sees this one

 private:
  enum class Step : std::uint8_t { done, blocked, full };

  // What is called `with lock_` says so; the rest takes it. What takes an Endings is called with lock_.

  // link_post.cpp: the caller's side
  [[nodiscard]] Errc check(const WorkRequest& request) const noexcept;         // with lock_
  [[nodiscard]] bool is_done_already(const WorkRequest& request) noexcept;     // with lock_
  [[nodiscard]] bool keep_message(Operation& operation) noexcept;              // with lock_
  [[nodiscard]] std::uint32_t take_buffer() noexcept;                          // with lock_
  void queue(FixedQueue<std::uint64_t>& to, std::uint64_t position) noexcept;  // with lock_
  [[nodiscard]] bool is_over(std::uint64_t position) noexcept;                 // with lock_
  [[nodiscard]] bool go(std::uint64_t position) noexcept;                      // with lock_

  // link_lanes.cpp: which request goes next, and on which rail
  void pump(Endings& endings) noexcept;
  [[nodiscard]] bool nothing_waits() const noexcept;  // with lock_
  void ring() noexcept;                               // with lock_
  [[nodiscard]] Step run_lanes(Endings& endings) noexcept;
  [[nodiscard]] Step run_held(Endings& endings) noexcept;
  [[nodiscard]] Step run_lane(std::uint64_t& cursor, bool credits, Endings& endings) noexcept;
  [[nodiscard]] Step advance(std::uint64_t position, Endings& endings) noexcept;
  [[nodiscard]] Step advance_data(Operation& operation, std::uint32_t number) noexcept;     // with lock_
  [[nodiscard]] Step advance_message(Operation& operation, std::uint32_t number) noexcept;  // with lock_
  [[nodiscard]] Step advance_notify(Operation& operation, std::uint32_t number) noexcept;   // with lock_
  [[nodiscard]] Step advance_atomic(Operation& operation, std::uint32_t number) noexcept;   // with lock_
  [[nodiscard]] Step advance_flush(Operation& operation, std::uint32_t number, Endings& endings) noexcept;
  [[nodiscard]] Rail* data_rail(const WorkRequest& request) noexcept {  // with lock_
    if (rails_.size() > 1) return nearest_rail(request);
    return rails_[0]->usable() && rails_[0]->ring.has_room() ? rails_[0].get() : nullptr;
  }
  [[nodiscard]] Rail* nearest_rail(const WorkRequest& request) noexcept;        // with lock_
  [[nodiscard]] Rail* atomic_rail() noexcept;                                   // with lock_
  [[nodiscard]] Rail* message_rail(bool spends) noexcept;                       // with lock_
  [[nodiscard]] bool rides_credits(const Operation& operation) const noexcept;  // with lock_

  // link_fly.cpp: from a piece of a request to a work request; with lock_
  [[nodiscard]] bool fly(Rail& rail, const Flight& flight) noexcept;
  /// The short way of a new put or get that one work request can do, where nothing waits before it: checked, taken and
  /// staged. False: nothing has happened.
  [[nodiscard]] bool launch(const WorkRequest& request, std::int64_t deadline) noexcept;
  void send_again(const Flight& flight) noexcept;
  [[nodiscard]] bool fly_again(const Flight& flight) noexcept;
  [[nodiscard]] bool fly_result(const ResultBody& result) noexcept;
  [[nodiscard]] bool fly_buffer(Rail* rail, Flight::Kind kind, std::uint32_t buffer) noexcept;
  [[nodiscard]] bool owes_credits(const Rail& rail) const noexcept;
  void return_credits() noexcept;
  [[nodiscard]] bool return_credits(Rail& rail) noexcept;
  void probe(Rail& rail) noexcept;

  // link_complete.cpp: what the device gives back
  void blame(Rail& rail, const ibv_wc& completion) noexcept;
  void landed(const Flight& flight, Endings& endings) noexcept;
  /// The same in short for data that were all of their request. False: nothing has happened.
  [[nodiscard]] bool landed_alone(const Flight& flight, Endings& endings) noexcept;
  void tell(Operation& operation, Status status, Endings& endings) noexcept;
  void settle(Operation& operation) noexcept;     // with lock_
  void let_go(const Flight& flight) noexcept;     // with lock_
  void give_back(std::uint32_t buffer) noexcept;  // with lock_

  // link_receive.cpp: what the peer sends
  [[nodiscard]] const char* take_message(Rail& rail, std::span<const std::byte> bytes, bool& spent) noexcept;
  [[nodiscard]] bool answer(const AtomicBody& body) noexcept;
  void take_result(const ResultBody& body) noexcept;

  // link_end.cpp: ends that the peer has no part in
  template <class Which>
  std::uint32_t end_some(Errc code, Which&& which) noexcept;
  [[nodiscard]] std::int64_t expire(std::int64_t now) noexcept;
  void end_atomics() noexcept;
  void end_all(Errc code, std::string_view why) noexcept;
  void drop_told() noexcept;            // with lock_
  void drop_told(Rail& rail) noexcept;  // with lock_
  void bury(Rail& rail) noexcept;
  void give_up(Errc code, std::string_view why) noexcept;

  // link_connect.cpp: rails come up
  void build_rails();
  void take_early(std::vector<EarlyQueuePair> early);
  void begin(Rail& rail, std::uint32_t epoch);
  void complete(Rail& rail, const ControlMessage& message);
  void on_connect(Rail& rail, const ControlMessage& message);
  void open(Rail& rail);
  [[nodiscard]] Result<void> fill_reserve();
  void lose_unopened(Rail& rail, std::string_view why) noexcept;
  void refuse(Rail& rail, std::string_view why);
  void say(Rail& rail, ControlType type, std::uint64_t received = 0);
  [[nodiscard]] std::optional<GidChoice> gids_of(const Rail& rail) const;

  // link_rails.cpp: rails are lost
  void become(Rail& rail, Rail::State next) noexcept;  // with lock_
  /// `status`: of the completion that has shown it, or 0.
  void fault(Rail& rail, std::int32_t status, std::string_view why) noexcept;
  void finish_drain(Rail& rail);
  void finish_fence(Rail& rail);
  void peer_has_got(Rail& rail, std::uint64_t received, std::string_view why);
  [[nodiscard]] int drive_rail(Rail& rail, std::int64_t now);
  void note_fault(const Rail& rail, std::string_view why) noexcept;

  // link.cpp
  void take_address();
  void judge_connecting(std::int64_t now);
  void judge_reach(std::int64_t now);
  void keep_words(std::string& place, std::string_view words) const noexcept;

  Hub& hub_;
  const PeerId peer_;
  std::atomic<ChannelState> state_{ChannelState::connecting};
  std::atomic<bool> attached_{false};
  std::atomic<std::uint32_t> lingering_{0};
  std::atomic<bool> reset_wanted_{false};
  std::atomic<bool> fence_wanted_{false};
  std::atomic<bool> shut_{false};  ///< the hub is not to be used any more

  mutable SpinLock lock_;
  std::unique_ptr<OperationRing> operations_;  ///< made when a channel attaches
  std::vector<std::unique_ptr<Rail>> rails_;   ///< made once, when the peer is known; progress reads it without lock_
  std::uint32_t open_rails_ = 0;               ///< changed by progress only, which reads it without lock_
  Rail* message_rail_ = nullptr;               ///< carries what has an order
  std::uint64_t data_cursor_ = 0;              ///< the lane of puts, gets and the NIC's atomics
  std::uint64_t message_cursor_ = 0;           ///< the lane of what needs a credit
  FixedQueue<std::uint64_t> held_;             ///< positions of fenced requests
  FixedQueue<std::uint64_t> late_;             ///< positions whose notification can go now
  FixedQueue<Flight> again_data_;              ///< to be sent anew
  FixedQueue<Flight> again_messages_;          ///< likewise, in the other lane
  FixedQueue<ResultBody> results_;             ///< answers to atomics, not sent yet
  std::vector<std::uint32_t> reserve_;  ///< idle buffers of ours for results and credits, which no shortage may stop
  std::uint32_t reserved_ = 0;          ///< how many of them there are, idle or not
  std::uint32_t asked_ = 0;             ///< atomics at the target's CPU
  std::int64_t earliest_ = kNever;      ///< a bound below which no deadline lies
  std::uint64_t max_message_ = 0;       ///< that both ends take
  bool credits_due_ = true;             ///< a rail may owe the peer some
  bool closing_ = false;
  std::int64_t attach_deadline_ = kNever;
  std::vector<std::byte> given_address_;  ///< for progress to read
  Errc end_code_ = Errc::ok;              ///< what posts are answered with

  Refusals refusals_;
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
