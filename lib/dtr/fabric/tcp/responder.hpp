// A peer's connection to this process: reads its requests, sends our replies.
#pragma once

#include <cstdint>
#include <string>

#include "dtr/base/fd.hpp"
#include "dtr/fabric/tcp/hub.hpp"
#include "dtr/fabric/tcp/outbox.hpp"
#include "dtr/fabric/tcp/reply_queue.hpp"
#include "dtr/fabric/tcp/request_reader.hpp"

namespace dtr::inline v0 {
namespace fabric::tcp {

/// Progress thread only.
class Responder final : public Pollable {
 public:
  Responder(Hub& hub, PeerRecord& peer, UniqueFd fd, const Endpoint& from);
  ~Responder();
  Responder(const Responder&) = delete;
  Responder& operator=(const Responder&) = delete;

  /// Sends the verdict and where the peer's requests stand.
  void start() noexcept;

  void on_ready(std::uint32_t events) noexcept override;

  /// Returns when to look again.
  [[nodiscard]] std::int64_t on_time(std::int64_t now) noexcept;

  /// Sends an acknowledgement that is owed.
  void settle() noexcept;

  /// Tells the peer that this process leaves. If the socket is full it waits, if the deadline allows.
  void say_goodbye(Deadline patience) noexcept;

  /// Ends the connection without a word.
  void close() noexcept;

  [[nodiscard]] const Endpoint& from() const noexcept { return from_; }

 private:
  void receive() noexcept;
  /// False: the connection is gone.
  [[nodiscard]] bool take_out() noexcept;
  void answer() noexcept;
  void acknowledge() noexcept;
  void pump() noexcept;
  void watch() noexcept;
  void lose(std::string why) noexcept;

  Hub& hub_;
  PeerRecord& peer_;
  UniqueFd fd_;
  Endpoint from_;
  const std::size_t most_owed_bytes_;  ///< of messages, before they are acknowledged; a peer's options are like ours
  const std::uint64_t most_owed_messages_;
  ReplyQueue replies_;
  RequestReader reader_;
  Outbox outbox_;
  SilenceWatch silence_;
  std::uint32_t watched_ = 0;
  bool write_blocked_ = false;
  bool owes_ = false;           ///< settle() is called later
  std::size_t owed_bytes_ = 0;  ///< received since the last acknowledgement
  bool sparse_ = false;         ///< little comes at once
  std::size_t left_in_ = 0;     ///< bytes that were read, and are still to be taken out of the socket
};

}  // namespace fabric::tcp
}  // namespace dtr::inline v0
