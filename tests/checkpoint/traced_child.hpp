// A child that is killed right before its n-th system call that changes the disk.
#pragma once

#include <cstdint>
#include <functional>

#include <fcntl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>

#include "checkpoint/child_process.hpp"

namespace dtr::testing {

inline bool changes_the_disk(const __ptrace_syscall_info& call) {
  switch (call.entry.nr) {
    case SYS_openat:
      return (call.entry.args[2] & (O_CREAT | O_TRUNC)) != 0;
    case SYS_pwrite64:
    case SYS_fsync:
    case SYS_ftruncate:
    case SYS_fallocate:
    case SYS_mkdirat:
    case SYS_renameat:
    case SYS_renameat2:
    case SYS_unlinkat:
#ifdef SYS_mkdir  // not on newer architectures
    case SYS_mkdir:
    case SYS_rename:
    case SYS_unlink:
    case SYS_rmdir:
#endif
      return true;
    default:
      return false;
  }
}

/// What a traced thread stopped for; true if it is about to change the disk.
inline bool is_about_to_change(pid_t thread) {
  __ptrace_syscall_info call{};
  const auto got = ::ptrace(PTRACE_GET_SYSCALL_INFO, thread, sizeof(call), &call);
  return got > 0 && call.op == PTRACE_SYSCALL_INFO_ENTRY && changes_the_disk(call);
}

struct TracedEnding {
  bool possible = true;  ///< false: this machine lets us trace no child
  Ending ending{};
  int calls = 0;  ///< that changed the disk, up to the end
};

/// Runs `body` in a child of fork, all its threads traced, and kills it before call number `fatal` (from 1).
inline TracedEnding killed_before_call(int fatal, const std::function<void()>& body) {
  constexpr int kNotTraced = 99;
  const pid_t child = start_child([&] {
    if (::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) ::_exit(kNotTraced);
    ::raise(SIGSTOP);
    body();
  });
  TracedEnding result;
  int status = 0;
  ::waitpid(child, &status, 0);
  if (!WIFSTOPPED(status)) return {.possible = false};
  ::ptrace(PTRACE_SETOPTIONS, child, nullptr, PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE | PTRACE_O_EXITKILL);
  ::ptrace(PTRACE_SYSCALL, child, nullptr, nullptr);
  for (;;) {
    const pid_t thread = ::waitpid(-1, &status, __WALL);
    if (thread < 0 && errno == EINTR) continue;
    if (thread < 0) return result;
    if (!WIFSTOPPED(status)) {
      if (thread != child) continue;  // one of its threads
      if (WIFEXITED(status)) result.ending.code = WEXITSTATUS(status);
      result.ending.killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
      return result;
    }
    int signal = WSTOPSIG(status);
    if (signal == (SIGTRAP | 0x80)) {
      signal = 0;
      if (is_about_to_change(thread) && ++result.calls == fatal) ::kill(child, SIGKILL);
    } else if (signal == SIGTRAP || signal == SIGSTOP) {
      signal = 0;  // a new thread, or its first stop
    }
    ::ptrace(PTRACE_SYSCALL, thread, nullptr, static_cast<long>(signal));
  }
}

}  // namespace dtr::testing
