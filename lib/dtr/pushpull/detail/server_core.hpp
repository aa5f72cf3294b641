// The server's engine: gives workers receive slots, gathers what they send, sends what they get. What is done with the
// data is its consumer's matter: a Server hands it to the user, a Reducer sums it.
//
// Handlers run on progress and only record; the consumer takes fragments and answers them on its one thread. mutex_
// guards all state and is never held while the fabric is called.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "dtr/base/fork_guard.hpp"
#include "dtr/pushpull/detail/part_id.hpp"
#include "dtr/pushpull/detail/slot_arena.hpp"
#include "dtr/pushpull/detail/wire.hpp"
#include "dtr/runtime/runtime.hpp"

namespace dtr::inline v0 {
namespace pushpull {

class ServerCore;
struct ServerFragment;

/// A put into a worker's tensor on its way.
struct PullAnswer : fabric::Completion {
  explicit PullAnswer(Continuation then) noexcept : Completion(then) {}
  ServerCore* core = nullptr;
  ServerFragment* to = nullptr;
  ServerFragment* from = nullptr;  ///< whose slot is being read; null: memory of the consumer
};

/// A response on its way; it is not sent if a put that it speaks of is known to have failed.
struct Reply : fabric::Completion {
  explicit Reply(Continuation then) noexcept : Completion(then) {}
  ServerCore* core = nullptr;
  ServerFragment* of = nullptr;
  bool open = false;
};

/// One message of a worker with its data. Its consumer reads all of it; the rest is the core's.
struct ServerFragment {
  explicit ServerFragment(fabric::Completion::Continuation replied) noexcept : response(replied) {}

  struct Push {
    PushEntry entry{};
    std::byte* data = nullptr;  ///< in a slot or in the message, where the consumer may write to it; or in place
    Region* region = nullptr;   ///< null: not in a slot
    std::uint64_t region_offset = 0;
    bool in_place = false;  ///< the worker's tensor itself: only to be read, and only on progress
  };
  struct Pull {
    PullEntry entry{};
    std::size_t reply_offset = 0;  ///< of inlined data or the Offer
    const fabric::RemoteRegion* memory = nullptr;
    std::byte* direct = nullptr;  ///< the tensor itself, for a worker of this process; see ServerCore::direct
  };

  int worker = 0;
  std::uint64_t seq = 0;  ///< session of the worker << 40 | round to this server
  std::uint32_t index = 0;
  std::uint32_t count = 0;
  bool cancelled = false;  ///< the worker gave it up: it is empty and wants no answer
  std::vector<Push> pushes{};
  std::vector<Pull> pulls{};
  std::uint32_t open_entries = 0;  ///< for the consumer to count down
  std::int64_t expires_ns = 0;     ///< by our clock: the worker's patience ends soon after

  // The core's:
  ServerFragment* next = nullptr;  ///< among those not taken yet
  std::uint64_t ticket = 0;
  std::uint32_t holds = 0;    ///< puts and offers that read from its slots
  std::uint32_t answers = 0;  ///< puts for it under way
  bool muted = false;
  bool in_place = false;  ///< some of it was pushed in place
  bool lost = false;      ///< and there was no room to keep it when the worker took it back
  bool answering = false;
  bool responded = false;
  bool retained = false;
  std::optional<Error> failure{};
  std::int64_t received_ns = 0;
  std::int64_t processed_ns = 0;
  std::int64_t responded_ns = 0;
  std::vector<std::byte> message{};
  std::vector<std::byte> reply{};
  std::deque<PullAnswer> puts{};
  std::vector<ServerFragment*> offers{};  ///< in whose slots the worker reads its answers, until it has fetched them
  Reply response;
};

class ServerCore final : public fabric::PortHandler {
 public:
  static constexpr unsigned kSessionShift = 40;

  /// Throws Exception. `operation` names the consumer in Errors.
  ServerCore(Runtime& runtime, int group, const char* operation);
  ~ServerCore() override;

  /// Memory of the consumer in which the pushes of one worker under one key land.
  struct Landing {
    Region* region = nullptr;
    std::uint64_t offset = 0;
    std::uint64_t bytes = 0;
  };

  /// What the consumer has to know of a worker.
  struct Standing {
    std::uint64_t sessions = 0;   ///< Workers of that rank that said goodbye
    bool failed = false;          ///< the last of them after a round that had failed
    std::optional<Error> gone{};  ///< dead, or expelled for nonsense
  };

  // --- consumer's thread ---

