// Checkpoints of a job: saved in the background, found again after any crash, on any number of ranks.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dtr/base/deadline.hpp"
#include "dtr/base/error.hpp"
#include "dtr/checkpoint/checkpoint.hpp"
#include "dtr/checkpoint/tensor.hpp"
#include "dtr/checkpoint/ticket.hpp"
#include "dtr/runtime/group.hpp"

namespace dtr::inline v0 {

class Config;

/// How far a save is on this rank.
struct SaveProgress {
  std::uint64_t step = 0;
  std::string_view stage{};  ///< "begin", "write", "ready", then on rank 0 "manifest", "commit", "retire"; "done"
  std::uint64_t bytes_written = 0;
  std::uint64_t bytes_total = 0;  ///< that this rank writes
};

struct CheckpointOptions {
  std::string path{};             ///< folder that all ranks share; made by the first save
  std::uint64_t keep_last_n = 5;  ///< complete steps that stay after a save; 0 = all
  /// Memory that save_async copies into, taken and touched at construction. 0 = as much as the largest save needs,
  /// taken when it comes (that save waits for the system to clear the pages). Twice a save's bytes = two in flight.
  std::uint64_t staging_bytes = 0;
  int writers = 2;        ///< threads that checksum and write, at most 256
  bool direct_io = true;  ///< large tensors past the page cache, where the file system can
  std::chrono::milliseconds staging_timeout = std::chrono::seconds(60);  ///< save_async: wait for staging memory
  std::chrono::milliseconds save_timeout = std::chrono::minutes(10);     ///< one save in the background
  std::chrono::milliseconds close_timeout = std::chrono::seconds(60);    ///< destructor: finish what is in flight
  std::uint64_t interval_steps = 1000;                                   ///< what due() goes by; 0 = never
  /// Called on libdtr's threads, several at a time. Must not wait for a Ticket, and should return soon.
  std::function<void(const SaveProgress&)> progress{};

  /// The rows checkpoint.* of the configuration. Error: unsupported (compression, or a storage.backend that this
  /// version cannot write to).
  [[nodiscard]] static Result<CheckpointOptions> from(const Config& config);
};

/// Saves and loads are collective over the group: every rank makes the same calls in the same order. Any thread, but
/// two threads of a rank that both save have to agree on their order with the other ranks. The group outlives the
/// manager. One manager a path and job; a second job that saves to the path gets `busy`.
///
/// On disk a step is a folder `step_000001000` with one HDF5 file a rank (rank_00000.h5 ...), manifest.json (the truth:
/// positions and checksums) and index.h5 (every tensor whole, for h5py and h5dump). It appears under its name when all
/// of it is durable, and not before; at any moment a crash leaves the newest complete step loadable.
class CheckpointManager {
 public:
  /// Touches no file yet. Throws Exception: invalid_argument (options), resource_exhausted (memory, threads).
  CheckpointManager(Group& group, CheckpointOptions options);

  /// Finishes the saves in flight, or cancels what has not begun writing when close_timeout has passed. A round with
  /// the other ranks that is under way ends at save_timeout at the latest.
  ~CheckpointManager();
  CheckpointManager(const CheckpointManager&) = delete;
  CheckpointManager& operator=(const CheckpointManager&) = delete;

  /// Collective. Copies the tensors and returns; the rest is in the background, and the caller's memory is free again.
  /// A rank that holds nothing passes nothing. Every tensor has to be whole over all ranks, each element once (or
  /// marked replicated, and then passed by all). If a rank's call fails, the tickets of all others get its Error.
  /// Errors here: invalid_argument, already_exists (a name twice), out_of_range (box), resource_exhausted, busy (no
  /// staging memory in time). Errors of the ticket: already_exists (the step is there and intact), no_space,
  /// permission_denied, overlap, invalid_argument (the ranks' tensors do not fit together, with names), busy,
  /// timed_out, peer_failed...
  [[nodiscard]] Result<Ticket> save_async(std::uint64_t step, std::span<const TensorView> tensors);
  [[nodiscard]] Result<Ticket> save_async(std::uint64_t step, std::initializer_list<TensorView> tensors);

  /// Whether the training loop should save at this step: every interval_steps, not at step 0. A manager saves whatever
  /// it is told to.
  [[nodiscard]] bool due(std::uint64_t step) const noexcept;

  /// save_async and wait.
  [[nodiscard]] Result<void> save(std::uint64_t step, std::span<const TensorView> tensors, Deadline deadline);
  [[nodiscard]] Result<void> save(std::uint64_t step, std::initializer_list<TensorView> tensors, Deadline deadline);

  /// Collective. The newest step whose every byte verifies (the ranks share the work); the reasons why newer ones were
  /// passed over are logged and in Checkpoint::skipped(). The same step on all ranks, however many saved it.
  /// Errors: not_found (no step at all), corrupt (there are some, none intact), timed_out, peer_failed...
  [[nodiscard]] Result<Checkpoint> load_latest(Deadline deadline);

  /// The same, and fills this rank's targets on the way: what they read is all that is verified, so every byte is read
  /// once. Ranks may have different targets. Errors also: those of Checkpoint::read.
  [[nodiscard]] Result<Checkpoint> load_latest(std::span<const TensorTarget> targets, Deadline deadline);
  [[nodiscard]] Result<Checkpoint> load_latest(std::initializer_list<TensorTarget> targets, Deadline deadline);

  /// Collective. That step, verified in full. Errors: not_found, corrupt, truncated...
  [[nodiscard]] Result<Checkpoint> load(std::uint64_t step, Deadline deadline);

  /// This rank's view, without the others: steps with a valid manifest and files of the right size, ascending.
  [[nodiscard]] Result<std::vector<std::uint64_t>> steps() const;

  /// The last of steps(). Error: not_found.
  [[nodiscard]] Result<std::uint64_t> latest() const;

  /// Reads every byte of a step, on this rank alone. Errors: not_found, corrupt, truncated (each naming what),
  /// timed_out.
  [[nodiscard]] Result<void> verify(std::uint64_t step, Deadline deadline) const;

 private:
  class Implementation;
  std::unique_ptr<Implementation> self_;
};

}  // namespace dtr::inline v0
