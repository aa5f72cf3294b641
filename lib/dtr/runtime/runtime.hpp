// The one object that a program makes first and every service takes.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "dtr/base/config.hpp"
#include "dtr/base/deadline.hpp"
#include "dtr/base/error.hpp"
#include "dtr/base/metrics.hpp"
#include "dtr/base/trace.hpp"
#include "dtr/bootstrap/bootstrap.hpp"
#include "dtr/bootstrap/host.hpp"
#include "dtr/fabric/fabric.hpp"
#include "dtr/memory/buffer.hpp"
#include "dtr/runtime/group.hpp"

namespace dtr::inline v0 {

struct RuntimeOptions {
  /// The last `servers` ranks serve only, all others are workers.
  int servers = 0;
  /// Every rank is worker and server at once; excludes `servers`.
  bool colocated = false;
  /// Ranks to work with; null = MPI_COMM_WORLD. See mpi_bootstrap(comm) and local_bootstraps(n).
  std::unique_ptr<Bootstrap> bootstrap{};
  ConfigOptions config{};
  /// Ways to other ranks in place of those of this build, for tests with devices of their own; empty = as built.
  std::vector<fabric::TransportFactory> transports{};
};

/// Which roles a barrier waits for.
struct BarrierOptions {
  bool servers = true;
  bool workers = true;
};

/// Ranks, roles, data paths, memory, and the control path between ranks. Any thread; making and finalizing are
/// collective over all ranks.
class Runtime final : public Group {
 public:
  /// Throws the Exception of what init returns.
  explicit Runtime(RuntimeOptions options = {});

  /// Errors: config_error, invalid_argument (no worker would be left), unreachable, mpi_error.
  [[nodiscard]] static Result<std::unique_ptr<Runtime>> init(RuntimeOptions options = {});

  /// Finalizes until end_deadline(); what goes wrong then is logged.
  ~Runtime() override;
  Runtime(const Runtime&) = delete;
  Runtime& operator=(const Runtime&) = delete;

  // --- ranks and roles ---

  [[nodiscard]] int rank() const noexcept override { return rank_; }
  [[nodiscard]] int size() const noexcept override { return size_; }
  [[nodiscard]] const HostPlace& place() const noexcept { return place_; }

  [[nodiscard]] bool is_worker() const noexcept { return worker_index() >= 0; }
  [[nodiscard]] bool is_server() const noexcept { return server_index() >= 0; }
  [[nodiscard]] int workers() const noexcept { return workers_; }
  [[nodiscard]] int servers() const noexcept { return servers_; }
  /// Dense number among the ranks of the role, -1 = not of that role.
  [[nodiscard]] int worker_index() const noexcept;
  [[nodiscard]] int server_index() const noexcept;
  /// Rank of the i-th worker or server.
  [[nodiscard]] int worker_rank(int worker) const noexcept { return worker; }
  [[nodiscard]] int server_rank(int server) const noexcept { return colocated_ ? server : workers_ + server; }

  // --- all together ---

  /// Returns once every rank of the named roles has come.
  /// Errors: invalid_argument (this rank is of none of them), timed_out and peer_failed (naming who is missing).
  [[nodiscard]] Result<void> barrier(BarrierOptions roles, Deadline deadline);
  [[nodiscard]] Result<void> barrier(BarrierOptions roles = {});

  [[nodiscard]] Result<std::vector<Bytes>> allgather(std::string_view topic, std::span<const std::byte> mine,
                                                     Deadline deadline) override;

  /// The workers, or the servers, as a group of their own: rank in it = worker_index(), server_index(). For services
  /// that only one role uses. Error: invalid_argument (this rank is not of that role).
  [[nodiscard]] Result<std::unique_ptr<Group>> worker_group();
  [[nodiscard]] Result<std::unique_ptr<Group>> server_group();

  // --- memory ---

  /// Registered, 4 KiB aligned, mappable by ranks of this host; from a pool that merges and grows.
  /// Errors: invalid_argument (0 bytes), resource_exhausted.
  [[nodiscard]] Result<Buffer> allocate(std::size_t bytes);

  // --- liveness ---

  /// Tells the ranks that watch this one that it lives. With progress.mode = thread the thread does so by itself. With
  /// inline silence is held against a rank only from its first call on: it promises a heartbeat, a wait or progress()
  /// within each runtime.heartbeat_timeout_ms. Any thread, callbacks too; waits for nobody.
  /// Errors: fenced (the others have declared this rank failed), closed, forked.
  [[nodiscard]] Result<void> heartbeat();

  // --- stopping ---

  /// Asks this rank to stop soon. Async-signal-safe: an application calls it from its own handler.
  void request_stop() noexcept { stop_requested_.store(true, std::memory_order_relaxed); }
  [[nodiscard]] bool stop_requested() const noexcept { return stop_requested_.load(std::memory_order_relaxed); }

