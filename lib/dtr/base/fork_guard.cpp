#include "dtr/base/fork_guard.hpp"

#include <pthread.h>

namespace dtr::inline v0 {

std::atomic<std::uint32_t> ForkGuard::forks_{0};

void ForkGuard::count_fork() noexcept { forks_.fetch_add(1, std::memory_order_relaxed); }

std::uint32_t ForkGuard::watch_forks() noexcept {
  static const int registered = ::pthread_atfork(nullptr, nullptr, count_fork);
  static_cast<void>(registered);
  return forks_.load(std::memory_order_relaxed);
}

ForkGuard::ForkGuard() noexcept : generation_(watch_forks()) {}

Result<void> ForkGuard::check(std::string operation) const {
  if (!in_forked_child()) return {};
  return fail(Errc::forked, "called in a child of fork; use exec there, or make new objects after it",
              std::move(operation));
}

}  // namespace dtr::inline v0
