// The initiator's end of a link: posts requests, copies in the caller where it can, and sends frames where not.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>

#include "dtr/fabric/checks.hpp"
#include "dtr/fabric/refusals.hpp"
#include "dtr/fabric/shm/dialer.hpp"
#include "dtr/fabric/shm/frames.hpp"
#include "dtr/fabric/shm/imports.hpp"
#include "dtr/fabric/shm/local.hpp"
#include "dtr/fabric/shm/operations.hpp"
#include "dtr/fabric/spin_lock.hpp"

namespace dtr::inline v0 {
namespace fabric::shm {

class OutLink final : public Watcher {
 public:
  OutLink(std::shared_ptr<Local> local, PeerId peer, const Address& address, Deadline deadline);
  ~OutLink() override;

  // --- any thread: what Channel promises ---
  [[nodiscard]] PostResult post(std::span<const WorkRequest> requests, Deadline deadline) noexcept;
  [[nodiscard]] Result<const RemoteRegion*> import(const RemoteKey& key);
  [[nodiscard]] bool reads_process() const noexcept;
  [[nodiscard]] Status read_process(std::uint64_t address, std::span<std::byte> to) noexcept;
  std::uint32_t cancel(Completion& completion) noexcept;
  void end_atomics() noexcept;
  void close() noexcept;
  void abort(Errc code) noexcept;
  [[nodiscard]] ChannelState state() const noexcept;
  [[nodiscard]] std::string path() const;
  [[nodiscard]] std::string explain(const Status& status) const;
  /// The channel object is gone, nobody posts any more.
  void detach() noexcept;

  // --- progress ---
  int drive(int budget);
  [[nodiscard]] bool has_work();
  [[nodiscard]] Deadline::Clock::time_point next_deadline() const noexcept;
  [[nodiscard]] bool over() const noexcept;
  [[nodiscard]] PeerId peer() const noexcept { return peer_; }
  void fence();
  /// The process leaves: the target is told, and the link ends.
  void leave();
  /// The transport is going: lets go of its descriptors.
  void shut_down() noexcept;
  void on_readable(int fd) noexcept override;

 private:
  enum class Phase : std::uint8_t { connecting, open, closing, closed, failed };
  enum class Gate : std::uint8_t { shut, open, old_only };  ///< old_only: what was posted before close
  enum class Way : std::uint8_t { done, refused, by_message };
  struct Moved {
    Way way = Way::done;
    Errc code = Errc::ok;
    std::int32_t cause = 0;
  };
  static constexpr Errc kQueued = static_cast<Errc>(1);  ///< taken, ends later

  // out_post.cpp: the caller's side
  [[nodiscard]] Status shut_status() const noexcept;
  template <bool kWord>
  [[nodiscard]] bool copy_one(const WorkRequest& request) noexcept;
  [[nodiscard]] bool send_one(const WorkRequest& request) noexcept;
  [[nodiscard]] PostResult post_several(std::span<const WorkRequest> requests, Deadline deadline) noexcept;
  [[nodiscard]] PostResult post_rest(std::span<const WorkRequest> requests, Deadline deadline,
                                     PostResult result) noexcept;
  [[nodiscard]] Status take(const WorkRequest& request, Deadline deadline, bool& sent) noexcept;
  [[nodiscard]] Status take_copy(const WorkRequest& request, Deadline deadline, bool& sent) noexcept;
  [[nodiscard]] std::uint32_t take_messages(std::span<const WorkRequest> requests, Status& status) noexcept;
  /// Copies the first requests that are all for one mapped region, under one flag; how many. 0: take() says why.
  [[nodiscard]] std::uint32_t copy_mapped(std::span<const WorkRequest> requests) noexcept;
  /// May a copy to this region go on? With the flag raised.
  [[nodiscard]] Moved look(const Imported& target) const noexcept;
  [[nodiscard]] Moved move_piece(const WorkRequest& request, std::uint64_t done, std::uint64_t bytes) noexcept;
  [[nodiscard]] Moved foreign_piece(const WorkRequest& request, const Imported& target, std::uint64_t done,
                                    std::uint64_t bytes) noexcept;
  [[nodiscard]] Errc push_message(const WorkRequest& request) noexcept;  // with lock_
  [[nodiscard]] Status enqueue(const WorkRequest& request, Deadline deadline, std::uint64_t moved) noexcept;
  void ring_peer() noexcept { ring(*parts_.control, parts_.doorbell.get(), barriers()); }
  /// The peer's heavy barriers reach us.
  [[nodiscard]] bool barriers() const noexcept { return local_->reached_by(peer_makes_barriers_); }

  // out_operations.cpp: requests that outlive post; all but take_answers with lock_
  int advance(Ended& ended) noexcept;
  bool step_copy(Operation& operation, std::uint64_t& budget, Ended& ended) noexcept;
  bool push(Operation& operation) noexcept;
  bool push_put(Operation& operation) noexcept;
  void end(Operation& operation, Status status, Ended& ended) noexcept;
  void end_all(Errc code, Ended& ended) noexcept;
  int take_answers(int budget);
  [[nodiscard]] bool take_answer(const RingConsumer::Frame& frame, Ended& ended) noexcept;

  // out_link.cpp: life
  void open(OutParts parts);
  int drive_open(int budget);
  void read_messages();
  void lost(Errc code, const std::string& why);
  void fail_with(Errc code, const std::string& why) noexcept;
  void retire() noexcept;

  const std::shared_ptr<Local> local_;
  const PeerId peer_;
  const Address address_;

  std::atomic<Gate> gate_{Gate::shut};
  bool peer_makes_barriers_ = false;
  std::uint32_t max_message_ = 0;
  OutParts parts_{};  ///< set once, before the gate opens; descriptors but the doorbell are progress's own

  mutable SpinLock lock_;  ///< ring, operations, phase
  RingProducer forward_;
  OperationTable operations_;
  std::atomic<std::uint32_t> open_operations_{0};
  bool stalled_ = false;   ///< somebody found no room in the ring
  bool runnable_ = false;  ///< an operation was left off although it could go on
  std::uint32_t fragment_ = 0;

  std::atomic<Phase> phase_{Phase::connecting};
  std::atomic<Errc> failure_{Errc::closed};
  mutable std::mutex why_mutex_;
  std::string why_;
  std::atomic<bool> detached_{false};

  Imports imports_;
  Refusals refusals_;

  std::optional<Dialer> dialer_;  // progress only, as what follows
  bool dialer_ready_ = true;
  Watch socket_watch_;
  Watch process_watch_;
  RingConsumer backward_;
  ExactReader reader_;
  Message message_{};
  bool retiring_ = false;
  bool told_ = false;  ///< the target knows that the link ends
};

}  // namespace fabric::shm
}  // namespace dtr::inline v0