  /// Ends the work with everybody: waits for all ranks, says goodbye, gives back what MPI holds. Safe when peers are
  /// dead: then it says who, and leaves MPI alone. Errors: peer_failed, timed_out, would_deadlock.
  [[nodiscard]] Result<void> finalize(Deadline deadline);
  [[nodiscard]] Result<void> finalize();

  /// Prints the Error to stderr with the rank; returns 1, for `return rt.fail(error);` in main.
  int fail(const Error& error) const;

  // --- for services and tools ---

  [[nodiscard]] const Config& config() const noexcept { return config_; }
  [[nodiscard]] fabric::Fabric& fabric() noexcept { return *fabric_; }
  [[nodiscard]] MetricsRegistry& metrics() noexcept { return metrics_; }
  [[nodiscard]] Tracer* tracer() noexcept { return tracer_.get(); }  ///< null = off
  [[nodiscard]] std::chrono::milliseconds operation_timeout() const noexcept { return operation_timeout_; }

  /// For one-sided transfers of `bytes` that begin now and have no deadline of their own: transfer.timeout_s, and while
  /// that is not set 1 s more for each GB.
  [[nodiscard]] Deadline transfer_deadline(std::uint64_t bytes) const;

  /// A port that is the same on every rank: each service kind has one, groups of it count up from there.
  /// Errors: already_exists, out_of_range.
  [[nodiscard]] Result<fabric::Port> service_port(std::string_view service, int group = 0) const;

  /// One look at everything; only needed with progress.mode = inline. True if something was handled.
  bool progress() noexcept { return fabric_->progress().poll(); }

  /// What is left of timeout.finalize_ms for all that ends with this Runtime: from now, less what ends have waited in
  /// vain just before.
  [[nodiscard]] Deadline end_deadline() const noexcept;

  /// The first peer known to be dead, or ok. Error `fenced`: the others have declared this rank failed.
  [[nodiscard]] Result<void> check_peers() const;

 private:
  friend class EndWait;
  class Control;
  class Pool;
  class RoleGroup;
  struct Prepared;

  void refresh_metrics();
  [[nodiscard]] std::chrono::nanoseconds waited_in_vain() const noexcept;
  void add_vain_wait(std::chrono::nanoseconds waited) noexcept;
  /// With vain_mutex_.
  [[nodiscard]] std::chrono::nanoseconds recent_vain(Deadline::Clock::time_point now) const noexcept;
  explicit Runtime(Prepared prepared);
  [[nodiscard]] static Result<Prepared> prepare(RuntimeOptions options);
  [[nodiscard]] static Result<void> prepare_alone(const RuntimeOptions& options, Prepared& made);

  Config config_;
  MetricsRegistry metrics_;
  Histogram& barrier_ns_;
  std::unique_ptr<MetricsWriter> metrics_writer_;
  std::unique_ptr<Tracer> tracer_;
  std::unique_ptr<Bootstrap> world_;
  std::unique_ptr<Bootstrap> role_group_;  ///< workers among workers, servers among servers; null if colocated
  std::unique_ptr<fabric::Fabric> fabric_;
  std::unique_ptr<Control> control_;
  std::shared_ptr<Pool> pool_;
  HostPlace place_{};
  int rank_ = 0;
  int size_ = 1;
  int workers_ = 1;
  int servers_ = 0;
  bool colocated_ = false;
  std::chrono::milliseconds operation_timeout_{};
  std::chrono::nanoseconds transfer_timeout_{};
  bool transfer_timeout_grows_ = true;
  std::atomic<bool> stop_requested_{false};
  std::atomic<bool> finalized_{false};
  mutable std::mutex vain_mutex_;
  std::chrono::nanoseconds vain_{};          ///< waited in vain by EndWaits, not long before
  Deadline::Clock::time_point last_vain_{};  ///< this: the end of the last such wait
};

/// One wait of a service that ends. A wait that comes to its deadline has been in vain: its time is taken from what all
/// later ones together may wait, so that the whole end takes timeout.finalize_ms at most. A quarter is the Runtime's
/// own.
class EndWait {
 public:
  /// At most so long, and at most as long as the others have left.
  EndWait(Runtime& runtime, std::chrono::nanoseconds most) noexcept;
  ~EndWait();
  EndWait(const EndWait&) = delete;
  EndWait& operator=(const EndWait&) = delete;

  [[nodiscard]] const Deadline& deadline() const noexcept { return deadline_; }

 private:
  Runtime& runtime_;
  Deadline::Clock::time_point started_;
  Deadline deadline_;
};

}  // namespace dtr::inline v0
