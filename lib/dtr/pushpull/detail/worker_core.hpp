// A Worker's engine: plans rounds, sends what can be sent, takes what comes back.
//
// The caller's thread plans; sending happens wherever the last thing needed arrives, on that thread or on progress.
// mutex_ guards all state and is never held while the fabric is called.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "dtr/base/fork_guard.hpp"
#include "dtr/base/metrics.hpp"
#include "dtr/pushpull/detail/one_thread.hpp"
#include "dtr/pushpull/detail/worker_state.hpp"
#include "dtr/pushpull/worker.hpp"

namespace dtr::inline v0 {
namespace pushpull {

/// For small messages, which end by themselves or with the peer.
[[nodiscard]] inline Deadline never() noexcept { return Deadline(std::chrono::hours(24 * 365)); }

class WorkerCore final : public fabric::PortHandler {
 public:
  WorkerCore(Runtime& runtime, const WorkerOptions& options);
  ~WorkerCore() override;

  // --- the caller's thread; documented in worker.hpp ---
  Result<RoundHandle> push_pull(std::span<const PushView> pushes, std::span<const std::uint64_t> push_keys,
                                std::span<const PullView> pulls, std::span<const std::uint64_t> pull_keys,
                                std::optional<Deadline> deadline);
  Result<RoundHandle> push_pull(std::span<const PushPull> tensors, std::optional<Deadline> deadline);
  Result<void> wait(RoundHandle handle, Deadline deadline);
  Result<bool> done(RoundHandle handle);
  Result<void> cancel(RoundHandle handle);
  Result<void> quiesce(RoundHandle handle, Deadline deadline, bool force);
  Result<std::vector<RoundHandle>> handles(RoundHandle handle);
  Result<std::vector<RoundTrace>> trace(RoundHandle handle);
  Result<void> unbind(std::span<const std::uint64_t> keys);
  Result<void> forget(std::span<const std::byte> memory);

  // --- progress ---
  void on_notify(fabric::PeerId from, std::uint32_t value) noexcept override;
  void on_message(fabric::PeerId from, std::span<const std::byte> payload) noexcept override;
  void on_peer_down(fabric::PeerId peer, const Error& error) noexcept override;

 private:
  /// One line of a call: a push, a pull, or both.
  struct Item {
    std::uint64_t push_key = 0;
    std::uint64_t pull_key = 0;
    PushView push{};
    PullView pull{};
    std::uint32_t push_part = 0;  ///< as in RoundHandle, 0 = none
    std::uint32_t pull_part = 0;
    Link* pull_from = nullptr;
    UserMemory::Place push_place{};
    UserMemory::Place pull_place{};
  };

  // worker_plan.cpp: from lists of tensors to fragments
  Result<RoundHandle> start_round(const Deadline& deadline);
  Result<void> number_parts(std::uint32_t pushes, std::uint32_t pulls);
  Result<void> check_item(const Item& item);
  static Result<void> check_size(KeyInfo& info, std::uint64_t key, std::uint64_t bytes, bool pull, std::uint64_t call);
  Result<void> check_overlaps();
  Result<void> locate(Item& item);
  void make_room(WorkerRound& oldest);
  Result<WorkerRound*> claim_round();
  Result<void> plan_round(WorkerRound& round);
  void use_keys(WorkerRound& round, const Item& item);
  std::uint8_t in_both_directions(std::uint64_t key, std::uint64_t offset);
  [[nodiscard]] std::uint64_t part_bytes(std::uint64_t tensor) const noexcept;
  void plan(WorkerRound& round, const Item& item);
  void plan_push(WorkerRound& round, Link& link, const Item& item, std::uint64_t offset, std::uint64_t bytes);
  void plan_pull(WorkerRound& round, Link& link, const Item& item, std::uint64_t offset, std::uint64_t bytes);
  void use_key(WorkerRound& round, Link& link, std::uint64_t key, std::uint64_t bytes, bool pull);
  Link& home(std::uint64_t key, std::uint64_t part = 0);
  [[nodiscard]] bool inlined(std::uint64_t bytes) const noexcept { return bytes <= inline_limit_; }

  // worker_fragments.cpp
  WorkerFragment& fragment_for(WorkerRound& round, Link& link, std::size_t message_bytes, std::size_t reply_bytes,
                               std::uint64_t data_bytes);
  void number_fragments(WorkerRound& round);
  std::uint32_t region_number(const Region& region);
  void forget_region(const RemoteKey& key);

