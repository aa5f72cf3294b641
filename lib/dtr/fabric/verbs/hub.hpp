// What the links of one transport share.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <limits>
#include <memory>
#include <string_view>
#include <vector>

#include <sys/eventfd.h>
#include <unistd.h>

#include "dtr/base/deadline.hpp"
#include "dtr/base/fd.hpp"
#include "dtr/base/fork_guard.hpp"
#include "dtr/fabric/transport.hpp"
#include "dtr/fabric/verbs/message_pool.hpp"
#include "dtr/fabric/verbs/nic.hpp"
#include "dtr/fabric/verbs/options.hpp"
#include "dtr/fabric/verbs/registrations.hpp"

namespace dtr::inline v0 {
namespace fabric::verbs {

inline constexpr std::int64_t kNever = std::numeric_limits<std::int64_t>::max();

[[nodiscard]] inline std::int64_t to_ns(Deadline::Clock::time_point at) noexcept {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(at.time_since_epoch()).count();
}
[[nodiscard]] inline std::int64_t now_ns() noexcept { return to_ns(Deadline::Clock::now()); }
[[nodiscard]] inline std::int64_t to_ns(std::chrono::milliseconds span) noexcept {
  return std::chrono::nanoseconds(span).count();
}

/// Open atomics towards one peer; the asker keeps as many receives for the results.
inline constexpr std::uint32_t kResults = 16;
/// Receives kept for credit messages: one half of the credits each.
inline constexpr std::uint32_t kCreditMessages = 2;

class Link;

class Hub {
 public:
  Hub(const TransportContext& shared, const VerbsOptions& chosen, std::shared_ptr<VerbsApi> table,
      std::vector<std::unique_ptr<Nic>> ports)
      : context(shared),
        options(chosen),
        api(std::move(table)),
        nics(std::move(ports)),
        registrations(nics),
        pool(nics, sizeof(MessageHeader) + options.eager_bytes, options.message_pool),
        bell(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {}
  Hub(const Hub&) = delete;
  Hub& operator=(const Hub&) = delete;

  const TransportContext context;
  const VerbsOptions& options;
  const std::shared_ptr<VerbsApi> api;
  const std::vector<std::unique_ptr<Nic>> nics;
  Registrations registrations;
  MessagePool pool;
  ForkGuard fork_guard;
  UniqueFd bell;

  /// progress wants to be called at this time. Any thread.
  void call_at(std::int64_t when_ns) noexcept {
    std::int64_t present = next_call.load(std::memory_order_seq_cst);
    while (when_ns < present) {
      if (!next_call.compare_exchange_weak(present, when_ns, std::memory_order_seq_cst)) continue;
      if (asleep.load(std::memory_order_seq_cst)) ring();
      return;
    }
  }
  void ring() const noexcept {
    const std::uint64_t one = 1;
    [[maybe_unused]] const auto written = ::write(bell.get(), &one, sizeof one);
  }

  // The rest happens inside progress.

  /// How this process is reached now (GIDs change).
  [[nodiscard]] virtual Address own_address() const = 0;
  /// Over the control connection to the peer, which is made on first use.
  virtual void send_control(Link& link, std::vector<std::byte> message) noexcept = 0;
  /// This process gives a peer up, which cannot be reached or broke the protocol: final, and the peer is told.
  virtual void give_up(Link& link, Errc code, std::string_view why) noexcept = 0;

  std::atomic<std::int64_t> next_call{kNever};
  std::atomic<bool> asleep{false};

 protected:
  ~Hub() = default;
};

}  // namespace fabric::verbs
}  // namespace dtr::inline v0
