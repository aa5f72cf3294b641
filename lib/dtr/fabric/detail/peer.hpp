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

namespace dtr::inline v0 {
namespace fabric {

struct Fabric::Peer {
  Peer(PeerId number, std::atomic<std::uint32_t>& with_backlog) : id(number), with_backlog_(with_backlog) {}

  const PeerId id;
  Transport* transport = nullptr;
  std::vector<std::byte> address;
  std::string why;  ///< the reason for this path

  std::atomic<Errc> down{Errc::ok};
  std::atomic<Channel*> channel{nullptr};
  std::unique_ptr<Channel> channel_owner;
  std::atomic<bool> has_backlog{false};
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

  std::atomic<std::uint32_t>& with_backlog_;  ///< counts the peers that have one
  std::deque<Waiting> backlog_;
  std::string down_reason_;
  std::string connect_failure_;
};

/// Drains the backlogs of all peers as part of progress.
class Fabric::Backlog final : public ProgressSource {
 public:
  Backlog(const std::vector<std::unique_ptr<Peer>>& peers, const std::atomic<std::uint32_t>& with_backlog)
      : peers_(peers), with_backlog_(with_backlog) {}

  int progress(int budget) noexcept override;
  int wait_descriptor() const noexcept override { return -1; }
  bool prepare_sleep() noexcept override { return true; }
  /// Room appears without a ring (the peer just reads on), so a backlog is looked at often.
  Deadline::Clock::time_point next_deadline() const noexcept override;

 private:
  const std::vector<std::unique_ptr<Peer>>& peers_;
  const std::atomic<std::uint32_t>& with_backlog_;  ///< mostly 0: then no peer is looked at
};

}  // namespace fabric
}  // namespace dtr::inline v0
