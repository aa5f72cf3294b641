// How the ranks of a job find each other: rank and size, one exchange of small blobs, barriers. Nothing else uses MPI.
#pragma once

#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "dtr/base/deadline.hpp"
#include "dtr/base/error.hpp"

namespace dtr::inline v0 {

/// A set of ranks that started together. Calls are collective: every rank makes the same calls in the same order.
/// barrier may be called by any thread, the rest by one thread at a time; MPI is called on the caller's thread and on
/// no other. In a child of fork every call is `forked` and the destructor does nothing.
class Bootstrap {
 public:
  /// Called over and over while a barrier waits, without locks held; an Error ends the wait and is returned.
  using Poll = std::function<Result<void>()>;

  virtual ~Bootstrap() = default;

  [[nodiscard]] virtual int rank() const noexcept = 0;
  [[nodiscard]] virtual int size() const noexcept = 0;

  /// Everybody's blob, by rank; sizes may differ. For start-up only, while all ranks live.
  /// Errors: resource_exhausted (all blobs together exceed 2 GiB - 1), timed_out (later calls are `closed`), mpi_error.
  [[nodiscard]] virtual Result<std::vector<std::vector<std::byte>>> exchange(
      std::span<const std::byte> mine, Deadline deadline = std::chrono::minutes(2)) = 0;

  /// The ranks that named the same colour, in rank order; null for a colour below zero. For start-up only.
  [[nodiscard]] virtual Result<std::unique_ptr<Bootstrap>> split(int color,
                                                                 Deadline deadline = std::chrono::minutes(2)) = 0;

  /// Returns once every rank has come. The n-th barrier of each rank meets the n-th of all others, also if a wait was
  /// given up before: what was given up is progressed by the next call.
  /// Errors: timed_out, what `poll` returned, unsupported (MPI below SERIALIZED, not the main thread), mpi_error.
  [[nodiscard]] virtual Result<void> barrier(Deadline deadline, const Poll& poll = {}) = 0;

  /// Gives the communicator back if everyone is alive and no barrier is open, and ends MPI if libdtr started it and
  /// nothing else of libdtr uses it. With a dead peer nothing is given back and MPI is not ended: it would hang.
  /// Calls after it are `closed`; a second finalize does nothing. Destroying without finalize counts as a dead peer.
  /// Errors: busy (a barrier is open), timed_out (not all ranks came to the end of MPI), mpi_error.
  virtual Result<void> finalize(bool everyone_alive, Deadline deadline = std::chrono::seconds(30)) = 0;

  /// What to do if the application calls MPI_Finalize before finalize: runs on its thread, with MPI still working.
  /// One callback; the last one set counts; forgotten by finalize and by the destructor.
  virtual void on_mpi_finalize(std::function<void()> callback) = 0;
};

/// All ranks of MPI_COMM_WORLD. Starts MPI (asking for MPI_THREAD_SERIALIZED) if nobody has; collective.
/// Errors: unsupported (MPI has ended in this process, or lets only its main thread call and this is another),
/// mpi_error, timed_out.
[[nodiscard]] Result<std::unique_ptr<Bootstrap>> world_bootstrap(Deadline deadline = std::chrono::minutes(2));

}  // namespace dtr::inline v0
