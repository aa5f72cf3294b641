// A part of a test in a process of its own, which may die.
#pragma once

#include <cerrno>
#include <functional>

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

namespace dtr::testing {

/// How a child ended.
struct Ending {
  bool killed = false;  ///< by SIGKILL
  int code = -1;        ///< of exit: 0 = no expectation failed
};

inline Ending wait_for(pid_t child) {
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (WIFEXITED(status)) return {.killed = false, .code = WEXITSTATUS(status)};
  return {.killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, .code = -1};
}

/// Starts `body` in a child of fork; call while this process has no other threads. Its expectations print, and
/// decide the exit code.
inline pid_t start_child(const std::function<void()>& body) {
  const pid_t child = ::fork();
  if (child != 0) return child;
  body();
  ::_exit(::testing::Test::HasFailure() ? 1 : 0);
}

inline Ending in_child(const std::function<void()>& body) { return wait_for(start_child(body)); }

}  // namespace dtr::testing
