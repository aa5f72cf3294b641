#include "dtr/pushpull/reducer.hpp"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <optional>

#include "dtr/base/log.hpp"
#include "dtr/pushpull/detail/no_throw.hpp"
#include "dtr/pushpull/detail/one_thread.hpp"
#include "dtr/pushpull/detail/reduction.hpp"
#include "dtr/pushpull/detail/server_core.hpp"

namespace dtr::inline v0 {

namespace {

constexpr const char* kOperation = "reduce";
constexpr auto kGoodbyeBound = std::chrono::seconds(2);

}  // namespace

struct Reducer::State {
  State(Runtime& rt, const ReducerOptions& options)
      : runtime(rt), core(rt, options.group, kOperation), reduction(core, rt.metrics()) {}
  ~State() {
    if (!started || !core.check_fork()) return;
    core.fabric().progress().exclusively([this] { core.on_news({}); });
  }

  /// Does what is there; on progress after start, else on the server's thread.
  void work() noexcept {
    Result<void> outcome;
    try {
      outcome = reduction.work();
    } catch (const std::exception&) {
      outcome = tl::unexpected(Error{.code = Errc::resource_exhausted, .peer = runtime.rank()});
      core.break_all(outcome.error());
    }
    const std::lock_guard lock(mutex);
    if (!outcome && !failure) failure = pushpull::copy_of(outcome.error());
    sessions.store(reduction.sessions(), std::memory_order_release);
    failed.store(failure.has_value(), std::memory_order_release);
  }

  [[nodiscard]] bool over() const noexcept {
    return failed.load(std::memory_order_acquire) || sessions.load(std::memory_order_acquire) > served;
  }

  /// No Worker is there that could still want something.
  [[nodiscard]] bool alone() noexcept { return failed.load(std::memory_order_acquire) || !core.anyone_present(); }

  [[nodiscard]] Result<void> outcome(Errc waited) {
    if (waited == Errc::would_deadlock) return fail(waited, "called from a callback", kOperation);
    {
      const std::lock_guard lock(mutex);
      if (failure) return fail(*failure);
    }
    if (waited == Errc::ok) {
      ++served;
      return {};
    }
    std::string late;
    for (int worker = 0; worker < core.workers(); ++worker) {
      if (core.standing(worker).sessions > served) continue;
      late += (late.empty() ? "rank " : ", ") + std::to_string(core.rank_of(worker));
    }
    return fail(Errc::timed_out, "still at work: " + late, kOperation);
  }

  Runtime& runtime;
  pushpull::ServerCore core;
  pushpull::Reduction reduction;
  pushpull::OneThread door;
  bool started = false;
  std::uint64_t served = 0;  ///< sessions of all workers that serve or join has seen end
  std::atomic<std::uint64_t> sessions{0};
  std::atomic<bool> failed{false};
  std::mutex mutex;
  std::optional<Error> failure;
};

Reducer::Reducer(Runtime& runtime, const ReducerOptions& options) : state_(std::make_unique<State>(runtime, options)) {
  state_->core.start();
}

Reducer::~Reducer() {
  if (!state_->started || !state_->core.check_fork()) return;
  const EndWait wait(state_->runtime, kGoodbyeBound);
  static_cast<void>(state_->core.fabric().progress().wait([&]() noexcept { return state_->alone(); }, wait.deadline()));
}

Result<void> Reducer::serve(Deadline deadline) {
  State& state = *state_;
  const pushpull::OneThread::Visit visit(state.door);
  if (auto good = visit.check(kOperation); !good) return good;
  if (auto good = state.core.check_fork(); !good) return good;
  if (state.started) return fail(Errc::already_exists, "it serves already since start(): use join()", kOperation);
  Errc waited = Errc::ok;
  while (!state.over() && waited == Errc::ok) {
    const Deadline expiry{Deadline::Clock::time_point(std::chrono::nanoseconds(state.reduction.wake_ns()))};
    waited = state.core.fabric().progress().wait([&]() noexcept { return state.core.has_news(); },
                                                 std::min(deadline, expiry));
    if (waited == Errc::timed_out && !deadline.passed()) waited = Errc::ok;  // a round has run out of time
    state.work();
  }
  return state.outcome(state.over() ? Errc::ok : waited);
}

Result<void> Reducer::start() {
  State& state = *state_;
  const pushpull::OneThread::Visit visit(state.door);
  if (auto good = visit.check(kOperation); !good) return good;
  if (auto good = state.core.check_fork(); !good) return good;
  if (std::exchange(state.started, true)) return fail(Errc::already_exists, "started already", kOperation);
  state.core.fabric().progress().exclusively([&] {
    state.core.on_news([&state] { state.work(); });
    state.work();
  });
  return {};
}

Result<void> Reducer::join(Deadline deadline) {
  State& state = *state_;
  const pushpull::OneThread::Visit visit(state.door);
  if (auto good = visit.check(kOperation); !good) return good;
  if (auto good = state.core.check_fork(); !good) return good;
  if (!state.started) return fail(Errc::invalid_argument, "start() was not called", kOperation);
  return state.outcome(state.core.fabric().progress().wait([&]() noexcept { return state.over(); }, deadline));
}

}  // namespace dtr::inline v0
