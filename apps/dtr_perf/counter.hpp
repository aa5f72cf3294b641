// Counts the messages that arrive on the application's port.
#pragma once

#include <atomic>

#include "dtr/runtime/runtime.hpp"

namespace dtr::perf {

class Counter final : public fabric::PortHandler {
 public:
  explicit Counter(Runtime& rt) : rt_(rt), port_(value_or_throw(rt.service_port("application"))) {
    value_or_throw(rt.fabric().open_port(port_, *this));
  }
  ~Counter() override { rt_.fabric().close_port(port_); }
  Counter(const Counter&) = delete;
  Counter& operator=(const Counter&) = delete;

  void on_notify(fabric::PeerId, std::uint32_t) noexcept override {}
  void on_message(fabric::PeerId, std::span<const std::byte>) noexcept override {
    count_.store(count_.load(std::memory_order_relaxed) + 1, std::memory_order_release);  // with the turn: nobody else
  }
  void on_peer_down(fabric::PeerId, const Error&) noexcept override {}

  [[nodiscard]] std::uint64_t count() const noexcept { return count_.load(std::memory_order_acquire); }
  [[nodiscard]] fabric::Port port() const noexcept { return port_; }

  /// Makes progress until `messages` have come; throws Exception when none comes for the operation time-out.
  void wait_for(std::uint64_t messages) const {
    std::uint64_t seen = count();
    Deadline deadline(rt_.operation_timeout());
    while (count() < messages) {
      if (rt_.progress()) continue;
      if (count() != seen) {
        seen = count();
        deadline = Deadline(rt_.operation_timeout());
      } else if (deadline.passed()) {
        throw Exception({.code = Errc::timed_out, .message = "no message comes", .operation = "dtr_perf"});
      }
    }
  }

 private:
  Runtime& rt_;
  fabric::Port port_;
  std::atomic<std::uint64_t> count_{0};
};

}  // namespace dtr::perf
