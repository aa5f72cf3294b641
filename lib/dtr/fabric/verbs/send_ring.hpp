// The work requests of one queue pair from staging to retirement. Prebuilt and chained: staging fills a slot, one
// doorbell posts the chain, one completion retires all that came before it.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "dtr/fabric/verbs/verbs_api.hpp"

namespace dtr::inline v0 {
namespace fabric::verbs {

/// What a work request is for; what it takes to send it again on another queue pair.
struct Flight {
  enum class Kind : std::uint8_t {
    nothing,  ///< its request has ended and wants no more of it; or it only tries the way
    slice,    ///< data of a put or get
    notify,   ///< data, if `bytes`, and a notification
    message,
    request,  ///< an atomic for the target's CPU
    atomic,   ///< an atomic for the target's NIC
    flush,
    result,  ///< our answer to a request
    credit,
  };
  std::uint32_t subject = 0;  ///< the operation's number; of results and credits the buffer's
  Kind kind = Kind::nothing;
  std::uint8_t reserved[3] = {};
  std::uint32_t order = 0;  ///< counts what consumes a receive at the target, from 1; 0 = does not
  std::uint32_t bytes = 0;
  std::uint64_t offset = 0;

  /// `subject` is an operation, which counts it.
  [[nodiscard]] bool is_of_request() const noexcept {
    return kind != Kind::nothing && kind != Kind::result && kind != Kind::credit;
  }
};
static_assert(sizeof(Flight) == 24);

/// Guarded by its link's lock.
class SendRing {
 public:
  /// `depth` is a power of two.
  explicit SendRing(std::uint32_t depth) : mask_(depth - 1), flights_(depth), requests_(depth), pieces_(depth) {
    for (std::uint32_t i = 0; i < depth; ++i) {
      requests_[i].sg_list = &pieces_[i];
      requests_[i].next = &requests_[(i + 1) & mask_];
    }
  }

  [[nodiscard]] std::uint32_t depth() const noexcept { return mask_ + 1; }
  [[nodiscard]] bool has_room() const noexcept { return head_ - done_ <= mask_; }
  [[nodiscard]] bool empty() const noexcept { return head_ == done_; }
  [[nodiscard]] std::uint64_t head() const noexcept { return head_; }
  [[nodiscard]] std::uint64_t done() const noexcept { return done_; }
  [[nodiscard]] bool staged() const noexcept { return rung_ != head_; }
  [[nodiscard]] Flight& at(std::uint64_t sequence) noexcept { return flights_[sequence & mask_]; }

  /// A slot of the chain; has_room() must be true. The caller sets what goes with the opcode.
  [[nodiscard]] ibv_send_wr& stage(const Flight& flight, ibv_wr_opcode opcode, std::uint64_t address,
                                   std::uint32_t length, std::uint32_t lkey, unsigned flags) noexcept {
    const std::uint64_t slot = head_ & mask_;
    flights_[slot] = flight;
    pieces_[slot] = {.addr = address, .length = length, .lkey = lkey};
    ibv_send_wr& request = requests_[slot];
    request.wr_id = head_++;
    request.num_sge = length > 0 ? 1 : 0;
    request.opcode = opcode;
    request.send_flags = flags;
    if (++unsignalled_ > mask_ / 4) signal(request);
    return request;
  }

  /// Posts what is staged; the last of a chain is always signalled. Not 0: the errno; what the device did not take is
  /// between withdrawn() and head().
  [[nodiscard]] int ring(VerbsApi& api, ibv_qp* queue_pair) noexcept {
    if (rung_ == head_) return 0;
    ibv_send_wr& last = requests_[(head_ - 1) & mask_];
    signal(last);
    ibv_send_wr* const next = std::exchange(last.next, nullptr);
    ibv_send_wr* bad = nullptr;
    const int error = api.post_send(queue_pair, &requests_[rung_ & mask_], &bad);
    last.next = next;
    rung_ = error == 0 || bad == nullptr ? head_ : bad->wr_id;
    return error;
  }
  [[nodiscard]] std::uint64_t withdrawn() const noexcept { return rung_; }
  /// Forgets what was not posted.
  void withdraw() noexcept { head_ = rung_; }

  /// The oldest is over.
  void retire() noexcept { ++done_; }

  /// For a new queue pair; the ring is empty.
  void restart() noexcept {
    head_ = rung_ = done_ = 0;
    unsignalled_ = 0;
  }

 private:
  void signal(ibv_send_wr& request) noexcept {
    request.send_flags |= IBV_SEND_SIGNALED;
    unsignalled_ = 0;
  }

  std::uint32_t mask_;
  std::vector<Flight> flights_;
  std::vector<ibv_send_wr> requests_;
  std::vector<ibv_sge> pieces_;
  std::uint64_t done_ = 0;  ///< retired so far
  std::uint64_t rung_ = 0;  ///< posted so far
  std::uint64_t head_ = 0;  ///< staged so far
  std::uint32_t unsignalled_ = 0;
};

}  // namespace fabric::verbs
}  // namespace dtr::inline v0
