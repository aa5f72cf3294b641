#include "dtr/fabric/progress.hpp"

#include <algorithm>
#include <cerrno>
#include <climits>

#include <linux/futex.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "dtr/base/relax.hpp"

namespace dtr::inline v0 {
namespace fabric {

namespace {

using Clock = Deadline::Clock;

constexpr int kBudget = 256;
constexpr int kLooksBeforeLeaving = 16;
/// In vain, between two looks at the clock, which takes as long as looking at a transport.
constexpr unsigned kLooksAClock = 8;
/// Who polls may be off the core because the waiter has a higher priority: that must sleep to let it go on.
constexpr int kPatientTries = 100;
constexpr auto kRefusedNap = std::chrono::microseconds(50);
/// While callers wait now and then, the thread looks this often instead of arming the bells: a bell costs the sender
/// a system call and wakes a thread that the next waiting caller makes superfluous.
constexpr auto kStandby = std::chrono::milliseconds(1);
constexpr auto kLongStandby = std::chrono::milliseconds(4);
/// When the thread finds work although callers look, this long for them to do the rest.
constexpr auto kLeftToCallers = std::chrono::microseconds(100);
/// Callers who look so often between two looks of the thread do the work; who looks more rarely computes, and wants
/// help.
constexpr std::uint64_t kLooksOfDrivers = 8;
/// No sleep is longer, whatever the sources say.
constexpr auto kLongestSleep = std::chrono::milliseconds(500);

int milliseconds_until(Clock::time_point when) noexcept {
  const auto now = Clock::now();
  if (when <= now) return 0;
  return static_cast<int>(
      std::chrono::ceil<std::chrono::milliseconds>(std::min<Clock::duration>(when - now, kLongestSleep)).count());
}

void futex_wake_all(std::atomic<std::uint32_t>& word) noexcept {
  ::syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

void futex_wait(std::atomic<std::uint32_t>& word, std::uint32_t seen, Clock::duration longest) noexcept {
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(longest);
  const timespec limit{.tv_sec = static_cast<time_t>(seconds.count()),
                       .tv_nsec = static_cast<long>(std::chrono::nanoseconds(longest - seconds).count())};
  ::syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, seen, &limit, nullptr, 0);
}

void ring(int fd) noexcept {
  const std::uint64_t one = 1;
  [[maybe_unused]] const auto written = ::write(fd, &one, sizeof one);  // full = it rings already
}

void silence(int fd) noexcept {
  std::uint64_t count = 0;
  [[maybe_unused]] const auto got = ::read(fd, &count, sizeof count);  // empty = nobody rang
}

}  // namespace

ProgressEngine::ProgressEngine(ProgressOptions options) : options_(std::move(options)) {
  epoll_.reset(::epoll_create1(EPOLL_CLOEXEC));
  kick_.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  wake_.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  quit_.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!epoll_ || !kick_ || !wake_ || !quit_) throw Exception(errno_error(errno, "epoll, eventfd", "start progress"));
  for (const int fd : {kick_.get(), wake_.get(), quit_.get()}) {
    epoll_event event{.events = EPOLLIN, .data = {.fd = fd}};
    if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) {
      throw Exception(errno_error(errno, "epoll_ctl", "start progress"));
    }
  }
}

ProgressEngine::~ProgressEngine() { stop(); }

Result<void> ProgressEngine::add(ProgressSource& source) {
  if (source.wait_descriptor() >= 0) {
    epoll_event event{.events = EPOLLIN, .data = {.fd = source.wait_descriptor()}};
    if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, source.wait_descriptor(), &event) != 0) {
      return fail(errno_error(errno, "epoll_ctl", "start progress"));
    }
  }
  if (in_progress()) {
    sources_.push_back(&source);
  } else {
    exclusively([&] { sources_.push_back(&source); });
  }
  return {};
}

void ProgressEngine::remove(ProgressSource& source) noexcept {
  exclusively([&] { std::erase(sources_, &source); });
  if (source.wait_descriptor() >= 0) {
    ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, source.wait_descriptor(), nullptr);
  }
}

Result<void> ProgressEngine::start() {
  if (!options_.thread) return {};
  try {
    thread_ = Thread([this](const std::stop_token& stop) { run(stop); },
                     {.name = options_.name, .cpus = options_.cpus, .on_failure = {}});
  } catch (const Exception& e) {
    return fail(e.error());
  }
  return {};
}

void ProgressEngine::stop() noexcept {
  if (!thread_.joinable()) return;
  thread_.request_stop();
  ring(quit_.get());  // never silenced: whoever sleeps wakes up
  thread_.join();
}

bool ProgressEngine::in_progress() const noexcept {
  return owner_.load(std::memory_order_relaxed) == std::this_thread::get_id();
}

int ProgressEngine::look() noexcept {
  int handled = 0;
  for (ProgressSource* source : sources_) handled += source->progress(kBudget);
  return handled;
}

