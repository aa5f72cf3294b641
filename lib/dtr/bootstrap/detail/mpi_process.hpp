// MPI as a whole process has it: who started it, which threads may call it, who of us still uses it.
#pragma once

#include <functional>
#include <map>
#include <mutex>
#include <thread>

#include <mpi.h>

#include "dtr/base/deadline.hpp"
#include "dtr/base/error.hpp"

namespace dtr::inline v0 {
namespace bootstrap {

/// An MPI return code as a Result.
[[nodiscard]] Result<void> checked(int code, const char* operation);

/// Pauses between looks at something that will change soon: gives the core away first, then sleeps longer and longer.
class Backoff {
 public:
  void pause(const Deadline& deadline);

 private:
  int rounds_ = 0;
};

/// The state that all Bootstraps of a process share, because MPI itself is process-wide.
class MpiProcess {
 public:
  static MpiProcess& instance();

  /// One more user; starts MPI if `may_start` and nobody has.
  [[nodiscard]] Result<void> acquire(bool may_start);

  /// One user less. The last one ends MPI if libdtr started it and every user left it `clean`.
  [[nodiscard]] Result<void> release(bool clean, Deadline deadline);

  /// The right to call MPI now, held as a lock: MPI_THREAD_SERIALIZED means one caller at a time.
  [[nodiscard]] Result<std::unique_lock<std::mutex>> enter(const char* operation);

  /// Callbacks for an MPI_Finalize that is not ours.
  [[nodiscard]] int add_hook(std::function<void()> callback);
  void remove_hook(int id);

 private:
  MpiProcess() = default;
  static int self_attribute_deleted(MPI_Comm, int, void* state, void*);
  Result<void> start(bool may_start);
  Result<void> end(Deadline deadline);
  void run_hooks() noexcept;

  std::mutex mutex_;
  int users_ = 0;
  bool watched_ = false;     // our attribute hangs on MPI_COMM_SELF
  bool ours_ = false;        // libdtr called MPI_Init_thread
  bool clean_ = true;        // nobody left with a dead peer or an open request
  bool ending_ = false;      // inside MPI_Finalize, whoever called it
  bool ended_ = false;       // no MPI call is allowed any more
  bool any_thread_ = false;  // else only main_thread_ may call
  std::thread::id main_thread_;
  MPI_Comm world_ = MPI_COMM_NULL;  // for the last barrier before our own MPI_Finalize
  std::map<int, std::function<void()>> hooks_;
  int next_hook_ = 0;
};

}  // namespace bootstrap
}  // namespace dtr::inline v0
