// The target's side: turns a stream of bytes into accesses to this process's memory, notifications and messages.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <span>
#include <vector>

#include "dtr/fabric/tcp/reply_queue.hpp"
#include "dtr/fabric/tcp/stream_reader.hpp"
#include "dtr/fabric/tcp/wire.hpp"
#include "dtr/fabric/transport.hpp"

namespace dtr::inline v0 {
namespace fabric::tcp {

/// What a target remembers of one initiator over all its connections.
struct Inbound {
  struct Refusal {
    std::uint64_t sequence = 0;
    Errc code = Errc::ok;
  };

  std::uint64_t processed = 0;        ///< requests worked off
  std::deque<Refusal> refusals{};     ///< those that a reconnecting initiator may not know of
  std::atomic<bool> shut_out{false};  ///< fenced: nothing more of it is executed

  void note_refusal(std::uint64_t sequence, Errc code);
};

/// One for each connection; bytes come in by prepare and received. Knows no socket, so that a fuzzer can feed it.
/// Progress thread only.
class RequestReader {
 public:
  RequestReader(PeerId from, Inbound& inbound, RegionTable& regions, Receiver& receiver, ReplyQueue& replies) noexcept;

  /// Where the next bytes go: the number of pieces filled in.
  [[nodiscard]] std::size_t prepare(iovec (&pieces)[2]) noexcept { return stream_.prepare(pieces); }

  /// `bytes` were placed as prepare() said: executes what is complete. bytes = 0 goes on after blocked().
  void received(std::size_t bytes) noexcept;

  /// The replies are full: give no more bytes until they have room again.
  [[nodiscard]] bool blocked() const noexcept { return blocked_; }

  /// Why this stream cannot go on, nullptr = it can.
  [[nodiscard]] const char* error() const noexcept { return error_; }

  [[nodiscard]] bool said_goodbye() const noexcept { return said_goodbye_; }

  /// Since answered() there was something else than messages.
  [[nodiscard]] bool urgent() const noexcept { return urgent_; }
  void answered() noexcept { urgent_ = false; }

  /// A payload is on its way into a region; while that takes long, look whether the region was revoked.
  [[nodiscard]] bool in_put() const noexcept { return putting_; }

  /// If its region was revoked, the rest of the payload goes nowhere and the region is let go.
  void look_for_revocation() noexcept;

 private:
  void execute(const RequestHeader& header, std::span<const std::byte> message) noexcept;
  void begin_message(const RequestHeader& header) noexcept;
  void deliver(Port port, std::span<const std::byte> message) noexcept;
  void begin_put(const RequestHeader& header) noexcept;
  void finish_put() noexcept;
  void answer_get(const RequestHeader& header) noexcept;
  void answer_atomic(const RequestHeader& header) noexcept;
  [[nodiscard]] Errc acquire(const RequestHeader& header, std::uint64_t length, Access access,
                             RegionTable::Use& use) noexcept;
  void refuse(Errc code) noexcept;

  PeerId from_;
  Inbound& inbound_;
  RegionTable& regions_;
  Receiver& receiver_;
  ReplyQueue& replies_;
  StreamReader stream_;
  bool blocked_ = false;
  bool said_goodbye_ = false;
  bool urgent_ = false;
  const char* error_ = nullptr;

  bool gathering_ = false;  ///< a message that was not wholly there is being put together
  Port gathered_port_ = 0;
  std::vector<std::byte> message_;

  bool putting_ = false;  ///< the payload of put_ is under way
  RequestHeader put_{};
  Errc put_refusal_ = Errc::ok;
  RegionTable::Use put_use_{};
};

}  // namespace fabric::tcp
}  // namespace dtr::inline v0
