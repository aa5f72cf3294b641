// What a fabric knows of one peer, and the requests that wait for room on its channel. Internal to fabric/.
#pragma once

#include <array>
#include <atomic>
#include <deque>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dtr/fabric/checks.hpp"
#include "dtr/fabric/fabric.hpp"
#include "dtr/fabric/spin_lock.hpp"

namespace dtr::inline v0 {
namespace fabric {

/// One for every rank of the job, and most ranks never use most of them: what only used ones need is made with the use.
struct Fabric::Peer {
  Peer(PeerId number, Waiters& waiters) : id(number), waiters_(waiters) {}

  const PeerId id;
  Transport* transport = nullptr;
  std::vector<std::byte> address;
  const std::string* why = nullptr;  ///< the reason for this path; ranks of one host have it in common

  std::atomic<Errc> down{Errc::ok};
  std::atomic<Channel*> channel{nullptr};
  std::unique_ptr<Channel> channel_owner;
  std::atomic<bool> has_backlog{false};
  bool listed = false;  ///< among the Waiters; under their lock, as what follows
  Peer* next_listed = nullptr;
  std::atomic<std::uint64_t> heard{0};  ///< see Fabric::heard
  mutable std::mutex mutex;

  /// False if the peer is down already.
  bool set_down(Errc code, std::string_view reason) noexcept;
  [[nodiscard]] std::string down_reason() const;

  /// Why no channel came about, "" = nothing is known.
  [[nodiscard]] std::string connect_failure() const;
  void set_connect_failure(std::string_view reason) noexcept;

  /// Queues what found no room. Not ok: the peer went down meanwhile, or memory ran out; nothing is queued then.
  [[nodiscard]] Errc keep(std::span<const WorkRequest> requests, Deadline deadline) noexcept;

  /// Posts what finds room now, and ends what is past its deadline. Returns how many requests moved on.
  int drain_backlog() noexcept;
  void end_backlog(Status status) noexcept;
  std::uint32_t cancel_backlog(Completion& completion) noexcept;

 private:
  /// So many are posted at once: transports chain what they are given.
  static constexpr std::size_t kBatch = 64;
  using Batch = std::array<WorkRequest, kBatch>;

  struct Waiting {
    WorkRequest request;
    Deadline deadline;
    std::vector<std::byte> payload;  ///< of a send; the caller's is gone by now
  };
  /// Copies the first ones, as many as one post may take: none of them in vain, all with one deadline.
  [[nodiscard]] std::size_t gather(Batch& batch, std::size_t most) const noexcept;
  template <class Ends>
  std::uint32_t end_if(Ends&& ends, Status status) noexcept;

  Waiters& waiters_;
  std::unique_ptr<std::deque<Waiting>> backlog_;  ///< made with the first one that waits
  std::string down_reason_;
  std::string connect_failure_;
};

/// The peers that have a backlog, so that nobody has to ask all of them.
class Fabric::Waiters {
 public:
  [[nodiscard]] bool empty() const noexcept { return first_.load(std::memory_order_acquire) == nullptr; }

  /// Nothing if it is there already. Any thread.
  void add(Peer& peer) noexcept;
  /// Drains the backlogs of those there are now; who has none left is not there any more. Progress only.
  int drain() noexcept;

 private:
  void append(Peer& peer) noexcept;

  SpinLock lock_;
  std::atomic<Peer*> first_{nullptr};
  Peer* last_ = nullptr;
};

/// Drains the backlogs as part of progress.
class Fabric::Backlog final : public ProgressSource {
 public:
  explicit Backlog(Waiters& waiters) : waiters_(waiters) {}

  int progress(int budget) noexcept override;
  int wait_descriptor() const noexcept override { return -1; }
  bool prepare_sleep() noexcept override { return true; }
  /// Room appears without a ring (the peer just reads on), so a backlog is looked at often.
  Deadline::Clock::time_point next_deadline() const noexcept override;

 private:
  Waiters& waiters_;
};

}  // namespace fabric
}  // namespace dtr::inline v0
