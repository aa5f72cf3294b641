#include "dtr/base/fork_guard.hpp"

#include <atomic>

#include <pthread.h>

namespace dtr::inline v0 {

namespace {

// Process state by nature: how many forks lie between this process and the one that loaded the library.
std::atomic<std::uint32_t> forks{0};

void count_fork() noexcept { forks.fetch_add(1, std::memory_order_relaxed); }

std::uint32_t watch_forks() noexcept {
  static const int registered = ::pthread_atfork(nullptr, nullptr, count_fork);
  static_cast<void>(registered);
  return forks.load(std::memory_order_relaxed);
}

}  // namespace

ForkGuard::ForkGuard() noexcept : generation_(watch_forks()) {}

bool ForkGuard::in_forked_child() const noexcept { return forks.load(std::memory_order_relaxed) != generation_; }

Result<void> ForkGuard::check(std::string operation) const {
  if (!in_forked_child()) return {};
  return fail(Errc::forked, "called in a child of fork; use exec there, or make new objects after it",
              std::move(operation));
}

}  // namespace dtr::inline v0
