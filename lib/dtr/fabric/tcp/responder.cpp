#include "dtr/fabric/tcp/responder.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

#include <poll.h>
#include <sys/socket.h>

#include "dtr/base/log.hpp"

namespace dtr::inline v0 {
namespace fabric::tcp {

namespace {

constexpr std::size_t kBytesAtOnce = 4 << 20;  // then it is the next peer's turn
constexpr std::int64_t kRevocationLook = 20'000'000;
constexpr std::int64_t kSilenceLook = 250'000'000;
constexpr std::size_t kOwedBytes = 64 << 10;
constexpr std::uint64_t kOwedMessages = 128;
constexpr unsigned kShareOwed = 4;  // of what a sender has room for, it may wait for
constexpr std::ptrdiff_t kSparseBytes = 256;

}  // namespace

Responder::Responder(Hub& hub, PeerRecord& peer, UniqueFd fd, const Endpoint& from)
    : hub_(hub),
      peer_(peer),
      fd_(std::move(fd)),
      from_(from),
      most_owed_bytes_(std::min(kOwedBytes, hub.options.message_room() / kShareOwed)),
      most_owed_messages_(std::min<std::uint64_t>(kOwedMessages, hub.options.queue_depth / kShareOwed)),
      replies_(peer.inbound.refusals.size() + 1, peer.inbound.processed),
      reader_(peer.id, peer.inbound, hub.context.regions, hub.context.receiver, replies_) {}

Responder::~Responder() { close(); }

void Responder::close() noexcept {
  if (!fd_) return;
  static_cast<void>(take_out());  // what is left unread would make the kernel reset the connection
  hub_.poller.forget(fd_.get());
  fd_.reset();
}

void Responder::start() noexcept {
  tune(fd_.get(), hub_.options);
  if (hub_.poller.watch(fd_.get(), EPOLLIN, *this) != 0) return lose("it cannot be polled");
  watched_ = EPOLLIN;
  const Verdict verdict{.code = static_cast<std::int32_t>(Errc::ok)};
  outbox_.copy(&verdict, sizeof verdict);
  for (const auto& refusal : peer_.inbound.refusals) {
    replies_.greet(
        {.type = ReplyType::refused, .code = static_cast<std::int16_t>(refusal.code), .sequence = refusal.sequence});
  }
  replies_.greet({.type = ReplyType::welcome, .sequence = peer_.inbound.processed});
  pump();
}

void Responder::on_ready(std::uint32_t events) noexcept {
  if (!fd_ || peer_.inbound.shut_out.load(std::memory_order_relaxed)) return;  // the transport closes it
  if ((events & EPOLLOUT) != 0) pump();
  if (fd_ && (events & (EPOLLIN | EPOLLERR | EPOLLHUP)) != 0) receive();
}

bool Responder::take_out() noexcept {
  std::array<std::byte, 4096> unused;  // the kernel only counts; it is there for tools that watch calls
  while (left_in_ > 0) {
    const auto n = ::recv(fd_.get(), unused.data(), std::min(left_in_, unused.size()), MSG_TRUNC | MSG_DONTWAIT);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    left_in_ -= static_cast<std::size_t>(n);
  }
  return true;
}

void Responder::receive() noexcept {
  if (left_in_ > 0) {
    if (!take_out()) lose("the connection was closed");
    return;  // what else there is, the poller tells
  }
  std::size_t budget = kBytesAtOnce;
  std::string why;
  bool lost = false;
  while (!lost && budget > 0 && !reader_.blocked() && left_in_ == 0) {
    iovec pieces[2];
    const std::size_t count = reader_.prepare(pieces);
    std::size_t room = 0;
    for (std::size_t i = 0; i < count; ++i) room += pieces[i].iov_len;
    // Taken out of the socket, a small message is acknowledged by a packet of its own, inside that call. So it is only
    // looked at, worked off, and taken out after what it brings about.
    const std::ptrdiff_t n = receive_into(fd_.get(), pieces, count, sparse_ ? MSG_PEEK : 0);
    if (n > 0 && sparse_) left_in_ = static_cast<std::size_t>(n);
    if (n > 0) sparse_ = n <= kSparseBytes;
    if (n == -EAGAIN) break;
    if (n <= 0) {
      lost = true;
      why = n == 0 ? "the connection was closed" : errno_error(static_cast<int>(-n), "receive").message;
      break;
    }
    reader_.received(static_cast<std::size_t>(n));
    if (const char* error = reader_.error(); error != nullptr) {
      lost = true;
      why = error;
      DTR_LOG_WARN("tcp: rank ", peer_.id, " at ", from_.to_string(), " sent a malformed request (", error,
                   "); its connection is closed");
    }
    if (peer_.inbound.shut_out.load(std::memory_order_relaxed)) return;
    owed_bytes_ += static_cast<std::size_t>(n);
    budget -= std::min(budget, static_cast<std::size_t>(n));
    if (static_cast<std::size_t>(n) < room) break;  // the socket is empty
  }
  if (budget < kBytesAtOnce) hub_.context.receiver.on_arrival(peer_.id);
  answer();
  if (reader_.said_goodbye() && !peer_.left) {
    peer_.left = true;
    hub_.peer_down(peer_, Errc::peer_left, "it said goodbye");
  }
  if (lost) {
    lose(std::move(why));
  } else if (reader_.in_put()) {
    hub_.call_at(peer_, now_ns() + kRevocationLook);
  }
}

void Responder::answer() noexcept {
  // A message's sender got its payload back when it posted, so it hears later: what the message brings about, most of
  // all an answer to it, comes first. Its queue must not fill meanwhile.
  if (!reader_.urgent() && !reader_.blocked() && owed_bytes_ < most_owed_bytes_ &&
      replies_.owed(peer_.inbound.processed) < most_owed_messages_) {
    if (!std::exchange(owes_, true)) hub_.settle_later(peer_);
    return;
  }
  acknowledge();
}

void Responder::settle() noexcept {
  owes_ = false;
  acknowledge();
}

void Responder::acknowledge() noexcept {
  owed_bytes_ = 0;
  reader_.answered();
  replies_.acknowledge(peer_.inbound.processed);
  pump();
}

void Responder::pump() noexcept {
  std::size_t budget = kBytesAtOnce;
  write_blocked_ = false;
  while (fd_) {
    if (outbox_.empty()) {
      replies_.flushed();
      if (reader_.blocked() && !replies_.full()) {
        reader_.received(0);
        replies_.acknowledge(peer_.inbound.processed);
      }
      if (!replies_.fill(outbox_)) break;
    }
    int error = 0;
    const Flushed flushed = outbox_.flush(fd_.get(), budget, error);
    if (flushed == Flushed::drained) continue;
    write_blocked_ = flushed == Flushed::blocked;  // a failure shows when we read
    if (write_blocked_) hub_.call_at(peer_, now_ns() + kSilenceLook);
    break;
  }
  watch();
}

void Responder::watch() noexcept {
  if (!fd_) return;
  const std::uint32_t wanted = (reader_.blocked() ? 0U : EPOLLIN) | (write_blocked_ ? EPOLLOUT : 0U);
  if (wanted == watched_) return;
  watched_ = wanted;
  hub_.poller.change(fd_.get(), wanted, *this);
}

std::int64_t Responder::on_time(std::int64_t now) noexcept {
  if (!fd_) return kNever;
  std::int64_t next = kNever;
  if (reader_.in_put()) {
    reader_.look_for_revocation();
    next = now + kRevocationLook;
  }
  if (write_blocked_) {
    if (silence_.vanished(other_end_owes_answer(fd_.get()), now, to_ns(hub_.options.failure_detect))) {
      lose("its host does not answer");
      return kNever;
    }
    next = std::min(next, now + kSilenceLook);
  }
  return next;
}

void Responder::say_goodbye(Deadline patience) noexcept {
  if (!fd_) return;
  replies_.acknowledge(peer_.inbound.processed);
  pump();
  // Behind what is due already: a half-sent answer cannot be interrupted.
  if (write_blocked_) {
    pollfd wait{.fd = fd_.get(), .events = POLLOUT, .revents = 0};
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(patience.left());
    static_cast<void>(::poll(&wait, 1, static_cast<int>(left.count())));
    pump();
  }
  if (write_blocked_) return;
  replies_.greet({.type = ReplyType::goodbye});
  pump();
}

void Responder::lose(std::string why) noexcept {
  close();
  hub_.link_lost(peer_, std::move(why));
}

}  // namespace fabric::tcp
}  // namespace dtr::inline v0
