// What makes things move: one thread that spins for a while and then sleeps, and waiting callers that help.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#include "dtr/base/deadline.hpp"
#include "dtr/base/error.hpp"
#include "dtr/base/fd.hpp"
#include "dtr/base/thread.hpp"
#include "dtr/fabric/spin_lock.hpp"
#include "dtr/fabric/transport.hpp"

namespace dtr::inline v0 {
namespace fabric {

/// Between looks in vain.
struct Waiting {
  std::chrono::nanoseconds spin{0};         ///< how long a waiting caller looks before it sleeps
  std::chrono::nanoseconds thread_spin{0};  ///< how long the thread does
  /// How long a caller keeps the core between looks; from then on others have their turn after each.
  std::chrono::nanoseconds keeps_core = std::chrono::hours(1);
  bool thread_yields = false;  ///< the thread gives the core away between looks
};

struct ProgressOptions {
  bool thread = true;  ///< false: only waiting callers and poll() make progress
  Waiting waiting{};
  std::vector<int> cpus{};  ///< where the thread may run; empty = anywhere
  std::string name = "dtr-progress";
};

/// Drives all sources of one Runtime. Any thread may wait; waiting callers poll themselves instead of queueing
/// behind the thread, and the thread keeps out of their way.
class ProgressEngine {
 public:
  explicit ProgressEngine(ProgressOptions options);
  ~ProgressEngine();
  ProgressEngine(const ProgressEngine&) = delete;
  ProgressEngine& operator=(const ProgressEngine&) = delete;

  /// Any thread. The source must outlive stop() or remove().
  [[nodiscard]] Result<void> add(ProgressSource& source);
  /// After this returns the source is not called any more. Not from a callback.
  void remove(ProgressSource& source) noexcept;

  /// Before start().
  void set_waiting(const Waiting& waiting) noexcept { options_.waiting = waiting; }
  [[nodiscard]] Result<void> start();
  void stop() noexcept;

  /// One look at every source, unless somebody else is looking. True if something was handled.
  bool poll() noexcept;

  /// Makes progress until `done()` is true. `done` is cheap, noexcept, and safe on this thread beside progress. It
  /// may use exclusively() where wait() is not called from a callback. Once true it stays true: it is asked again.
  /// Errors: timed_out, would_deadlock (called from a callback).
  template <class Done>
  [[nodiscard]] Errc wait(Done&& done, Deadline deadline) noexcept {
    if (done()) return Errc::ok;
    using Fn = std::remove_reference_t<Done>;
    return wait_for({.call = [](void* fn) noexcept { return static_cast<bool>((*static_cast<Fn*>(fn))()); },
                     .context = const_cast<std::remove_const_t<Fn>*>(&done)},
                    deadline);
  }

  /// Something that a waiter may wait for happened outside of poll().
  void announce() noexcept;

  /// There is something to do that no descriptor tells of: whoever sleeps looks again. Any thread.
  void wake() noexcept;

  /// True inside a callback from progress.
  [[nodiscard]] bool in_progress() const noexcept;

  /// Runs `action` while no source is being polled. Not from a callback.
  template <class Action>
  auto exclusively(Action&& action) {
    const Leaving leaving{*this};
    const Turn turn(*this);
    return action();
  }

 private:
  struct Predicate {
    bool (*call)(void*) noexcept;
    void* context;
    bool operator()() const noexcept { return call(context); }
  };

  /// Holds the right to poll.
  class Turn {
   public:
    explicit Turn(ProgressEngine& engine) : engine_(engine), lock_(engine.turn_) { enter(); }
    Turn(ProgressEngine& engine, std::try_to_lock_t how) : engine_(engine), lock_(engine.turn_, how) {
      if (lock_) enter();
    }
    ~Turn() {
      if (lock_) engine_.owner_.store({}, std::memory_order_relaxed);
    }
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;
    [[nodiscard]] explicit operator bool() const noexcept { return lock_.owns_lock(); }

   private:
    void enter() noexcept { engine_.owner_.store(std::this_thread::get_id(), std::memory_order_relaxed); }
    ProgressEngine& engine_;
    std::unique_lock<SpinLock> lock_;
  };

  /// A waiter that left meanwhile could not arm the bells for the thread.
  struct Leaving {
    ProgressEngine& engine;
    ~Leaving() {
      if (engine.thread_armed_.load(std::memory_order_seq_cst)) engine.wake_thread();
    }
  };

  [[nodiscard]] Errc wait_for(Predicate done, Deadline deadline) noexcept;
  bool lead(Predicate done, Deadline deadline) noexcept;  ///< false: somebody else polls
  void follow(Predicate done, Deadline deadline) noexcept;
  void run(const std::stop_token& stop) noexcept;
  bool attempt() noexcept;                              ///< looks if nobody else does
  void nap(std::chrono::microseconds length) noexcept;  ///< less than a second
  int look() noexcept;                                  ///< with the turn
  bool arm() noexcept;                                  ///< with the turn: all sources will ring
  void hand_over() noexcept;  ///< a waiter leaves: the thread must be woken by what comes next
  void wake_thread() noexcept;
  /// Who sleeps looks next. True: kick_ has rung.
  bool sleep(Deadline::Clock::time_point until) noexcept;
  [[nodiscard]] Deadline::Clock::time_point next_deadline() const noexcept;
  static void relax(bool yields) noexcept;
  /// Two callers at a time may be counted as one: it matters only that somebody came.
  void note_wait() noexcept { waits_.store(waits_.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed); }

  ProgressOptions options_;
  std::vector<ProgressSource*> sources_;
  UniqueFd epoll_;
  UniqueFd kick_;  ///< for the leader, who looks whether he is done
  UniqueFd wake_;  ///< for anybody, who then looks at the sources
  UniqueFd quit_;

  /// Given back by a plain store: a mutex waits there until what the look has written has reached the other cores.
  SpinLock turn_;
  std::atomic<std::thread::id> owner_{};

  std::atomic<std::uint32_t> epoch_{0};  ///< counts announcements; followers sleep on it
  std::atomic<std::uint32_t> followers_{0};
  std::atomic<bool> leader_{false};  ///< one waiter at a time sleeps on the descriptors
  std::atomic<bool> leader_asleep_{false};
  std::atomic<std::uint32_t> waiters_{0};
  std::atomic<std::uint64_t> waits_{0};
  std::atomic<bool> thread_armed_{false};  ///< the thread sleeps until something rings
  std::atomic<bool> woken_{false};         ///< wake_ rings
  Thread thread_;
};

}  // namespace fabric
}  // namespace dtr::inline v0
