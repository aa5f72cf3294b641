#include "dtr/fabric/shm/dialer.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <string>
#include <utility>

#include "dtr/fabric/shm/foreign_memory.hpp"
#include "dtr/fabric/shm/frames.hpp"

namespace dtr::inline v0 {
namespace fabric::shm {

namespace {

constexpr const char* kOperation = "connect";
constexpr std::chrono::milliseconds kLongestPause{100};
constexpr std::uint64_t kBackwardSlots = 1024;  ///< answers need less than requests

}  // namespace

Dialer::Dialer(Local& local, PeerId peer, const Address& address, Deadline deadline, Watcher& watcher)
    : local_(local), peer_(peer), address_(address), deadline_(deadline), watcher_(watcher) {}

Deadline::Clock::time_point Dialer::next_deadline() const noexcept {
  return step_ == Step::dial ? std::min(retry_at_, deadline_.at()) : deadline_.at();
}

void Dialer::start_over() noexcept {
  watch_.reset();
  socket_.reset();
  memory_ = {};
  step_ = Step::dial;
  retry_at_ = Deadline::Clock::now() + pause_;
  pause_ = std::min(pause_ * 2, kLongestPause);
}

Result<std::optional<OutParts>> Dialer::drive() {
  if (deadline_.passed()) {
    return fail(Errc::timed_out, "the peer's process " + std::to_string(address_.pid) + " did not answer", kOperation);
  }
  while (true) {
    if (step_ == Step::dial) {
      if (Deadline::Clock::now() < retry_at_) return std::nullopt;
      if (auto dialed = dial(); !dialed) {
        if (dialed.error().code != Errc::again) return fail(std::move(dialed.error()));
        start_over();
        return std::nullopt;
      }
    }
    const ExactReader::Got got = reader_.read(socket_.get());
    if (got == ExactReader::Got::nothing) return std::nullopt;
    if (got == ExactReader::Got::ended) {
      // Shed under load, or the process ended: the next attempt tells which.
      start_over();
      return std::nullopt;
    }
    switch (step_) {
      case Step::dial:
        break;
      case Step::hello:
        if (auto fits = check_hello(theirs_, local_.identity, kTransportId, peer_); !fits) {
          return fail(std::move(fits.error()));
        }
        reader_.expect(proof_);
        step_ = Step::proof;
        break;
      case Step::proof:
        if (auto answered = answer_hello(); !answered) return fail(std::move(answered.error()));
        reader_.expect(verdict_);
        step_ = Step::verdict;
        break;
      case Step::verdict:
        if (verdict_.code != 0) {
          return fail(errc_from_wire(verdict_.code), "the peer refused the connection", kOperation,
                      static_cast<int>(peer_), "shm");
        }
        reader_.expect(welcome_, Welcome::kFds);
        step_ = Step::welcome;
        break;
      case Step::welcome: {
        auto parts = finish();
        if (!parts) return fail(std::move(parts.error()));
        return std::optional<OutParts>(std::move(*parts));
      }
    }
  }
}

Result<void> Dialer::dial() {
  auto socket = connect_to(address_);
  if (!socket) {
    if (socket.error().code == Errc::not_found) socket.error().code = Errc::peer_failed;
    return fail(std::move(socket.error()));
  }
  socket_ = std::move(*socket);
  auto watch = local_.poller.add(socket_.get(), watcher_);
  if (!watch) return fail(std::move(watch.error()));
  watch_ = std::move(*watch);
  ours_ = make_hello(local_.identity, kTransportId, peer_, attempt_++);
  if (!send_value(socket_.get(), ours_)) return fail(Errc::again, "the connection broke", kOperation);
  reader_.expect(theirs_);
  step_ = Step::hello;
  return {};
}

Result<void> Dialer::answer_hello() {
  if (auto proven = check_proof(proof_, local_.identity, Side::responder, ours_, theirs_); !proven) return proven;
  const std::uint64_t forward = local_.options.ring_bytes / kSlot;
  const Offer offer{.forward_slots = forward, .backward_slots = std::min(forward, kBackwardSlots)};
  auto memory = LinkMemory::create(offer.forward_slots, offer.backward_slots);
  if (!memory) return fail(std::move(memory.error()));
  memory_ = std::move(*memory);
  const std::array<int, Offer::kFds> fds{local_.control.segment()->fd(), memory_.fd(), local_.doorbell.get()};
  // If these cannot be sent the peer has gone, and reading on says so.
  const bool sent = send_value(socket_.get(), make_proof(local_.identity, Side::initiator, ours_, theirs_)) &&
                    send_value(socket_.get(), offer, fds);
  static_cast<void>(sent);
  memory_.close_fd();
  return {};
}

Result<OutParts> Dialer::finish() {
  auto& fds = reader_.fds();
  if (fds.size() != Welcome::kFds) return fail(Errc::protocol_error, "the peer sent no descriptors", kOperation);
  OutParts parts;
  auto control = Control::map(std::move(fds[0]));
  if (!control) return fail(std::move(control.error()));
  parts.control = std::move(*control);
  auto validity = Segment::map(0, std::move(fds[1]));
  if (!validity) return fail(std::move(validity.error()));
  if ((*validity)->length() < RegionTable::kValidityBytes) {
    return fail(Errc::protocol_error, "the peer's validity segment is too small", kOperation);
  }
  parts.validity = std::move(*validity);
  parts.doorbell = std::move(fds[2]);
  parts.pid = peer_pid(socket_.get());
  parts.process = watch_process(socket_.get());
  parts.memory = std::move(memory_);
  if (local_.options.cma != CmaUse::off) {
    std::array<std::byte, sizeof welcome_.probe> seen{};
    const ForeignCopy probe = parts.pid > 0 ? read_foreign(parts.pid, welcome_.probe_address, seen.data(), seen.size())
                                            : ForeignCopy{Errc::not_found, 0};
    parts.cma = probe.code == Errc::ok && seen == welcome_.probe;
    if (!parts.cma && local_.options.cma == CmaUse::on) {
      return fail(Errc::unsupported,
                  "process_vm_readv of the peer failed (" + errno_error(probe.cause, "probe").message +
                      "), and it is asked for",
                  kOperation);
    }
  }
  watch_.reset();
  parts.socket = std::move(socket_);
  return parts;
}

}  // namespace fabric::shm
}  // namespace dtr::inline v0