bool ProgressEngine::poll() noexcept {
  if (in_progress()) return false;
  note_wait();  // a caller that looks itself: the thread stands by
  const bool moved = attempt();
  // The look has silenced the bells of a thread that sleeps on them: awake, it stands by while callers look.
  if (thread_armed_.load(std::memory_order_seq_cst)) wake_thread();
  return moved;
}

bool ProgressEngine::attempt() noexcept {
  int handled = 0;
  bool armed = true;
  {
    const Turn turn(*this, std::try_to_lock);
    if (!turn) return false;
    handled = look();
    // A look silences the bells that a sleeping leader relies on.
    if (handled == 0 && leader_asleep_.load(std::memory_order_relaxed)) armed = arm();
  }
  if (handled > 0 || !armed) announce();  // and so wakes the leader
  return handled > 0;
}

void ProgressEngine::announce() noexcept {
  // Pairs with the fence of a waiter that is about to sleep: it sees what happened, or we see it.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (followers_.load(std::memory_order_relaxed) > 0) {
    epoch_.fetch_add(1, std::memory_order_seq_cst);
    futex_wake_all(epoch_);
  }
  if (leader_asleep_.load(std::memory_order_relaxed)) ring(kick_.get());
}

void ProgressEngine::wake() noexcept {
  // Pairs with the fence of who is about to sleep: he sees what there is to do, or we see that he sleeps.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (leader_asleep_.load(std::memory_order_relaxed)) return ring(kick_.get());
  if (thread_armed_.load(std::memory_order_relaxed)) wake_thread();
}

void ProgressEngine::wake_thread() noexcept {
  if (!woken_.exchange(true, std::memory_order_acq_rel)) ring(wake_.get());
}

Clock::time_point ProgressEngine::next_deadline() const noexcept {
  auto earliest = Clock::time_point::max();
  for (const ProgressSource* source : sources_) earliest = std::min(earliest, source->next_deadline());
  return earliest;
}

bool ProgressEngine::arm() noexcept {
  bool quiet = true;
  for (ProgressSource* source : sources_) quiet = source->prepare_sleep() && quiet;
  return quiet;
}

bool ProgressEngine::sleep(Clock::time_point until) noexcept {
  epoll_event events[4];
  const int count = ::epoll_wait(epoll_.get(), events, 4, milliseconds_until(until));
  const auto rang = [&](const UniqueFd& bell) {
    return std::any_of(events, events + std::max(count, 0),
                       [&](const epoll_event& e) { return e.data.fd == bell.get(); });
  };
  if (rang(wake_)) {
    silence(wake_.get());
    woken_.exchange(false, std::memory_order_acq_rel);  // what did not ring any more is seen by our next look
  }
  return rang(kick_);
}

void ProgressEngine::nap(std::chrono::microseconds length) noexcept {
  pollfd quit{.fd = quit_.get(), .events = POLLIN, .revents = 0};
  const timespec limit{.tv_sec = 0, .tv_nsec = static_cast<long>(std::chrono::nanoseconds(length).count())};
  ::ppoll(&quit, 1, &limit, nullptr);
}

void ProgressEngine::relax(bool yields) noexcept {
  if (yields) {
    std::this_thread::yield();
  } else {
    cpu_relax();
  }
}

Errc ProgressEngine::wait_for(Predicate done, Deadline deadline) noexcept {
  if (in_progress()) return Errc::would_deadlock;
  waiters_.fetch_add(1, std::memory_order_relaxed);
  note_wait();
  Errc outcome = Errc::ok;
  const Waiting& waiting = options_.waiting;
  auto last_moved = Clock::time_point::max();  // unknown
  bool yields = waiting.keeps_core <= Clock::duration::zero();
  unsigned looks = 0;
  int refusals = 0;
  while (true) {
    const bool moved = attempt();
    if (done()) break;
    if (!moved && !yields && waiting.spin > Clock::duration::zero() && ++looks % kLooksAClock != 0) {
      cpu_relax();
      continue;
    }
    const auto now = Clock::now();
    if (now >= deadline.at()) {
      outcome = Errc::timed_out;
      break;
    }
    if (moved || last_moved > now) last_moved = now;
    yields = now - last_moved >= waiting.keeps_core;
    if (now - last_moved < waiting.spin) {
      relax(yields);
      continue;
    }
    looks = kLooksAClock - 1;  // after a sleep one look decides
    if (!leader_.exchange(true, std::memory_order_acquire)) {
      refusals = lead(done, deadline) ? 0 : refusals + 1;
      leader_.store(false, std::memory_order_release);
      announce();  // a follower may lead now
      if (refusals >= kPatientTries) std::this_thread::sleep_for(kRefusedNap);
    } else {
      follow(done, deadline);
    }
  }
  waiters_.fetch_sub(1, std::memory_order_relaxed);
  hand_over();
  return outcome;
}

