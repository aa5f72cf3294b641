// The worker's side of push_pull: tensors go out under their keys, the servers' answers come back.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "dtr/base/deadline.hpp"
#include "dtr/base/error.hpp"
#include "dtr/pushpull/round_trace.hpp"
#include "dtr/pushpull/views.hpp"
#include "dtr/runtime/runtime.hpp"

namespace dtr::inline v0 {

namespace pushpull {
class WorkerCore;
}

enum class Route : std::uint8_t {
  partition,  ///< each key has one server, the same for all workers; its push goes there and its answer comes from
              ///< there
  broadcast,  ///< every server gets every push; the pulls are listed server by server
};

struct WorkerOptions {
  int group = 0;  ///< workers and servers of different groups do not see each other; 0 to 31
  Route route = Route::partition;
  /// Tensors are cut into equal parts of at most this many bytes, spread over all servers and answered one by one; into
  /// one for each server at least, as long as a part has 64 KiB. For Reducers, who sum each part as it comes: 512 KiB
  /// is a good size. A multiple of 64; 0 = never. Same on all workers.
  std::uint64_t split_bytes = 0;
  std::uint32_t rounds = 256;  ///< rounds that may be open or asked about; older handles are stale
};

/// A round, or one tensor of it. Valid until `WorkerOptions::rounds` rounds later.
struct RoundHandle {
  std::uint64_t round = 0;
  std::uint32_t part = 0;  ///< 0 = the whole round; else 1 + index among its push and then its pull tensors

  friend bool operator==(const RoundHandle&, const RoundHandle&) = default;
};

/// One thread at a time (a second one at the same time gets invalid_argument); must end before its Runtime.
///
/// Memory that is pushed or pulled is registered on first use and stays so until unbind, forget or the end of the
/// Worker: forget memory that is freed earlier.
class Worker {
 public:
  /// Throws Exception: invalid_argument (not a worker, no servers), out_of_range (group), already_exists (the group
  /// has a Worker in this Runtime).
  explicit Worker(Runtime& runtime, const WorkerOptions& options = {});
  /// Waits for open rounds (2 s at most), then tells the servers that this worker is done.
  ~Worker();
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  /// Starts a round and returns; the tensors stay untouched until it has ended. The n-th round of every worker is
  /// answered together. At its deadline (default: timeout.operation_ms from now) the round ends with timed_out. A key
  /// keeps the size it has first until unbind; its memory may be another one each time. Errors, with nothing started:
  /// invalid_argument (empty, a key twice, a size that differs from the key's, with key and both sizes), overlap, busy
  /// (too many rounds are open), closed, or the failure of a server that it needs.
  [[nodiscard]] Result<RoundHandle> push_pull(std::span<const PushPull> tensors,
                                              std::optional<Deadline> deadline = std::nullopt);
  [[nodiscard]] Result<RoundHandle> push_pull(std::initializer_list<PushPull> tensors,
                                              std::optional<Deadline> deadline = std::nullopt) {
    return push_pull(std::span(tensors.begin(), tensors.size()), deadline);
  }

  /// The same with separate lists. Route broadcast: `pulls` has as many tensors for each server, those of the first
  /// server first.
  [[nodiscard]] Result<RoundHandle> push_pull(std::span<const PushView> pushes,
                                              std::span<const std::uint64_t> push_keys, std::span<const PullView> pulls,
                                              std::span<const std::uint64_t> pull_keys,
                                              std::optional<Deadline> deadline = std::nullopt);

  /// Returns when the round has ended; again and again the same. timed_out names the servers that have not answered, or
  /// the workers that a server has not heard of. Before the round's own deadline it goes on: wait again, or cancel.
  /// Errors also: peer_failed, peer_left, cancelled, closed, stale_handle, what a server answered.
  [[nodiscard]] Result<void> wait(RoundHandle handle, Deadline deadline);
  [[nodiscard]] Result<void> wait(RoundHandle handle);  ///< 10 s

  /// True once it has ended, well or not. Errors: stale_handle.
  [[nodiscard]] Result<bool> done(RoundHandle handle);

  /// Ends the round with `cancelled`; the other workers' rounds that needed it get an Error. A server may still be
  /// writing the answer: see quiesce. Errors: stale_handle.
  [[nodiscard]] Result<void> cancel(RoundHandle handle);

  /// Returns when nothing of the round can touch this worker's memory any more; needed after a failure only, before the
  /// tensors are used again. `force`: after half of the time, silent servers lose the right to write into its tensors,
  /// and a server that has not even taken the data is given up; other rounds that share these tensors are cancelled.
  /// Errors: busy (at the deadline: a server was stopped inside of a copy, or the tensors are in memory of the pool).
  [[nodiscard]] Result<void> quiesce(RoundHandle handle, Deadline deadline, bool force = false);

  /// A handle for each push tensor and then each pull tensor of the round. Errors: stale_handle.
  [[nodiscard]] Result<std::vector<RoundHandle>> handles(RoundHandle handle) const;

  /// Where the time of a round went, a row for each message to a server. Errors: stale_handle, again (not ended).
  [[nodiscard]] Result<std::vector<RoundTrace>> trace(RoundHandle handle) const;

  /// Forgets keys, so that they can have another size; their slots at the servers are given back.
  /// Errors: not_found, busy (an open round uses one, or other workers still read its last sum after 2 s).
  [[nodiscard]] Result<void> unbind(std::span<const std::uint64_t> keys);

  /// Ends the registration of memory that is about to be freed. Errors: busy (an open round uses it).
  [[nodiscard]] Result<void> forget(std::span<const std::byte> memory);

 private:
  std::unique_ptr<pushpull::WorkerCore> core_;
};

}  // namespace dtr::inline v0
