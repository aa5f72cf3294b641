#include "dtr/base/thread.hpp"

#include <cerrno>
#include <charconv>
#include <csignal>
#include <exception>

#include <pthread.h>
#include <sched.h>

#include "dtr/base/fork_guard.hpp"
#include "dtr/base/log.hpp"

namespace dtr::inline v0 {

namespace {

/// What the new thread owns; the creator may be gone (moved, destroyed on the thread itself) before it ends.
struct Start {
  Thread::Body body;
  ThreadOptions options;
  std::stop_token stop;
};

/// All signals blocked in this scope: a thread inherits the mask, so there is no instant without it.
class BlockedSignals {
 public:
  BlockedSignals() noexcept {
    sigset_t all;
    sigfillset(&all);
    ::pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~BlockedSignals() { ::pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  BlockedSignals(const BlockedSignals&) = delete;
  BlockedSignals& operator=(const BlockedSignals&) = delete;

 private:
  sigset_t before_{};
};

class Attributes {
 public:
  Attributes() noexcept { ::pthread_attr_init(&attributes_); }
  ~Attributes() { ::pthread_attr_destroy(&attributes_); }
  Attributes(const Attributes&) = delete;
  Attributes& operator=(const Attributes&) = delete;

  [[nodiscard]] pthread_attr_t* get() noexcept { return &attributes_; }

 private:
  pthread_attr_t attributes_{};
};

void report_failure(const ThreadOptions& options, const std::string& what) {
  const Error error{.code = Errc::internal, .message = what, .operation = "thread " + options.name};
  DTR_LOG_ERROR(error.to_string());
  if (options.on_failure) options.on_failure(error);
}

void* run(void* argument) noexcept {
  const std::unique_ptr<Start> start(static_cast<Start*>(argument));
  ::pthread_setname_np(::pthread_self(), start->options.name.substr(0, 15).c_str());
  try {
    try {
      start->body(start->stop);
    } catch (const std::exception& e) {
      report_failure(start->options, e.what());
    } catch (...) {
      report_failure(start->options, "an exception that is no std::exception");
    }
  } catch (...) {
    // on_failure itself threw, or there is no memory left for the words: nothing more can be said safely.
    static_cast<void>(start);
  }
  return nullptr;
}

std::string cpu_words(const std::vector<int>& cpus) {
  std::string words;
  for (const int cpu : cpus) words += (words.empty() ? "" : ",") + std::to_string(cpu);
  return words;
}

Result<int> parse_cpu(std::string_view text, std::string_view whole) {
  int cpu = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), cpu);
  if (error != std::errc{} || end != text.data() + text.size() || cpu < 0 || cpu >= CPU_SETSIZE) {
    return fail(Errc::invalid_argument, "'" + std::string(text) + "' in CPU list '" + std::string(whole) +
                                            "' is no CPU number from 0 to " + std::to_string(CPU_SETSIZE - 1));
  }
  return cpu;
}

}  // namespace

Result<std::vector<int>> parse_cpu_list(std::string_view text) {
  std::vector<int> cpus;
  std::string_view rest = text;
  while (!rest.empty()) {
    const auto comma = rest.find(',');
    const std::string_view part = rest.substr(0, comma);
    const auto dash = part.find('-');
    const auto first = parse_cpu(part.substr(0, dash), text);
    if (!first) return fail(first.error());
    const auto last = dash == std::string_view::npos ? first : parse_cpu(part.substr(dash + 1), text);
    if (!last) return fail(last.error());
    if (*last < *first) {
      return fail(Errc::invalid_argument,
                  "'" + std::string(part) + "' in CPU list '" + std::string(text) + "' runs backwards");
    }
    for (int cpu = *first; cpu <= *last; ++cpu) cpus.push_back(cpu);
    if (comma == std::string_view::npos) break;
    rest.remove_prefix(comma + 1);
    if (rest.empty()) return fail(Errc::invalid_argument, "CPU list '" + std::string(text) + "' ends in a comma");
  }
  return cpus;
}

struct Thread::State {
  pthread_t handle{};
  std::stop_source stop;
  ForkGuard fork_guard;
};

Thread::Thread() noexcept = default;

Thread::Thread(Body body, ThreadOptions options) {
  const std::string operation = "start thread " + options.name;
  if (!body) throw Exception({.code = Errc::invalid_argument, .message = "no body", .operation = operation});

  Attributes attributes;
  if (!options.cpus.empty()) {
    cpu_set_t set;
    CPU_ZERO(&set);
    for (const int cpu : options.cpus) {
      if (cpu < 0 || cpu >= CPU_SETSIZE) {
        throw Exception(
            {.code = Errc::invalid_argument, .message = "no such CPU: " + std::to_string(cpu), .operation = operation});
      }
      CPU_SET(static_cast<unsigned>(cpu), &set);
    }
    ::pthread_attr_setaffinity_np(attributes.get(), sizeof(set), &set);
  }

  auto state = std::make_unique<State>();
  const std::string cpus = cpu_words(options.cpus);
  auto start = std::make_unique<Start>(Start{std::move(body), std::move(options), state->stop.get_token()});
  int error = 0;
  {
    const BlockedSignals blocked;
    error = ::pthread_create(&state->handle, attributes.get(), run, start.get());
  }
  if (error == EINVAL && !cpus.empty()) {
    throw Exception(
        {.code = Errc::invalid_argument, .message = "this process may not run on CPU " + cpus, .operation = operation});
  }
  if (error != 0) {
    throw Exception({.code = Errc::resource_exhausted,
                     .message = errno_error(error, "pthread_create").message + " (see ulimit -u and the cgroup's pids)",
                     .operation = operation});
  }
  static_cast<void>(start.release());  // run() owns it now
  state_ = std::move(state);
}

Thread::~Thread() {
  request_stop();
  join();
}

Thread::Thread(Thread&& other) noexcept = default;

Thread& Thread::operator=(Thread&& other) noexcept {
  if (this == &other) return *this;
  request_stop();
  join();
  state_ = std::move(other.state_);
  return *this;
}

bool Thread::is_current() const noexcept {
  return state_ != nullptr && ::pthread_equal(state_->handle, ::pthread_self()) != 0;
}

void Thread::request_stop() noexcept {
  if (state_ == nullptr || state_->fork_guard.in_forked_child()) return;
  state_->stop.request_stop();
}

void Thread::join() noexcept {
  if (state_ == nullptr) return;
  if (!state_->fork_guard.in_forked_child()) {
    if (is_current()) {
      ::pthread_detach(state_->handle);
    } else {
      ::pthread_join(state_->handle, nullptr);
    }
  }
  state_.reset();
}

}  // namespace dtr::inline v0