  // worker_send.cpp: with the lock, except pump and what posts
  void enqueue(WorkerFragment& fragment, Outgoing& out);
  void ask_for_needs(WorkerFragment& fragment, Outgoing& out);
  void ask_for_slot(Link& link, const PartId& part, Binding& binding, Outgoing& out);
  bool ready(WorkerFragment& fragment, Outgoing& out);
  void prepare(WorkerFragment& fragment);
  void encode(WorkerFragment& fragment);
  Posting& fresh_posting();
  void post(Link& link, Posting& posting, const Deadline& deadline) noexcept;
  void pump(Link& link) noexcept;
  void post(Outgoing& out) noexcept;
  [[nodiscard]] Deadline later(const Deadline& deadline) const noexcept;
  static void on_posted(fabric::Completion& completion) noexcept;
  void posted(WorkerFragment& fragment) noexcept;
  static void on_fetched(fabric::Completion& completion) noexcept;
  void fetched(WorkerFragment& fragment) noexcept;

  // worker_receive.cpp: with the lock
  void take_welcome(Link& link, std::span<const std::byte> payload, Outgoing& out);
  void take_bound(Link& link, std::span<const std::byte> payload);
  void take_bind_failed(Link& link, std::span<const std::byte> payload);
  void take_known(Link& link, std::span<const std::byte> payload);
  void take_response(Link& link, std::span<const std::byte> payload, Outgoing& out);
  void take_lend(Link& link, std::span<const std::byte> payload);
  bool take_answers(WorkerFragment& fragment, std::span<const std::byte> payload);
  void take_muted(Link& link, std::span<const std::byte> payload);
  void take_release(Link& link, std::span<const std::byte> payload, Outgoing& out);
  void take_rebind(Link& link, std::span<const std::byte> payload, Outgoing& out);
  void take_broken(Link& link, std::span<const std::byte> payload, Outgoing& out);
  WorkerFragment* fragment_of(const Link& link, std::uint64_t ticket) noexcept;
  void take(Link& link, const Head& head, std::span<const std::byte> payload, Outgoing& out);
  void give_back(Link& link, Binding::Slot& slot, Outgoing& out);
  void release_slots(WorkerFragment& fragment) noexcept;
  void give_back_unwanted(WorkerFragment& fragment, Outgoing& out);
  void maybe_end(WorkerFragment& fragment) noexcept;
  void fail_round(WorkerRound& round, Error error) noexcept;
  void finish_round(WorkerRound& round) noexcept;
  void fail_link(Link& link, Error error, bool fenced) noexcept;
  void fence(Link& link) noexcept;
  void bail_out(Link& link, Error error) noexcept;
  void give_up(WorkerFragment& fragment, Error error) noexcept;

  // worker_core.cpp
  Result<void> enter(const char* operation) const;
  Result<WorkerRound*> find(RoundHandle handle, const char* operation);
  bool part_done(const WorkerRound& round, std::uint32_t part) const noexcept;
  Error late(const WorkerRound& round);
  void give_up_round(WorkerRound& round, Error error, Outgoing& out);
  bool expire(WorkerRound& round);
  Link* link_of(fabric::PeerId peer) noexcept;
  bool open_somewhere(std::span<const std::uint64_t> keys) noexcept;
  void cancel_all();
  void say_goodbye();

  // worker_quiesce.cpp
  Result<void> force_quiet(WorkerRound& round, const Deadline& deadline);
  Result<void> end_reading(WorkerRound& round, const Deadline& deadline);

  Runtime& runtime_;
  fabric::Fabric& fabric_;
  const WorkerOptions options_;
  const std::uint32_t epoch_;
  const std::size_t max_message_;
  const std::size_t inline_limit_;
  fabric::Port worker_port_ = 0;
  fabric::Port server_port_ = 0;
  ForkGuard fork_guard_;
  mutable OneThread door_;
  UserMemory memory_;
  Counter& rounds_total_;
  Counter& failures_total_;
  Counter& pushed_bytes_;
  Histogram& round_ns_;

  std::mutex mutex_;
  std::deque<Link> links_;
  std::unordered_map<fabric::PeerId, Link*> by_peer_;
  std::deque<WorkerRound> rounds_;
  std::uint64_t next_round_ = 1;
  bool had_failure_ = false;  ///< servers are told with the goodbye
  std::deque<WorkerFragment> fragments_;
  std::vector<WorkerFragment*> idle_fragments_;
  std::deque<Posting> postings_;
  std::vector<Posting*> idle_postings_;
  std::unordered_map<std::uint64_t, std::uint32_t> region_numbers_;  ///< by slot and generation of the key
  struct RegionNumber {
    RemoteKey key{};
    std::uint32_t turn = 0;  ///< counts what the number has meant
  };
  std::vector<RegionNumber> regions_;
  std::vector<std::uint32_t> idle_regions_;
  std::vector<Item> items_;
  struct Range {
    std::uintptr_t begin = 0;
    std::uintptr_t end = 0;
    const Item* item = nullptr;
    bool pull = false;
  };
  std::vector<Range> ranges_;
  std::uint64_t call_ = 0;
  std::atomic<std::uint32_t> open_posts_{0};  ///< Completions whose continuation has not left this object yet
};

}  // namespace pushpull
}  // namespace dtr::inline v0
