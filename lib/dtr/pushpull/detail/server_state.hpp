// What a Server keeps between calls: rounds that are not whole yet, requests that are not answered, memory that it was
// given.
#pragma once

#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "dtr/pushpull/detail/one_thread.hpp"
#include "dtr/pushpull/detail/server_core.hpp"
#include "dtr/pushpull/detail/user_memory.hpp"
#include "dtr/pushpull/server.hpp"

namespace dtr::inline v0 {
namespace pushpull {

/// One worker's round: its fragments in order.
struct Gathered {
  std::uint64_t seq = 0;
  int worker = 0;
  bool spoilt = false;  ///< the worker gave it up
  std::uint32_t seen = 0;
  std::int64_t expires_ns = std::numeric_limits<std::int64_t>::max();  ///< its worker's patience ends soon after
  std::vector<ServerFragment*> fragments{};

  [[nodiscard]] bool complete() const noexcept { return !fragments.empty() && seen == fragments.size(); }
};

/// Memory in which the pushes of some workers land.
struct ReceiveBuffer {
  std::span<const std::byte> memory{};
  UserMemory::Place place{};
  std::vector<std::pair<int, std::uint64_t>> chunks{};  ///< worker and key, in the order of the memory
};

}  // namespace pushpull

struct Server::State {
  State(Runtime& runtime, const ServerOptions& options)
      : memory(runtime), core(runtime, options.group, "serve"), waiting(static_cast<std::size_t>(core.workers())) {}

  Result<void> enter(const pushpull::OneThread::Visit& visit) const {
    if (auto good = visit.check("serve"); !good) return good;
    return core.check_fork();
  }

  Result<void> flush(Deadline deadline);
  void gather();
  void finish(const pushpull::Gathered& round, const Error* error);
  std::optional<Error> dead_worker();
  void turn_away_stragglers();
  std::optional<std::uint64_t> oldest_round() const;
  std::optional<Error> spoilt(std::uint64_t number);
  bool whole(std::uint64_t number) const;
  Result<bool> next_batch(std::vector<Request>& batch);
  Request open(pushpull::Gathered round);
  Result<std::map<std::uint64_t, pushpull::Gathered>::iterator> find(RequestHandle request);
  Result<void> check_sizes(const pushpull::Gathered& round, std::span<const PushView> tensors) const;
  Result<pushpull::UserMemory::Place> place_of(const PushView& tensor, pushpull::ServerFragment*& from);
  Error still_missing() const;

  Result<void> register_buffer(std::span<std::byte> buffer, std::span<const int> ranks,
                               std::span<const std::uint64_t> keys);
  Result<void> unregister_buffer(std::span<const std::byte> buffer, Deadline deadline);

  pushpull::UserMemory memory;  ///< ends after the core, which writes and reads there
  pushpull::ServerCore core;
  pushpull::OneThread door;
  std::vector<pushpull::ServerFragment*> arrived;
  std::vector<std::map<std::uint64_t, pushpull::Gathered>> waiting;  ///< by worker, then by number of the round
  std::map<std::uint64_t, pushpull::Gathered> requests;              ///< handed out, by handle
  std::vector<pushpull::UserMemory::Place> held;                     ///< memory of answers under way
  std::uint64_t next_request = 1;
  std::uint64_t next_number = 0;             ///< of a round: all below have been handed out or ended by get_batch
  std::map<std::uint64_t, Error> ended_ill;  ///< for those whose part of such a round comes later
  std::vector<pushpull::ReceiveBuffer> buffers;
  std::int64_t wake_ns = 0;  ///< when next_batch wants to look again
};

}  // namespace dtr::inline v0
