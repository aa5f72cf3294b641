// The target's end of a link: applies what comes through the ring, answers, and knows whether the initiator is
// inside our memory.
#pragma once

#include <deque>
#include <memory>
#include <set>
#include <string>

#include "dtr/fabric/shm/frames.hpp"
#include "dtr/fabric/shm/greeter.hpp"
#include "dtr/fabric/shm/local.hpp"

namespace dtr::inline v0 {
namespace fabric::shm {

/// Progress thread only.
class InLink final : public Watcher {
 public:
  InLink(Local& local, InParts parts);

  /// Watches the peer and tells it that the link stands.
  [[nodiscard]] Result<void> start();

  /// Handles up to `budget` frames.
  int serve(int budget);
  [[nodiscard]] bool has_work();

  /// Does a thread of the peer show this value? Call after a heavy barrier.
  [[nodiscard]] bool shows(std::uint64_t value) const noexcept;

  /// Nothing is registered in this segment any more.
  void unmap(std::uint64_t segment);
  /// Shuts the link; the peer is told why.
  void drop(Errc code, const std::string& why);
  void leave();

  [[nodiscard]] bool over() const noexcept { return state_ == State::over; }
  [[nodiscard]] PeerId peer() const noexcept { return parts_.peer; }
  void on_readable(int fd) noexcept override;

 private:
  enum class State : std::uint8_t {
    open,
    draining,  ///< the peer has ended it; what it sent before still counts
    shut,      ///< nothing more is taken, but its threads may still be inside our memory
    over,      ///< the peer's end of the socket is closed, or its process gone
  };
  struct Get {
    GetBody body{};
    std::uint64_t sent = 0;
  };

  [[nodiscard]] bool take(const RingConsumer::Frame& frame);
  [[nodiscard]] bool take_put(const RingConsumer::Frame& frame);
  [[nodiscard]] bool take_get(const RingConsumer::Frame& frame);
  [[nodiscard]] bool take_atomic(const RingConsumer::Frame& frame);
  int serve_gets();
  bool answer(std::uint32_t operation, Errc code, std::uint64_t value = 0);
  [[nodiscard]] bool room_for_answer();
  void read_messages();
  void pass_segment(std::uint64_t id);
  void unsent();
  void ended(bool gone, Errc code, const std::string& why);
  void finish_draining();

  Local& local_;
  InParts parts_;
  const bool peer_makes_barriers_;
  State state_ = State::open;
  bool gone_ = false;  ///< the socket's other end is closed
  Errc end_code_ = Errc::ok;
  std::string end_why_;

  /// Frames taken in one call: grows while they stream in. A single one is answered without looking behind it first,
  /// which costs a cache miss.
  int window_ = 1;
  RingConsumer forward_;
  RingProducer backward_;
  bool stalled_ = false;
  bool answered_ = false;
  std::uint32_t fragment_ = 0;
  std::deque<Get> gets_;
  bool put_failed_ = false;
  std::uint32_t failed_put_ = 0;  ///< its later pieces are dropped

  std::set<std::uint64_t> passed_;  ///< segments that the peer was given
  ExactReader reader_;
  Message message_{};
  Watch socket_watch_;
  Watch process_watch_;
};

}  // namespace fabric::shm
}  // namespace dtr::inline v0
