#include "dtr/fabric/tcp/dialer.hpp"

#include <cerrno>
#include <cstring>
#include <utility>

namespace dtr::inline v0 {
namespace fabric::tcp {

Dial Dialer::failed(Dial how, const std::string& why) noexcept {
  hang_up();
  reason_ = to_.to_string() + ": " + why;
  return how;
}

Dial Dialer::failed(int error, const char* doing) noexcept {
  return failed(error == ECONNREFUSED ? Dial::refused : Dial::broken, errno_error(error, doing).message);
}

Dial Dialer::begin(const Endpoint& to, PeerId peer, std::uint32_t connection) noexcept {
  hang_up();
  to_ = to;
  peer_ = peer;
  got_ = 0;
  ours_ = make_hello(hub_.context.identity, kTransportLetters, peer, connection);
  int error = 0;
  fd_ = start_connect(to, hub_.endpoints, hub_.options, error);
  if (!fd_) return failed(error, "connect");
  if (const int bad = hub_.poller.watch(fd_.get(), EPOLLOUT, events_to_); bad != 0) {
    fd_.reset();
    return failed(bad, "epoll_ctl");
  }
  stage_ = Stage::connecting;
  return error == 0 ? say_hello() : Dial::waiting;
}

UniqueFd Dialer::take() noexcept {
  stage_ = Stage::idle;
  return std::move(fd_);
}

void Dialer::hang_up() noexcept {
  stage_ = Stage::idle;
  if (!fd_) return;
  hub_.poller.forget(fd_.get());
  fd_.reset();
}

Dial Dialer::say_hello() noexcept {
  tune(fd_.get(), hub_.options);
  iovec piece{&ours_, sizeof ours_};
  const std::ptrdiff_t sent = send_from(fd_.get(), &piece, 1);
  if (sent < 0 && sent != -EAGAIN) return failed(static_cast<int>(-sent), "send hello");
  if (sent != static_cast<std::ptrdiff_t>(sizeof ours_)) return failed(Dial::broken, "a new socket takes no bytes");
  hub_.poller.change(fd_.get(), EPOLLIN, events_to_);
  stage_ = Stage::hello;
  return Dial::waiting;
}

Dial Dialer::advance() noexcept {
  if (stage_ == Stage::idle) return Dial::waiting;
  if (stage_ == Stage::connecting) {
    if (const int error = pending_error(fd_.get()); error != 0) return failed(error, "connect");
    // The event may be a left-over of an earlier socket: then there is no peer yet.
    sockaddr_storage peer{};
    socklen_t length = sizeof peer;
    if (::getpeername(fd_.get(), reinterpret_cast<sockaddr*>(&peer), &length) != 0) return Dial::waiting;
    return say_hello();
  }
  while (true) {
    const std::size_t wanted = stage_ == Stage::hello ? sizeof(Hello) + sizeof(Proof) : sizeof(Verdict);
    iovec piece{buffer_.data() + got_, wanted - got_};
    const std::ptrdiff_t n = receive_into(fd_.get(), &piece, 1);
    if (n == -EAGAIN) return Dial::waiting;
    if (n == 0) return failed(Dial::broken, "the connection was closed during the handshake");
    if (n < 0) return failed(static_cast<int>(-n), "handshake");
    got_ += static_cast<std::size_t>(n);
    if (got_ < wanted) continue;
    got_ = 0;
    if (stage_ == Stage::verdict) return read_verdict();
    if (const Dial next = check_hello_and_prove(); next != Dial::waiting) return next;
  }
}

Dial Dialer::check_hello_and_prove() noexcept {
  Proof proof;
  std::memcpy(&theirs_, buffer_.data(), sizeof theirs_);
  std::memcpy(&proof, buffer_.data() + sizeof theirs_, sizeof proof);
  const Identity& identity = hub_.context.identity;
  if (const auto fits = check_hello(theirs_, identity, kTransportLetters, static_cast<std::int64_t>(peer_)); !fits) {
    return failed(Dial::rejected, fits.error().message);
  }
  if (const auto proved = check_proof(proof, identity, Side::responder, ours_, theirs_); !proved) {
    return failed(Dial::rejected, proved.error().message);
  }
  Proof mine = make_proof(identity, Side::initiator, ours_, theirs_);
  iovec piece{&mine, sizeof mine};
  const std::ptrdiff_t sent = send_from(fd_.get(), &piece, 1);
  if (sent != static_cast<std::ptrdiff_t>(sizeof mine)) {
    return failed(sent < 0 ? static_cast<int>(-sent) : EAGAIN, "send proof");
  }
  stage_ = Stage::verdict;
  return Dial::waiting;
}

Dial Dialer::read_verdict() noexcept {
  Verdict verdict;
  std::memcpy(&verdict, buffer_.data(), sizeof verdict);
  const auto code = static_cast<Errc>(verdict.code);
  if (code == Errc::ok) return Dial::open;
  if (code == Errc::fenced) return failed(Dial::fenced, "the peer has declared this process failed");
  return failed(Dial::rejected, "the peer answered " + std::string(dtr::to_string(code)));
}

}  // namespace fabric::tcp
}  // namespace dtr::inline v0
