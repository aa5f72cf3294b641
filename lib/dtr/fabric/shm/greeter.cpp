#include "dtr/fabric/shm/greeter.hpp"

#include <array>
#include <utility>

namespace dtr::inline v0 {
namespace fabric::shm {

namespace {

constexpr const char* kOperation = "accept";

}  // namespace

Greeter::Greeter(Local& local, UniqueFd socket, Deadline deadline)
    : local_(local), socket_(std::move(socket)), deadline_(deadline) {
  reader_.expect(theirs_);
}

Result<void> Greeter::watch() {
  auto watch = local_.poller.add(socket_.get(), *this);
  if (!watch) return fail(std::move(watch.error()));
  watch_ = std::move(*watch);
  return {};
}

Result<std::optional<InParts>> Greeter::drive() {
  ready_ = false;
  while (true) {
    const ExactReader::Got got = reader_.read(socket_.get());
    if (got == ExactReader::Got::nothing) {
      if (deadline_.passed()) return fail(Errc::timed_out, "a connection did not finish its handshake", kOperation);
      return std::nullopt;
    }
    if (got == ExactReader::Got::ended) {
      return fail(Errc::truncated, "a connection ended within its handshake", kOperation);
    }
    switch (step_) {
      case Step::hello:
        if (auto answered = answer_hello(); !answered) return fail(std::move(answered.error()));
        reader_.expect(proof_);
        step_ = Step::proof;
        break;
      case Step::proof:
        if (auto proven = check_proof(proof_, local_.identity, Side::initiator, theirs_, ours_); !proven) {
          return refuse(std::move(proven.error()));
        }
        reader_.expect(offer_, Offer::kFds);
        step_ = Step::offer;
        break;
      case Step::offer: {
        auto parts = finish();
        if (!parts) return refuse(std::move(parts.error()));
        return std::optional<InParts>(std::move(*parts));
      }
    }
  }
}

Result<void> Greeter::answer_hello() {
  auto fits = check_hello(theirs_, local_.identity, kTransportId, -1);
  if (!fits && theirs_.magic != kHelloMagic) return fits;
  // Another build or version gets our Hello, so that it can name the difference too.
  ours_ = make_hello(local_.identity, kTransportId, theirs_.peer, theirs_.connection);
  const bool sent = send_value(socket_.get(), ours_) &&
                    send_value(socket_.get(), make_proof(local_.identity, Side::responder, theirs_, ours_));
  if (!fits) return refuse(std::move(fits.error()));
  if (!sent) return fail(Errc::truncated, "a connection ended within its handshake", kOperation);
  return {};
}

Result<InParts> Greeter::finish() {
  if (local_.peers.fenced(theirs_.peer)) {
    return fail(Errc::fenced, "this peer was declared failed", kOperation, static_cast<int>(theirs_.peer));
  }
  auto& fds = reader_.fds();
  if (fds.size() != Offer::kFds) return fail(Errc::protocol_error, "the peer sent no descriptors", kOperation);
  InParts parts;
  parts.peer = theirs_.peer;
  auto control = Control::map(std::move(fds[0]));
  if (!control) return fail(std::move(control.error()));
  parts.control = std::move(*control);
  auto memory = LinkMemory::map(std::move(fds[1]), offer_.forward_slots, offer_.backward_slots);
  if (!memory) return fail(std::move(memory.error()));
  parts.memory = std::move(*memory);
  parts.doorbell = std::move(fds[2]);
  parts.process = watch_process(socket_.get());
  watch_.reset();
  parts.socket = std::move(socket_);
  return parts;
}

bool Greeter::welcome(const Local& local, const InParts& parts) {
  const Welcome welcome{.probe_address = reinterpret_cast<std::uintptr_t>(local.probe.data()), .probe = local.probe};
  const std::array<int, Welcome::kFds> fds{local.control.segment()->fd(), local.regions.validity()->fd(),
                                           local.doorbell.get()};
  return send_value(parts.socket.get(), Verdict{}) && send_value(parts.socket.get(), welcome, fds);
}

tl::unexpected<Error> Greeter::refuse(Error why) {
  const Verdict verdict{.code = static_cast<std::int32_t>(why.code)};
  // Best effort: the connection is closed next, and that says it too.
  static_cast<void>(send_value(socket_.get(), verdict));
  return fail(std::move(why));
}

}  // namespace fabric::shm
}  // namespace dtr::inline v0
