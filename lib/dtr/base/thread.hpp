// The threads that the library starts: named, deaf to signals, and never the reason for std::terminate.
#pragma once

#include <functional>
#include <memory>
#include <stop_token>
#include <string>
#include <string_view>
#include <vector>

#include "dtr/base/error.hpp"

namespace dtr::inline v0 {

/// "0-3,8" -> {0, 1, 2, 3, 8}; "" -> {}. Error: invalid_argument naming the part that is wrong.
[[nodiscard]] Result<std::vector<int>> parse_cpu_list(std::string_view text);

struct ThreadOptions {
  std::string name = "dtr";  ///< shown by top and gdb; the kernel keeps the first 15 bytes
  std::vector<int> cpus{};   ///< may run on these only; empty = as its creator
  /// Told, on the thread, what ended the body early. Without it the Error is only logged.
  std::function<void(const Error&)> on_failure{};
};

/// A joining thread that blocks all signals from its first instruction. An exception that leaves the body is
/// logged and handed to on_failure; it goes no further. Not thread-safe itself, except for request_stop().
/// In a child of fork the thread does not exist, and the destructor knows that.
class Thread {
 public:
  using Body = std::function<void(std::stop_token)>;

  Thread() noexcept;

  /// Starts at once. Throws Exception: resource_exhausted (thread limit), invalid_argument (a CPU that this
  /// process may not use, or no body).
  explicit Thread(Body body, ThreadOptions options = {});

  /// Requests a stop and joins: the body has to watch its stop_token. On the thread itself it detaches instead.
  ~Thread();

  Thread(Thread&& other) noexcept;
  Thread& operator=(Thread&& other) noexcept;  ///< stops and joins the one it held
  Thread(const Thread&) = delete;
  Thread& operator=(const Thread&) = delete;

  [[nodiscard]] bool joinable() const noexcept { return state_ != nullptr; }

  /// True on the thread itself, that is inside its body.
  [[nodiscard]] bool is_current() const noexcept;

  void request_stop() noexcept;

  /// Waits for the body to return, without asking it to.
  void join() noexcept;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace dtr::inline v0