bool ProgressEngine::lead(Predicate done, Deadline deadline) noexcept {
  auto until = deadline.at();
  int handled = 0;
  {
    const Turn turn(*this, std::try_to_lock);
    if (!turn) {  // somebody is polling, and will tell us
      std::this_thread::yield();
      return false;
    }
    leader_asleep_.store(true, std::memory_order_relaxed);  // with the turn: who looks next sees it
    std::atomic_thread_fence(std::memory_order_seq_cst);    // see announce() and wake()
    handled = look();
    if (handled > 0 || !arm()) {
      leader_asleep_.store(false, std::memory_order_relaxed);
    } else {
      until = std::min(until, next_deadline());
    }
  }
  if (!leader_asleep_.load(std::memory_order_relaxed)) {
    if (handled > 0) announce();
    return true;
  }
  if (!done()) static_cast<void>(sleep(until));
  leader_asleep_.store(false, std::memory_order_relaxed);
  silence(kick_.get());
  return true;
}

void ProgressEngine::follow(Predicate done, Deadline deadline) noexcept {
  const std::uint32_t seen = epoch_.load(std::memory_order_seq_cst);
  followers_.fetch_add(1, std::memory_order_seq_cst);
  std::atomic_thread_fence(std::memory_order_seq_cst);
  // The leader may have left between our look at it and here; then the next round leads.
  if (!done() && leader_.load(std::memory_order_seq_cst)) {
    futex_wait(epoch_, seen, std::min<Clock::duration>(deadline.left(), kLongestSleep));
  }
  followers_.fetch_sub(1, std::memory_order_seq_cst);
}

void ProgressEngine::hand_over() noexcept {
  if (!thread_armed_.load(std::memory_order_seq_cst) || leader_.load(std::memory_order_seq_cst)) return;
  int handled = 0;
  for (int looks = 1;; ++looks) {
    const Turn turn(*this, std::try_to_lock);
    if (!turn) break;  // whoever polls arms again before it sleeps
    const int now = look();
    handled += now;
    if (now == 0 && arm()) break;
    if (looks == kLooksBeforeLeaving) {  // what goes on without end is not for a caller who has what he waited for
      wake_thread();
      break;
    }
  }
  if (handled > 0) announce();
}

void ProgressEngine::run(const std::stop_token& stop) noexcept {
  auto last_event = Clock::now();
  std::uint64_t waits_seen = 0;
  while (!stop.stop_requested()) {
    const bool watched = leader_asleep_.load(std::memory_order_relaxed);  // a caller, whom what comes wakes
    if (!watched && attempt()) {
      last_event = Clock::now();
      const auto driven = [&] {
        return waiters_.load(std::memory_order_relaxed) > 0 ||
               waits_.load(std::memory_order_relaxed) - waits_seen >= kLooksOfDrivers;
      };
      // Where ranks share cores, its turn on one is too dear to come back for the rest.
      const bool crowded = options_.waiting.keeps_core <= Clock::duration::zero();
      if (crowded || !driven()) continue;
      waits_seen = waits_.load(std::memory_order_relaxed);
      nap(kLeftToCallers);
      if (!driven()) continue;
    }
    if (waiters_.load(std::memory_order_relaxed) == 0 && Clock::now() - last_event < options_.waiting.thread_spin) {
      relax(options_.waiting.thread_yields);
      continue;
    }
    const std::uint64_t waits = waits_.load(std::memory_order_relaxed);
    if (waits != waits_seen || waiters_.load(std::memory_order_relaxed) > 0) {
      // Callers drive. Stand by away from the descriptors, so that what arrives wakes the caller and not this thread.
      nap(waits != waits_seen ? kStandby : kLongStandby);
      waits_seen = waits;
      continue;
    }
    auto until = Clock::time_point::max();
    {
      const Turn turn(*this, std::try_to_lock);
      if (!turn) {
        std::this_thread::yield();
        continue;
      }
      thread_armed_.store(true, std::memory_order_seq_cst);  // with the turn: who polls later sees it when leaving
      std::atomic_thread_fence(std::memory_order_seq_cst);   // see wake()
      if (look() > 0 || !arm()) {
        thread_armed_.store(false, std::memory_order_seq_cst);
        last_event = Clock::now();
      } else {
        until = next_deadline();
      }
    }
    if (thread_armed_.load(std::memory_order_relaxed)) {
      const bool kicked = sleep(until);
      thread_armed_.store(false, std::memory_order_seq_cst);
      if (kicked && !leader_asleep_.load(std::memory_order_relaxed)) {  // it came late for a leader who has gone
        silence(kick_.get());
        std::atomic_thread_fence(std::memory_order_seq_cst);
        if (leader_asleep_.load(std::memory_order_relaxed)) ring(kick_.get());  // it was for the next one
      }
    } else {
      announce();
    }
  }
}

}  // namespace fabric
}  // namespace dtr::inline v0
