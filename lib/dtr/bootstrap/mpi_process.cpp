#include "dtr/bootstrap/detail/mpi_process.hpp"

#include <algorithm>
#include <array>
#include <chrono>
#include <string>
#include <utility>

namespace dtr::inline v0 {
namespace bootstrap {

Result<void> checked(int code, const char* operation) {
  if (code == MPI_SUCCESS) return {};
  std::array<char, MPI_MAX_ERROR_STRING> words{};
  int length = 0;
  if (MPI_Error_string(code, words.data(), &length) != MPI_SUCCESS) length = 0;
  return fail(Errc::mpi_error, std::string(words.data(), static_cast<std::size_t>(length)), operation);
}

void Backoff::pause(const Deadline& deadline) {
  using std::chrono::microseconds;
  constexpr int kYields = 100;  // about the time in which a rank that is already on its way arrives
  if (rounds_ < kYields) {
    ++rounds_;
    std::this_thread::yield();
    return;
  }
  const int doublings = std::min(rounds_++ - kYields, 5);
  const auto nap = std::min(microseconds(50 << doublings), microseconds(1000));
  std::this_thread::sleep_for(std::min<Deadline::Clock::duration>(nap, deadline.left()));
}

MpiProcess& MpiProcess::instance() {
  static MpiProcess process;
  return process;
}

Result<void> MpiProcess::acquire(bool may_start) {
  const std::lock_guard lock(mutex_);
  if (ended_ || ending_) return fail(Errc::unsupported, "MPI has ended in this process", "bootstrap");
  if (users_ == 0) {
    if (auto started = start(may_start); !started) return started;
  }
  if (!any_thread_ && std::this_thread::get_id() != main_thread_) {
    return fail(Errc::unsupported, "MPI runs below MPI_THREAD_SERIALIZED: call on its main thread", "bootstrap");
  }
  ++users_;
  return {};
}

Result<void> MpiProcess::start(bool may_start) {
  int ended = 0;
  int running = 0;
  if (auto r = checked(MPI_Finalized(&ended), "bootstrap"); !r) return r;
  if (auto r = checked(MPI_Initialized(&running), "bootstrap"); !r) return r;
  if (ended != 0) return fail(Errc::unsupported, "MPI has ended in this process", "bootstrap");
  if (running == 0) {
    if (!may_start) return fail(Errc::invalid_argument, "MPI is not initialised", "bootstrap");
    int granted = 0;
    if (auto r = checked(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &granted), "bootstrap"); !r) return r;
    if (auto r = checked(MPI_Comm_dup(MPI_COMM_WORLD, &world_), "bootstrap"); !r) return r;
    if (auto r = checked(MPI_Comm_set_errhandler(world_, MPI_ERRORS_RETURN), "bootstrap"); !r) return r;
    ours_ = true;
  }

  int level = MPI_THREAD_SINGLE;
  int is_main = 0;
  if (auto r = checked(MPI_Query_thread(&level), "bootstrap"); !r) return r;
  if (auto r = checked(MPI_Is_thread_main(&is_main), "bootstrap"); !r) return r;
  any_thread_ = level >= MPI_THREAD_SERIALIZED;
  // Asked now and remembered: between init and finalize no MPI call but barriers is made.
  if (is_main != 0) main_thread_ = std::this_thread::get_id();

  if (!watched_) {
    int key = MPI_KEYVAL_INVALID;
    if (auto r =
            checked(MPI_Comm_create_keyval(MPI_COMM_NULL_COPY_FN, &self_attribute_deleted, &key, nullptr), "bootstrap");
        !r) {
      return r;
    }
    if (auto r = checked(MPI_Comm_set_attr(MPI_COMM_SELF, key, this), "bootstrap"); !r) return r;
    watched_ = true;
    return checked(MPI_Comm_free_keyval(&key), "bootstrap");  // lives on until the attribute goes
  }
  return {};
}

Result<void> MpiProcess::release(bool clean, Deadline deadline) {
  {
    const std::lock_guard lock(mutex_);
    clean_ = clean_ && clean;
    if (--users_ > 0 || !ours_ || !clean_ || ending_ || ended_) return {};
  }
  return end(deadline);
}

Result<void> MpiProcess::end(Deadline deadline) {
  {
    // MPI_Finalize waits for every rank and has no deadline, so meet the others first in a way that has one.
    const std::lock_guard lock(mutex_);
    MPI_Request all_here = MPI_REQUEST_NULL;
    if (auto r = checked(MPI_Ibarrier(world_, &all_here), "finalize"); !r) return r;
    Backoff backoff;
    int done = 0;
    while (true) {
      if (auto r = checked(MPI_Test(&all_here, &done, MPI_STATUS_IGNORE), "finalize"); !r) return r;
      if (done != 0) break;
      if (deadline.passed()) {
        clean_ = false;
        return fail(Errc::timed_out, "not every rank came to the end of MPI; it stays open", "finalize");
      }
      backoff.pause(deadline);
    }
    if (auto r = checked(MPI_Comm_free(&world_), "finalize"); !r) return r;
    ending_ = true;
  }
  return checked(MPI_Finalize(), "finalize");  // unlocked: our attribute's callback takes the lock
}

Result<std::unique_lock<std::mutex>> MpiProcess::enter(const char* operation) {
  std::unique_lock lock(mutex_);
  if (ended_) return fail(Errc::closed, "MPI has ended in this process", operation);
  if (!any_thread_ && std::this_thread::get_id() != main_thread_) {
    return fail(Errc::unsupported, "MPI runs below MPI_THREAD_SERIALIZED: call on its main thread", operation);
  }
  return lock;
}

int MpiProcess::add_hook(std::function<void()> callback) {
  const std::lock_guard lock(mutex_);
  hooks_.emplace(next_hook_, std::move(callback));
  return next_hook_++;
}

void MpiProcess::remove_hook(int id) {
  const std::lock_guard lock(mutex_);
  hooks_.erase(id);
}

int MpiProcess::self_attribute_deleted(MPI_Comm, int, void* state, void*) {
  auto& process = *static_cast<MpiProcess*>(state);
  process.run_hooks();
  return MPI_SUCCESS;
}

void MpiProcess::run_hooks() noexcept {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  while (true) {
    std::function<void()> callback;
    {
      const std::lock_guard lock(mutex_);
      if (hooks_.empty()) break;
      callback = std::move(hooks_.begin()->second);
      hooks_.erase(hooks_.begin());
    }
    try {
      callback();    // unlocked: it finalizes Bootstraps, and those call MPI
    } catch (...) {  // NOLINT(bugprone-empty-catch): above us is MPI's C code, which no exception may cross
    }
  }
  const std::lock_guard lock(mutex_);
  ended_ = true;
}

}  // namespace bootstrap
}  // namespace dtr::inline v0
