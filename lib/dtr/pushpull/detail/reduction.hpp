// What a Reducer does with fragments: finds the same part of the same round from all workers, sums it, answers.
#pragma once

#include <cstdint>
#include <deque>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "dtr/base/metrics.hpp"
#include "dtr/pushpull/detail/server_core.hpp"

namespace dtr::inline v0 {
namespace pushpull {

/// One thread at a time.
class Reduction {
 public:
  Reduction(ServerCore& core, MetricsRegistry& metrics);

  /// Does all that can be done now. Error: a worker is dead; then everything has been answered with it.
  [[nodiscard]] Result<void> work();

  /// When work() should be called although nothing came, in ns of our clock: a round runs out of time then.
  [[nodiscard]] std::int64_t wake_ns() const noexcept { return wake_ns_; }

  /// Goodbyes that every worker has said.
  [[nodiscard]] std::uint64_t sessions() const noexcept { return sessions_; }

 private:
  static constexpr std::int64_t kNever = std::numeric_limits<std::int64_t>::max();

  /// What one worker has to do with a part.
  struct Share {
    ServerFragment* pushed = nullptr;
    ServerFragment* pulled = nullptr;
    std::uint32_t push = 0;  ///< index in the fragment
    std::uint32_t pull = 0;
    bool whole = false;  ///< no other entry of this worker is to come
  };
  /// A part in one round.
  struct Cell {
    std::uint64_t seq = 0;
    PartId part{};
    std::uint32_t whole = 0;  ///< shares that are
    std::vector<Share> shares{};
  };
  /// One round of all workers.
  struct Round {
    std::vector<std::uint32_t> seen{};  ///< fragments by worker
    std::uint32_t complete = 0;         ///< workers of whom all fragments are here
    std::int64_t expires_ns = kNever;   ///< the first worker's patience ends soon after
    std::optional<Error> spoilt{};      ///< it will not be whole
    std::vector<Cell*> cells{};         ///< not reduced yet
  };

  void accept(ServerFragment& fragment);
  Cell& cell_of(std::uint64_t seq, const PartId& part, Round& round);
  void enter_share(Cell& cell, ServerFragment& fragment, bool whole);
  void reduce(Cell& cell, Round& round);
  [[nodiscard]] std::optional<Error> why_not(const Cell& cell) const;
  void fail_cell(Cell& cell, Round& round, const Error& error);
  void settle(ServerFragment& fragment);
  void retire(Cell& cell, Round& round);
  void fail_open_cells(Round& round, const Error& error);
  [[nodiscard]] Error gave_up(int worker) const;
  [[nodiscard]] Error left_out(const Cell& cell) const;
  [[nodiscard]] Error not_come(const Round& round) const;
  void end_rounds();
  Result<void> check_workers();

  ServerCore& core_;
  Counter& parts_;
  Counter& bytes_;
  std::uint64_t sessions_ = 0;
  std::int64_t wake_ns_ = kNever;
  std::optional<Error> broken_{};
  std::vector<ServerFragment*> arrived_;
  std::map<std::uint64_t, Round> rounds_;
  std::vector<std::map<std::uint64_t, Round>::node_type> idle_rounds_;
  std::unordered_map<PartId, std::vector<Cell*>, PartIdHash> parts_open_;
  std::deque<Cell> cells_;
  std::vector<Cell*> idle_cells_;
  std::vector<Cell*> ready_;
  std::vector<const std::byte*> operands_;
  std::vector<std::byte*> places_;
};

}  // namespace pushpull
}  // namespace dtr::inline v0
