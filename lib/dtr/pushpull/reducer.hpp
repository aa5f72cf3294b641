// A server that sums: each key of a round from all workers, in the order of their ranks, and answers everybody.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>

#include "dtr/base/deadline.hpp"
#include "dtr/base/error.hpp"
#include "dtr/runtime/runtime.hpp"

namespace dtr::inline v0 {

enum class ReduceOp : std::uint8_t { sum };

struct ReducerOptions {
  int group = 0;  ///< as in WorkerOptions
  ReduceOp op = ReduceOp::sum;
};

/// The answer to a key is ((w0 + w1) + w2) + ... over the workers that push it in this round, in rank order: the same
/// bits whatever arrives first, over any transport, with any number of servers. f32, f64 and integers of 32 and 64 bits
/// are added as they are; f16 and bf16 in f32, rounded once at the end; other types are `unsupported`. Every worker
/// lists a key of the round, to push, to pull or both; else those that do get an Error that names who does not. One
/// thread at a time; must end before its Runtime.
class Reducer {
 public:
  /// From now on workers can bind their keys. Throws Exception: invalid_argument (not a server), out_of_range (group),
  /// already_exists (the group has a Server or Reducer in this Runtime).
  explicit Reducer(Runtime& runtime, const ReducerOptions& options = {});
  /// After start: waits for the workers' goodbyes (2 s at most). Rounds that are open then end with `closed`.
  ~Reducer();
  Reducer(const Reducer&) = delete;
  Reducer& operator=(const Reducer&) = delete;

  /// Serves on this thread until every worker has ended its Worker. Called again, it serves their next Workers.
  /// Errors: peer_failed (a worker died: the others have been told, nothing is served any more), timed_out.
  [[nodiscard]] Result<void> serve(Deadline deadline = std::chrono::hours(24 * 365));

  /// Serves beside whatever this rank does: sums are made by progress, that is by the progress thread or by whoever
  /// waits in this process. For ranks that are workers too. Errors: already_exists.
  [[nodiscard]] Result<void> start();

  /// After start: returns when every worker has ended its Worker. Errors: as serve.
  [[nodiscard]] Result<void> join(Deadline deadline);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace dtr::inline v0
