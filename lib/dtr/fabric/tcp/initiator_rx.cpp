// The initiator reads replies.
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "dtr/base/log.hpp"
#include "dtr/fabric/tcp/initiator.hpp"

namespace dtr::inline v0 {
namespace fabric::tcp {

namespace {

constexpr std::size_t kBytesAtOnce = 4 << 20;  // then it is the next peer's turn

}  // namespace

void Initiator::on_ready(std::uint32_t events) noexcept {
  Dial step = Dial::waiting;
  bool dialing = false;
  {
    const std::lock_guard rx(rx_mutex_);
    dialing = phase_ == Phase::dialing;
    if (dialing) step = dialer_.advance();
  }
  if (dialing) return act_on(step);
  if ((events & EPOLLOUT) != 0) {
    const std::lock_guard lock(mutex_);
    pump();
  }
  if ((events & (EPOLLIN | EPOLLERR | EPOLLHUP)) != 0) receive();
}

void Initiator::receive() noexcept {
  std::size_t budget = kBytesAtOnce;
  while (true) {
    Endings endings;
    int error = 0;
    const Slice slice = receive_slice(budget, endings, error);
    endings.deliver();
    switch (slice) {
      case Slice::more:
        continue;
      case Slice::idle:
        return;
      case Slice::lost:
        return connection_lost(error == 0 ? "the connection was closed" : errno_error(error, "receive").message, error);
      case Slice::nonsense:
        DTR_LOG_WARN("tcp: rank ", peer_.id, " sent a malformed reply; the channel to it is closed");
        return end(Errc::protocol_error, "the peer sent a malformed reply");
      case Slice::closed:
        return end(Errc::closed, "the channel was closed");
      case Slice::left:
        peer_.left = true;
        return hub_.peer_down(peer_, Errc::peer_left, "it said goodbye");
    }
  }
}

Initiator::Slice Initiator::receive_slice(std::size_t& budget, Endings& endings, int& error) noexcept {
  const std::lock_guard rx(rx_mutex_);
  if (phase_ != Phase::open && phase_ != Phase::greeting) return Slice::idle;
  std::size_t room = 0;
  std::size_t got = 0;
  if (!stopped_for_room_) {
    iovec pieces[2];
    std::size_t count = 0;
    {
      const std::lock_guard lock(mutex_);
      if (stream_.in_payload()) {
        // A get that ended meanwhile has given its memory back: the rest of its data goes nowhere.
        if (queue_.data_target() == nullptr) stream_.divert();
        queue_.set_writing(true);
      }
      count = stream_.prepare(pieces);
    }
    for (std::size_t i = 0; i < count; ++i) room += pieces[i].iov_len;
    const std::ptrdiff_t n = receive_into(fd_.get(), pieces, count);
    const std::lock_guard lock(mutex_);
    queue_.set_writing(false);
    if (n <= 0) {
      error = static_cast<int>(-n);
      return n == -EAGAIN ? Slice::idle : Slice::lost;
    }
    got = static_cast<std::size_t>(n);
    stream_.accept(got);
  }
  const std::lock_guard lock(mutex_);
  const Parsed parsed = parse(endings);
  if (parsed == Parsed::nonsense) return Slice::nonsense;
  if (!write_blocked_) pump();  // a fence may have opened, a message may have found room
  stopped_for_room_ = parsed == Parsed::full;
  if (stopped_for_room_) return Slice::more;
  if (queue_.goodbye_answered()) return Slice::closed;
  if (peer_leaves_) return Slice::left;
  budget -= std::min(budget, got);
  return got == room && budget > 0 ? Slice::more : Slice::idle;  // short = the socket is empty
}

Initiator::Parsed Initiator::parse(Endings& endings) noexcept {
  while (!stream_.in_payload()) {
    if (!endings.has_room()) return Parsed::full;
    if (std::exchange(data_pending_, false)) {
      queue_.finish_data(endings);
      continue;
    }
    const auto buffered = stream_.buffered();
    ReplyHeader header;
    if (buffered.size() < sizeof header) return Parsed::all;
    std::memcpy(&header, buffered.data(), sizeof header);
    if (malformed(header) != nullptr) return Parsed::nonsense;
    if (const Parsed obeyed = obey(header, endings); obeyed != Parsed::all) return obeyed;
    stream_.consume(sizeof header);
    if (header.type == ReplyType::data) {
      stream_.expect_payload(queue_.data_target(), header.value);
      data_pending_ = true;
    }
  }
  return Parsed::all;
}

Initiator::Parsed Initiator::obey(const ReplyHeader& header, Endings& endings) noexcept {
  const auto code = static_cast<Errc>(header.code);
  SendQueue::Answer answer = SendQueue::Answer::nonsense;
  if (phase_ == Phase::greeting) {
    if (header.type == ReplyType::refused) {
      queue_.note_refusal(header.sequence, code);
      return Parsed::all;
    }
    if (header.type == ReplyType::welcome) answer = queue_.resume(header.sequence, endings);
    if (answer == SendQueue::Answer::done) {
      phase_ = Phase::open;
      was_open_ = true;
      lost_since_ = kNever;
      retry_pause_ = 0;
      if (end_code_ == Errc::ok) why_.clear();
      if (state() == ChannelState::connecting) state_.store(ChannelState::open, std::memory_order_release);
      hub_.call_at(peer_, 0);  // what is open from before is watched again
    }
  } else {
    switch (header.type) {
      case ReplyType::ack:
        answer = queue_.acknowledge(header.sequence, endings);
        break;
      case ReplyType::refused:
        answer = queue_.refuse(header.sequence, code, endings);
        break;
      case ReplyType::data:
        answer = queue_.begin_data(header.sequence, header.value, endings);
        break;
      case ReplyType::result:
        answer = queue_.result(header.sequence, header.value, endings);
        break;
      case ReplyType::goodbye:
        peer_leaves_ = true;
        return Parsed::all;
      case ReplyType::welcome:
        break;
    }
  }
  if (answer == SendQueue::Answer::full) return Parsed::full;
  return answer == SendQueue::Answer::done ? Parsed::all : Parsed::nonsense;
}

}  // namespace fabric::tcp
}  // namespace dtr::inline v0
