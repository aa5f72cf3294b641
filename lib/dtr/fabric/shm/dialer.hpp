// The initiator's half of setting a link up, step by step as the socket allows.
#pragma once

#include <chrono>
#include <optional>

#include "dtr/base/deadline.hpp"
#include "dtr/fabric/handshake.hpp"
#include "dtr/fabric/shm/link_memory.hpp"
#include "dtr/fabric/shm/local.hpp"
#include "dtr/fabric/shm/messages.hpp"
#include "dtr/fabric/shm/socket.hpp"

namespace dtr::inline v0 {
namespace fabric::shm {

/// What the initiator holds of an open link.
struct OutParts {
  UniqueFd socket{};
  UniqueFd process{};   ///< readable when the target's process ends; may be none
  UniqueFd doorbell{};  ///< the target's
  pid_t pid = 0;
  Control control{};  ///< the target's
  std::shared_ptr<Segment> validity{};
  LinkMemory memory{};
  bool cma = false;
};

class Dialer {
 public:
  Dialer(Local& local, PeerId peer, const Address& address, Deadline deadline, Watcher& watcher);

  /// Goes as far as it can now. The link once it stands, nothing while it is under way.
  /// Errors: timed_out, peer_failed (nobody listens), handshake_rejected, fenced, protocol_error, ...
  [[nodiscard]] Result<std::optional<OutParts>> drive();

  /// When to drive it although the socket is silent.
  [[nodiscard]] Deadline::Clock::time_point next_deadline() const noexcept;

 private:
  enum class Step : std::uint8_t { dial, hello, proof, verdict, welcome };

  Result<void> dial();
  Result<void> answer_hello();
  Result<OutParts> finish();
  void start_over() noexcept;

  Local& local_;
  const PeerId peer_;
  const Address address_;
  const Deadline deadline_;
  Watcher& watcher_;

  Step step_ = Step::dial;
  Deadline::Clock::time_point retry_at_{};
  std::chrono::milliseconds pause_{1};
  std::uint32_t attempt_ = 0;
  UniqueFd socket_;
  Watch watch_;
  ExactReader reader_;
  Hello ours_{};
  Hello theirs_{};
  Proof proof_{};
  Verdict verdict_{};
  Welcome welcome_{};
  LinkMemory memory_;
};

}  // namespace fabric::shm
}  // namespace dtr::inline v0
