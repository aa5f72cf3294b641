// The worker's side of push_pull: tensors go to servers by key, results come back into the caller's memory.
#pragma once

#include <chrono>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <vector>

#include "dtr/base/deadline.hpp"
#include "dtr/base/error.hpp"
#include "dtr/pushpull/tensor.hpp"
#include "dtr/runtime/runtime.hpp"

namespace dtr::inline v0 {

/// Which servers a key goes to.
enum class Route : std::uint8_t {
  partition,  ///< key k lives on server k mod servers: number keys 0, 1, 2... to spread them evenly
  broadcast,  ///< every push goes to every server; the pulls are a server-major list: first all of server 0, ...
};

struct WorkerOptions {
  int group = 0;  ///< keys are private to a group; Workers and Servers of one group talk to each other
  Route route = Route::partition;
};

/// Names one push_pull. Good until 1,024 more have been started.
struct RoundHandle {
  std::uint32_t index = 0;
  std::uint32_t generation = 0;
  friend bool operator==(const RoundHandle&, const RoundHandle&) = default;
};

/// When what happened to a round, in ns. The worker's own stamps are in its clock, the server's in the server's.
struct RoundTrace {
  int server = 0;
  std::int64_t started = 0;  ///< push_pull was called
  std::int64_t posted = 0;   ///< data and description were handed to the fabric
  std::int64_t server_received = 0;
  std::int64_t server_processed = 0;
  std::int64_t server_responded = 0;
  std::int64_t answered = 0;  ///< the response was handled here
};

/// One thread at a time. Needs a server for each key to answer: a Reducer, or a program's own Server.
///
/// Memory: pushes are read and pulls written behind the caller's back until wait() has returned for the round. Memory
/// that no Buffer holds is registered when it is first used, and stays so until forget() or the Worker's end.
class Worker {
 public:
  static constexpr auto kDefaultTimeout = std::chrono::seconds(10);

  /// Throws Exception: invalid_argument (this rank is no worker, or there are no servers), already_exists (a second
  /// Worker of the group on this rank).
  explicit Worker(Runtime& runtime, WorkerOptions options = {});
  /// Says goodbye to the servers, after timeout.operation_ms at most for what is open.
  ~Worker();
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  /// Starts a round; returns at once. A key's tensor may change from round to round, in place and in size.
  /// Errors: invalid_argument (no entry, an entry without tensor, a key twice, overlapping pulls, a pull list that
  /// the servers do not divide), busy (1,024 rounds are open), overlap and resource_exhausted (registration),
  /// peer_failed and peer_left (a server that is gone).
  [[nodiscard]] Result<RoundHandle> push_pull(std::span<const PushPull> tensors);
  [[nodiscard]] Result<RoundHandle> push_pull(std::initializer_list<PushPull> tensors) {
    return push_pull(std::span(tensors.begin(), tensors.size()));
  }

  /// Until all pulls are in place and all pushes are taken. Waiting again gives the same result.
  /// Errors: timed_out (names the servers that have not answered; the round goes on, wait again), peer_failed (names
  /// the rank that died, be it a server or another worker), what the server answered, stale_handle, cancelled.
  [[nodiscard]] Result<void> wait(RoundHandle round, Deadline deadline = kDefaultTimeout);

  /// What has not been sent is not sent any more; the round ends with `cancelled`. Its memory may still be used until
  /// quiesce() has returned.
  Result<void> cancel(RoundHandle round);

  /// Until nothing reads or writes the round's memory. Errors: busy (at the deadline), stale_handle.
  [[nodiscard]] Result<void> quiesce(RoundHandle round, Deadline deadline = kDefaultTimeout);

  /// One entry for each server that the round went to. Errors: stale_handle, busy (not done).
  [[nodiscard]] Result<std::vector<RoundTrace>> trace(RoundHandle round) const;

  /// Gives back registrations that the Worker made for this memory. Errors: busy.
  [[nodiscard]] Result<void> forget(ConstTensor memory);

 private:
  class Machine;
  std::unique_ptr<Machine> machine_;
};

}  // namespace dtr::inline v0
