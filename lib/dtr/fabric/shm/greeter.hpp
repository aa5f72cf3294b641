// The target's half of setting a link up: one for each connection that has not proven itself yet.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "dtr/base/deadline.hpp"
#include "dtr/fabric/handshake.hpp"
#include "dtr/fabric/shm/link_memory.hpp"
#include "dtr/fabric/shm/local.hpp"
#include "dtr/fabric/shm/messages.hpp"
#include "dtr/fabric/shm/socket.hpp"

namespace dtr::inline v0 {
namespace fabric::shm {

/// What the target holds of an open link.
struct InParts {
  PeerId peer = 0;
  UniqueFd socket{};
  UniqueFd process{};   ///< readable when the initiator's process ends; may be none
  UniqueFd doorbell{};  ///< the initiator's
  Control control{};    ///< the initiator's
  LinkMemory memory{};
};

class Greeter final : public Watcher {
 public:
  Greeter(Local& local, UniqueFd socket, Deadline deadline);

  [[nodiscard]] Result<void> watch();

  /// Goes as far as it can now. The link once it stands; an Error = close this one, it says why.
  [[nodiscard]] Result<std::optional<InParts>> drive();

  /// Tells the initiator that the link stands. Call once it is ready to be used.
  [[nodiscard]] static bool welcome(const Local& local, const InParts& parts);

  [[nodiscard]] bool ready() const noexcept { return ready_; }
  [[nodiscard]] const Deadline& deadline() const noexcept { return deadline_; }

  void on_readable(int) noexcept override { ready_ = true; }

 private:
  enum class Step : std::uint8_t { hello, proof, offer };

  Result<void> answer_hello();
  Result<InParts> finish();
  tl::unexpected<Error> refuse(Error why);

  Local& local_;
  UniqueFd socket_;
  Watch watch_;
  const Deadline deadline_;
  bool ready_ = true;
  Step step_ = Step::hello;
  ExactReader reader_;
  Hello theirs_{};
  Hello ours_{};
  Proof proof_{};
  Offer offer_{};
};

}  // namespace fabric::shm
}  // namespace dtr::inline v0
