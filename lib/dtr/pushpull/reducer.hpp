// A server that sums what the workers push and answers all of them with the sums.
#pragma once

#include <memory>

#include "dtr/pushpull/server.hpp"

namespace dtr::inline v0 {

enum class ReduceOp : std::uint8_t { sum };

struct ReducerOptions {
  ReduceOp op = ReduceOp::sum;
  int group = 0;
};

/// Adds f32 tensors in worker order, ((w0 + w1) + w2) + ...: the same bits whatever the order of arrival, the
/// transport, and the number of servers. Every worker pushes the same keys with the same sizes in its n-th round, and
/// may pull any of them.
class Reducer {
 public:
  /// Throws Exception: as Server.
  explicit Reducer(Runtime& runtime, ReducerOptions options = {});
  /// Stops a serving thread; the workers' open rounds then end with `closed`.
  ~Reducer();
  Reducer(const Reducer&) = delete;
  Reducer& operator=(const Reducer&) = delete;

  /// Serves until every worker has said goodbye. Errors: peer_failed and peer_left (naming the worker; the other
  /// workers' rounds have got the same Error), resource_exhausted. A round whose tensors do not fit together is
  /// refused at all workers, naming key and sizes, and serving goes on.
  [[nodiscard]] Result<void> serve();

  /// Serves on a thread of its own, for ranks that are worker and server at once.
  [[nodiscard]] Result<void> start();
  /// The outcome of start()'s thread; waits for it. Errors also: timed_out.
  [[nodiscard]] Result<void> join(Deadline deadline);

  /// Rounds answered so far.
  [[nodiscard]] std::uint64_t rounds() const noexcept;

 private:
  class Machine;
  std::unique_ptr<Machine> machine_;
};

}  // namespace dtr::inline v0
