#include "dtr/fabric/tcp/lobby.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "dtr/base/log.hpp"

namespace dtr::inline v0 {
namespace fabric::tcp {

namespace {

constexpr int kAcceptsAtOnce = 32;  // fewer than places, so that a flood leaves those inside time to speak
constexpr std::int64_t kSecond = 1'000'000'000;
constexpr std::int64_t kRest = kSecond / 10;

}  // namespace

Lobby::Lobby(Hub& hub, UniqueFd listener)
    : hub_(hub), listener_(std::move(listener)), guests_(hub.options.max_pending_handshakes) {
  for (Guest& guest : guests_) guest.lobby = this;
}

Lobby::~Lobby() {
  for (Guest& guest : guests_) {
    if (guest.fd) hub_.poller.forget(guest.fd.get());
  }
  hub_.poller.forget(listener_.get());
}

void Lobby::on_ready(std::uint32_t /*events*/) noexcept {
  for (int i = 0; i < kAcceptsAtOnce; ++i) {
    Endpoint from;
    UniqueFd fd = accept_from(listener_.get(), from);
    if (!fd) {
      if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
        // The stranger stays in the kernel's queue; asking again at once would only spin.
        drop_oldest("descriptors are short");
        hub_.poller.change(listener_.get(), 0, *this);
        accept_again_ = now_ns() + kRest;
        hub_.call_at(accept_again_);
      }
      return;
    }
    Guest& guest = free_place();
    if (hub_.poller.watch(fd.get(), EPOLLIN, guest) != 0) continue;
    guest.fd = std::move(fd);
    guest.from = from;
    guest.arrival = ++arrivals_;
    guest.deadline = now_ns() + to_ns(hub_.options.handshake_timeout);
    guest.said_hello = false;
    guest.got = 0;
    hub_.call_at(guest.deadline);
  }
}

std::int64_t Lobby::on_time(std::int64_t now) noexcept {
  std::int64_t next = kNever;
  if (accept_again_ <= now) {
    accept_again_ = kNever;
    hub_.poller.change(listener_.get(), EPOLLIN, *this);
  }
  next = std::min(next, accept_again_);
  for (Guest& guest : guests_) {
    if (!guest.fd) continue;
    if (guest.deadline <= now) {
      drop(guest, "it did not prove itself in time");
    } else {
      next = std::min(next, guest.deadline);
    }
  }
  return next;
}

Lobby::Guest& Lobby::free_place() noexcept {
  const auto free = std::find_if(guests_.begin(), guests_.end(), [](const Guest& guest) { return !guest.fd; });
  if (free != guests_.end()) return *free;
  drop_oldest("others came after it");
  return *std::find_if(guests_.begin(), guests_.end(), [](const Guest& guest) { return !guest.fd; });
}

void Lobby::drop_oldest(const char* why) noexcept {
  Guest* oldest = nullptr;
  for (Guest& guest : guests_) {
    if (!guest.fd) continue;
    // Who has said a proper hello is more likely to be a peer: it goes last.
    const auto age = [](const Guest& g) { return std::pair(g.said_hello, g.arrival); };
    if (oldest == nullptr || age(guest) < age(*oldest)) oldest = &guest;
  }
  if (oldest != nullptr) drop(*oldest, why);
}

void Lobby::drop(Guest& guest, const char* why) noexcept {
  hub_.poller.forget(guest.fd.get());
  guest.fd.reset();
  ++unreported_;
  const std::int64_t now = now_ns();
  if (now < report_after_) return;
  report_after_ = now + kSecond;
  DTR_LOG_INFO("tcp: turned away ", std::exchange(unreported_, 0), " stranger(s), the last from ",
               guest.from.to_string(), ": ", why);
}

void Lobby::Guest::on_ready(std::uint32_t /*events*/) noexcept {
  if (fd) lobby->receive(*this);
}

void Lobby::receive(Guest& guest) noexcept {
  while (guest.fd) {
    const std::size_t wanted = guest.said_hello ? sizeof(Proof) : sizeof(Hello);
    iovec piece{guest.buffer.data() + guest.got, wanted - guest.got};
    const std::ptrdiff_t n = receive_into(guest.fd.get(), &piece, 1);
    if (n == -EAGAIN) return;
    if (n <= 0) return drop(guest, "it went away");
    guest.got += static_cast<std::size_t>(n);
    if (guest.got < wanted) continue;
    guest.got = 0;
    if (guest.said_hello) return check_and_admit(guest);
    answer_hello(guest);
  }
}

void Lobby::answer_hello(Guest& guest) noexcept {
  std::memcpy(&guest.theirs, guest.buffer.data(), sizeof guest.theirs);
  const Identity& identity = hub_.context.identity;
  if (guest.theirs.magic != kHelloMagic) return drop(guest, "not a libdtr peer");
  guest.ours = make_hello(identity, kTransportLetters, guest.theirs.peer, guest.theirs.connection);
  const auto fits = check_hello(guest.theirs, identity, kTransportLetters, -1);
  // Even to a peer that does not fit we say who we are: it then can name what differs.
  Proof proof;
  if (fits) proof = make_proof(identity, Side::responder, guest.theirs, guest.ours);
  iovec pieces[2] = {{&guest.ours, sizeof guest.ours}, {&proof, sizeof proof}};
  const std::ptrdiff_t sent = send_from(guest.fd.get(), pieces, 2);
  if (!fits) return drop(guest, fits.error().message.c_str());
  if (sent != static_cast<std::ptrdiff_t>(sizeof guest.ours + sizeof proof)) return drop(guest, "it does not listen");
  guest.said_hello = true;
}

void Lobby::check_and_admit(Guest& guest) noexcept {
  Proof proof;
  std::memcpy(&proof, guest.buffer.data(), sizeof proof);
  const auto proved = check_proof(proof, hub_.context.identity, Side::initiator, guest.theirs, guest.ours);
  if (!proved) return drop(guest, proved.error().message.c_str());
  hub_.poller.forget(guest.fd.get());
  hub_.admit(std::move(guest.fd), guest.theirs, guest.from);
}

}  // namespace fabric::tcp
}  // namespace dtr::inline v0