  /// True once something came since the last take. Any thread.
  [[nodiscard]] bool has_news() const noexcept { return news_.load(std::memory_order_acquire); }
  /// Appends the fragments that are complete. Each has to be finished or dropped.
  void take(std::vector<ServerFragment*>& arrived);
  [[nodiscard]] Standing standing(int worker);
  /// Some Worker has not said goodbye.
  [[nodiscard]] bool anyone_present() noexcept;

  /// Puts `bytes` of the pull's entry from memory into the worker's tensor. `from` is the fragment whose slot the
  /// memory is, and is kept until it has been read; null: the memory lives until flushed() .
  void answer(ServerFragment& to, std::size_t pull, const std::byte* data, Region* region, std::uint64_t offset,
              ServerFragment* from);
  /// The same for memory in a slot; a worker that reaches it with a copy of its own fetches it, beside all others.
  void offer(ServerFragment& to, std::size_t pull, const ServerFragment::Push& sum, ServerFragment& from);
  /// Where the answer to a pull with a `direct` place may be written now, on progress; null: it is not wanted any more.
  [[nodiscard]] std::byte* direct(ServerFragment& to, std::size_t pull) noexcept;
  /// What it pushed in place may be read, on progress; false: its rounds are over, and the memory its owner's.
  [[nodiscard]] bool readable(const ServerFragment& fragment) noexcept;
  /// Copies what was pushed in place into a slot. Errors: resource_exhausted.
  Result<void> keep(ServerFragment& fragment, ServerFragment::Push& push);
  /// All of the fragment has been answered: tells the worker and gives the slots back.
  void finish(ServerFragment& fragment);
  void finish(ServerFragment& fragment, const Error& error);
  /// What finish will say; the first failure counts.
  void set_failure(ServerFragment& fragment, const Error& error);
  /// Ends all rounds of all workers, now and later.
  void break_all(const Error& error) noexcept;

  /// From the next slot on.
  void set_landing(int worker, std::uint64_t key, const Landing& landing);
  /// Asks the worker for the slots in it; they are back when landed() is false.
  void clear_landing(int worker, std::uint64_t key);
  /// Some slot lies in this part of a region.
  [[nodiscard]] bool landed(const Region* region, std::uint64_t offset, std::uint64_t bytes) noexcept;

  /// No put reads the consumer's memory any more.
  [[nodiscard]] bool flushed() const noexcept { return consumer_puts_.load(std::memory_order_acquire) == 0; }

  /// Called on progress after something came, without locks. To be set before start or with the turn of progress.
  void on_news(std::function<void()> call) { call_ = std::move(call); }
  void start();

  [[nodiscard]] fabric::Fabric& fabric() noexcept { return fabric_; }
  [[nodiscard]] Runtime& runtime() noexcept { return runtime_; }
  [[nodiscard]] int workers() const noexcept { return static_cast<int>(workers_.size()); }
  [[nodiscard]] int rank_of(int worker) const noexcept { return runtime_.worker_rank(worker); }
  [[nodiscard]] Result<void> check_fork() const { return fork_guard_.check(operation_); }

  // --- progress ---
  void on_notify(fabric::PeerId from, std::uint32_t value) noexcept override;
  void on_message(fabric::PeerId from, std::span<const std::byte> payload) noexcept override;
  void on_peer_down(fabric::PeerId peer, const Error& error) noexcept override;

 private:
  struct Slot {
    int worker = 0;
    SlotArena::Piece piece{};
    std::uint64_t bytes = 0;
    PartId part{};
    bool live = false;
    bool landing = false;   ///< in memory of the consumer
    bool told = true;       ///< the worker knows it; else it stands for data that came inside of a message
    bool unwanted = false;  ///< to be dropped when its user lets go of it: the worker does not know it (any more)
    ServerFragment* user = nullptr;  ///< who holds it until the response
  };
  /// A round of which fragments have come.
  struct RoundSeen {
    std::uint64_t seq = 0;
    std::uint32_t count = 0;
    std::uint32_t seen = 0;
  };
  struct WorkerState {
    explicit WorkerState(Runtime& runtime) : arena(runtime) {}
    Standing standing{};
    std::uint32_t epoch = 0;  ///< 0 = no Worker there
    bool unclean = false;     ///< its slots may still be written into
    bool fetches = false;     ///< it copies for itself what lies in slots
    bool in_place = false;    ///< it is in this process, and its consumer works on progress
    SlotArena arena;          ///< progress only
    std::unordered_map<PartId, std::vector<std::uint32_t>, PartIdHash> bindings{};
    std::unordered_map<std::uint64_t, Landing> landings{};
    std::vector<const fabric::RemoteRegion*> regions{};
    std::vector<bool> lent{};  ///< of lendable_, what this epoch has been told
    std::vector<ServerFragment*> live{};
    std::vector<std::uint64_t> cancelled{};  ///< rounds to be muted when they come
    std::uint64_t first_open = 0;            ///< all rounds below have come whole
    std::vector<RoundSeen> rounds{};         ///< from there on, those of which something has come
    std::uint32_t puts = 0;                  ///< towards its memory, under way
    std::uint32_t owes_parted = 0;           ///< to this epoch, once no put is under way
    std::optional<Error> owes_broken{};      ///< likewise
  };

