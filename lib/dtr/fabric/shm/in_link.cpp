#include "dtr/fabric/shm/in_link.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <exception>
#include <utility>

#include "dtr/base/log.hpp"
#include "dtr/fabric/checks.hpp"
#include "dtr/fabric/shm/operations.hpp"

namespace dtr::inline v0 {
namespace fabric::shm {

namespace {

constexpr std::uint64_t kBudget = 256 << 10;  ///< bytes of gets answered in one call
constexpr int kWindow = 64;

}  // namespace

InLink::InLink(Local& local, InParts parts)
    : local_(local),
      parts_(std::move(parts)),
      peer_makes_barriers_(parts_.control->barriers != 0),
      forward_(parts_.memory.forward()),
      backward_(parts_.memory.backward()) {
  constexpr std::uint32_t kFragment = 16 << 10;
  const auto largest = static_cast<std::uint32_t>(backward_.memory().max_frame());
  fragment_ = std::min(kFragment, largest + 8) - static_cast<std::uint32_t>(sizeof(DataBody) + sizeof(std::uint64_t));
  reader_.expect(message_);
}

Result<void> InLink::start() {
  auto socket = local_.poller.add(parts_.socket.get(), *this);
  if (!socket) return fail(std::move(socket.error()));
  socket_watch_ = std::move(*socket);
  if (parts_.process) {
    auto process = local_.poller.add(parts_.process.get(), *this);
    if (!process) return fail(std::move(process.error()));
    process_watch_ = std::move(*process);
  }
  if (!Greeter::welcome(local_, parts_))
    return fail(Errc::truncated, "a connection ended within its handshake", "accept");
  return {};
}

// --- frames ---

int InLink::serve(int budget) {
  if (state_ == State::shut || state_ == State::over) return 0;
  int handled = 0;
  RingConsumer::Frame frame;
  bool empty = false;
  const int window = std::min(budget, window_);
  while (handled < window && state_ != State::shut) {
    const RingConsumer::Look look = forward_.look(frame);
    if (look == RingConsumer::Look::nothing) {
      empty = true;
      break;
    }
    if (look == RingConsumer::Look::malformed) {
      drop(Errc::protocol_error, "a frame's header is malformed");
      return handled + 1;
    }
    const bool answers = frame.type >= static_cast<std::uint8_t>(FrameType::put);
    if (answers && !room_for_answer()) break;
    if (!take(frame)) {
      drop(Errc::protocol_error, "a frame of type " + std::to_string(frame.type) + " is malformed");
      return handled + 1;
    }
    forward_.pop();
    forward_.release_some();
    ++handled;
  }
  window_ = handled == window ? std::min(2 * window_, kWindow) : std::max(window_ / 2, 1);
  if (!gets_.empty()) handled += serve_gets();
  if (handled > 0) {
    forward_.release();
    const bool barriers = local_.reached_by(peer_makes_barriers_);
    const bool wanted = forward_.producer_waits(barriers);
    if (wanted || std::exchange(answered_, false)) ring(*parts_.control, parts_.doorbell.get(), barriers);
  }
  if (empty && state_ == State::draining) finish_draining();
  return handled;
}

bool InLink::take(const RingConsumer::Frame& frame) {
  switch (static_cast<FrameType>(frame.type)) {
    case FrameType::message:
      local_.receiver.on_message(parts_.peer, frame.port, frame.bytes);
      return true;
    case FrameType::notify: {
      NotifyBody body;
      if (!read_body(frame.bytes, body) || body.value > WorkRequest::kMaxValue) return false;
      local_.receiver.on_notify(parts_.peer, frame.port, body.value);
      return true;
    }
    case FrameType::put:
      local_.receiver.on_arrival(parts_.peer);
      return take_put(frame);
    case FrameType::get:
      return take_get(frame);
    case FrameType::atomic:
      return take_atomic(frame);
    default:
      return false;
  }
}

bool InLink::take_put(const RingConsumer::Frame& frame) {
  PutBody body;
  std::span<const std::byte> data;
  if (!read_body(frame.bytes, body, &data) || body.value > WorkRequest::kMaxValue) return false;
  if (put_failed_ && failed_put_ == body.operation) return true;
  put_failed_ = false;
  {
    RegionTable::Use use;
    const Errc code = local_.regions.acquire(body.place.request(data.size(), Access::write), use);
    if (code != Errc::ok) {
      put_failed_ = true;
      failed_put_ = body.operation;
      return answer(body.operation, code);
    }
    if (!data.empty()) std::memcpy(use.data(), data.data(), data.size());
  }
  if ((body.flags & PutBody::kLast) == 0) return true;
  if ((body.flags & PutBody::kNotify) != 0) local_.receiver.on_notify(parts_.peer, frame.port, body.value);
  return answer(body.operation, Errc::ok);
}

bool InLink::take_get(const RingConsumer::Frame& frame) {
  Get get;
  if (!read_body(frame.bytes, get.body) || gets_.size() >= OperationTable::kCapacity) return false;
  if (state_ == State::open) gets_.push_back(get);
  return true;
}

bool InLink::take_atomic(const RingConsumer::Frame& frame) {
  AtomicBody body;
  if (!read_body(frame.bytes, body)) return false;
  if (body.opcode != Opcode::fetch_add && body.opcode != Opcode::compare_swap) return false;
  RegionTable::Use use;
  const Errc code = local_.regions.acquire(body.place.request(sizeof(std::uint64_t), Access::atomic), use);
  if (code != Errc::ok) return answer(body.operation, code);
  if (reinterpret_cast<std::uintptr_t>(use.data()) % 8 != 0) return answer(body.operation, Errc::invalid_argument);
  return answer(body.operation, Errc::ok, execute_atomic(body.opcode, use.data(), body.operand, body.compare));
}

int InLink::serve_gets() {
  int handled = 0;
  std::uint64_t budget = kBudget;
  while (!gets_.empty() && budget > 0 && room_for_answer()) {
    Get& get = gets_.front();
    if (get.sent == get.body.length) {
      answer(get.body.operation, Errc::ok);
      gets_.pop_front();
      ++handled;
      continue;
    }
    const auto piece = static_cast<std::uint32_t>(std::min<std::uint64_t>(get.body.length - get.sent, fragment_));
    Place place = get.body.place;
    place.offset += get.sent;
    RegionTable::Use use;
    const Errc code = local_.regions.acquire(place.request(piece, Access::read), use);
    if (code != Errc::ok) {
      answer(get.body.operation, code);
      gets_.pop_front();
      ++handled;
      continue;
    }
    std::byte* at = backward_.reserve(static_cast<std::uint32_t>(sizeof(DataBody)) + piece);
    if (at == nullptr) {
      stalled_ = true;
      backward_.ask_for_room();
      break;
    }
    const DataBody body{.offset = get.sent, .operation = get.body.operation};
    std::memcpy(at, &body, sizeof body);
    std::memcpy(at + sizeof body, use.data(), piece);
    backward_.commit(static_cast<std::uint8_t>(FrameType::data), 0);
    answered_ = true;
    get.sent += piece;
    budget -= std::min<std::uint64_t>(budget, piece);
    ++handled;
  }
  return handled;
}

bool InLink::room_for_answer() {
  if (state_ != State::open || backward_.has_room_for(sizeof(ResultBody))) return true;
  stalled_ = true;
  backward_.ask_for_room();
  return false;
}

bool InLink::answer(std::uint32_t operation, Errc code, std::uint64_t value) {
  if (state_ != State::open) return true;  // nobody reads it
  std::byte* at = backward_.reserve(sizeof(ResultBody));
  if (at == nullptr) return false;  // room was there: the peer plays with the ring
  const ResultBody body{.value = value, .operation = operation, .code = static_cast<std::int32_t>(code)};
  std::memcpy(at, &body, sizeof body);
  backward_.commit(static_cast<std::uint8_t>(FrameType::result), 0);
  answered_ = true;
  return true;
}

bool InLink::has_work() {
  if (state_ == State::shut || state_ == State::over) return false;
  if (state_ == State::draining) return true;
  if (!stalled_) return !forward_.empty() || !gets_.empty();
  backward_.ask_for_room();
  if (!backward_.has_room_for(static_cast<std::uint32_t>(backward_.memory().max_frame()))) return false;
  stalled_ = false;
  return true;
}

// --- socket ---

void InLink::on_readable(int fd) noexcept {
  try {
    if (fd == parts_.process.get()) {
      if (parts_.socket) read_messages();
      ended(true, Errc::peer_failed, "the peer's process ended");
    } else {
      read_messages();
    }
  } catch (const std::exception& e) {
    DTR_LOG_WARN("shm: the connection from rank ", parts_.peer, ": ", e.what());
    state_ = State::shut;
  }
}

void InLink::read_messages() {
  while (state_ != State::over && !gone_) {
    const ExactReader::Got got = reader_.read(parts_.socket.get());
    if (got == ExactReader::Got::nothing) return;
    if (got == ExactReader::Got::ended) return ended(true, Errc::peer_failed, "the peer's process ended");
    if (message_.type == MessageType::ask && state_ == State::open) {
      pass_segment(message_.segment);
    } else if (message_.type == MessageType::farewell) {
      const bool leaves = message_.code == static_cast<std::int32_t>(Errc::peer_left);
      if (leaves) local_.peers.left(parts_.peer);
      ended(false, leaves ? Errc::peer_left : Errc::closed, "the peer said goodbye");
    } else if (state_ == State::open) {
      drop(Errc::protocol_error, "a message is malformed");
    }
    reader_.expect(message_);
  }
}

void InLink::pass_segment(std::uint64_t id) {
  const auto segment = local_.segments.find(id);
  Message reply{.type = MessageType::answer, .segment = id};
  bool sent = false;
  if (segment != nullptr) {
    const int fd = segment->fd();
    sent = send_value(parts_.socket.get(), reply, {&fd, 1});
    passed_.insert(id);
  } else {
    reply.code = static_cast<std::int32_t>(Errc::not_found);
    sent = send_value(parts_.socket.get(), reply);
  }
  if (!sent) unsent();
}

void InLink::unmap(std::uint64_t segment) {
  if (passed_.erase(segment) == 0 || gone_) return;
  const Message message{.type = MessageType::unmap, .segment = segment};
  if (!send_value(parts_.socket.get(), message)) unsent();
}

void InLink::unsent() {
  // A socket that is closed at the other end will say so itself.
  if (errno == EAGAIN && !gone_) drop(Errc::protocol_error, "the peer does not read its messages");
}

// --- end ---

void InLink::ended(bool gone, Errc code, const std::string& why) {
  if (gone && !gone_) {
    gone_ = true;
    socket_watch_.reset();
    process_watch_.reset();
    if (state_ == State::shut) state_ = State::over;
  }
  if (state_ != State::open) return;
  state_ = State::draining;
  gets_.clear();
  end_code_ = code == Errc::peer_failed && local_.peers.has_left(parts_.peer) ? Errc::peer_left : code;
  end_why_ = why;
}

void InLink::finish_draining() {
  state_ = gone_ ? State::over : State::shut;
  if (end_code_ == Errc::peer_failed || end_code_ == Errc::peer_left) {
    local_.peers.down(parts_.peer, end_code_, end_why_);
  }
}

void InLink::drop(Errc code, const std::string& why) {
  if (state_ == State::shut || state_ == State::over) return;
  DTR_LOG_WARN("shm: the connection from rank ", parts_.peer, " is closed: ", dtr::to_string(code), ": ", why);
  state_ = gone_ ? State::over : State::shut;
  gets_.clear();
  parts_.memory.header().refused.store(static_cast<std::uint32_t>(-static_cast<std::int32_t>(code)),
                                       std::memory_order_seq_cst);
  if (gone_) return;
  const Message farewell{.type = MessageType::farewell, .code = static_cast<std::int32_t>(code)};
  // If it cannot be sent, the peer has not read for long; the refusal in shared memory tells it as well.
  static_cast<void>(send_value(parts_.socket.get(), farewell));
}

void InLink::leave() {
  if (gone_ || state_ != State::open) return;
  const Message farewell{.type = MessageType::farewell, .code = static_cast<std::int32_t>(Errc::peer_left)};
  static_cast<void>(send_value(parts_.socket.get(), farewell));
}

bool InLink::shows(std::uint64_t value) const noexcept {
  if (gone_) return false;
  const auto& lines = parts_.control->lines;
  return std::any_of(lines.begin(), lines.end(),
                     [&](const FlagLine& line) { return line.raised.load(std::memory_order_seq_cst) == value; });
}

}  // namespace fabric::shm
}  // namespace dtr::inline v0