  // server_receive.cpp
  void take(int worker, const Head& head, std::span<const std::byte> payload);
  void take_hello(int worker, std::span<const std::byte> payload);
  void take_bind(int worker, std::span<const std::byte> payload);
  void take_unbind(int worker, std::span<const std::byte> payload);
  void take_give_back(int worker, std::span<const std::byte> payload);
  void take_announce(int worker, std::span<const std::byte> payload);
  Result<void> take_round(int worker, std::span<const std::byte> payload);
  Result<void> parse(WorkerState& state, ServerFragment& fragment, const Round& round);
  void keep_pushes(int worker, std::optional<std::uint64_t> round);
  void take_cancel(int worker, std::span<const std::byte> payload);
  void take_fetched(int worker, std::span<const std::byte> payload);
  void take_bye(int worker, std::span<const std::byte> payload);
  Result<void> parse_pushes(WorkerState& state, ServerFragment& fragment, const Round& round);
  Result<void> parse_pulls(const WorkerState& state, ServerFragment& fragment, const Round& round);
  Result<void> take_slot(ServerFragment& fragment, ServerFragment::Push& push);
  void land(WorkerState& state, ServerFragment& fragment, ServerFragment::Push& push);
  [[nodiscard]] static bool fits(WorkerState& state, const Round& round);
  void complete(ServerFragment& fragment) noexcept;
  void expel(int worker, Error error) noexcept;
  void end_session(WorkerState& state, bool unclean) noexcept;
  void drop_slots(WorkerState& state);
  std::uint32_t add_slot(Slot slot);
  void drop_slot(WorkerState& state, std::uint32_t number);
  void let_go_of_slots(ServerFragment& fragment) noexcept;
  void recycle_if_over(ServerFragment& fragment);
  ServerFragment& fresh_fragment();
  [[nodiscard]] int worker_of(fabric::PeerId peer) const noexcept;

  // server_respond.cpp
  template <class T>
  void tell(int worker, const T& message, std::string_view words = {}) noexcept;
  void say_farewells(int worker) noexcept;
  void respond(ServerFragment& fragment);
  void make_response(ServerFragment& fragment, const WorkerState& state, bool silent);
  void end_offers(ServerFragment& fragment) noexcept;
  void end_offers_of_past_sessions(int worker) noexcept;
  std::optional<Release> let_go_of_hold(ServerFragment& from) noexcept;
  static void on_answered(fabric::Completion& completion) noexcept;
  void answered(PullAnswer& put) noexcept;
  void stop_response(ServerFragment& fragment, fabric::Status why) noexcept;
  static void on_replied(fabric::Completion& completion) noexcept;
  void replied(Reply& reply) noexcept;
  void note_news() noexcept { news_.store(true, std::memory_order_release); }

  Runtime& runtime_;
  fabric::Fabric& fabric_;
  const std::string operation_;
  const std::uint32_t slots_each_;
  fabric::Port worker_port_ = 0;
  fabric::Port server_port_ = 0;
  ForkGuard fork_guard_;
  std::function<void()> call_;
  bool open_ = false;
  std::atomic<bool> news_{false};
  std::atomic<std::uint32_t> consumer_puts_{0};
  std::atomic<std::uint32_t> open_posts_{0};  ///< Completions whose continuation has not left this object yet

  std::mutex mutex_;
  std::deque<WorkerState> workers_;
  std::deque<Slot> slots_;
  std::vector<std::uint32_t> idle_slots_;  ///< numbers of slots that are not live
  std::vector<Region*> lendable_;          ///< regions of slots, by the number that workers know
  std::deque<ServerFragment> fragments_;
  std::vector<ServerFragment*> idle_;
  ServerFragment* arrived_front_ = nullptr;
  ServerFragment* arrived_back_ = nullptr;
  std::optional<Error> broken_;
};

}  // namespace pushpull
}  // namespace dtr::inline v0
