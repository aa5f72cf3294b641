// The life of a link at its initiator: connecting, open, closing, and the end, whoever brings it about.
#include "dtr/fabric/shm/out_link.hpp"

#include <algorithm>
#include <exception>
#include <new>
#include <string>
#include <utility>

#include "dtr/base/log.hpp"

namespace dtr::inline v0 {
namespace fabric::shm {

OutLink::OutLink(std::shared_ptr<Local> local, PeerId peer, const Address& address, Deadline deadline)
    : local_(std::move(local)), peer_(peer), address_(address) {
  dialer_.emplace(*local_, peer, address, deadline, *this);
}

OutLink::~OutLink() = default;

Result<const RemoteRegion*> OutLink::import(const RemoteKey& key) {
  if (auto alive = local_->fork_guard.check("import"); !alive) return fail(std::move(alive.error()));
  auto region = imports_.get(key);
  if (!region) return fail(std::move(region.error()));
  if (imports_.has_questions()) local_->wake();
  return *region;
}

// --- any thread ---

void OutLink::close() noexcept {
  if (local_->fork_guard.in_forked_child()) return;
  {
    const std::lock_guard lock(lock_);
    if (phase_.load(std::memory_order_relaxed) == Phase::connecting) {
      phase_.store(Phase::closed, std::memory_order_release);
    } else if (phase_.load(std::memory_order_relaxed) == Phase::open) {
      gate_.store(Gate::old_only, std::memory_order_seq_cst);
      phase_.store(Phase::closing, std::memory_order_release);
    }
  }
  local_->wake();
}

void OutLink::abort(Errc code) noexcept {
  if (local_->fork_guard.in_forked_child()) return;
  fail_with(code, {});
  local_->wake();
}

void OutLink::detach() noexcept {
  if (local_->fork_guard.in_forked_child()) return;
  fail_with(Errc::closed, {});
  detached_.store(true, std::memory_order_release);
  local_->wake();
}

void OutLink::fail_with(Errc code, const std::string& why) noexcept {
  Ended ended;
  const std::lock_guard lock(lock_);
  const Phase now = phase_.load(std::memory_order_relaxed);
  if (now == Phase::closed || now == Phase::failed) return;
  try {
    const std::lock_guard words(why_mutex_);
    why_ = why;
  } catch (const std::bad_alloc&) {
    why_.clear();  // the code alone has to do
  }
  failure_.store(code, std::memory_order_release);
  gate_.store(Gate::shut, std::memory_order_seq_cst);
  phase_.store(Phase::failed, std::memory_order_release);
  end_all(code, ended);
}

ChannelState OutLink::state() const noexcept {
  switch (phase_.load(std::memory_order_acquire)) {
    case Phase::connecting:
      return ChannelState::connecting;
    case Phase::open:
    case Phase::closing:
      return ChannelState::open;
    case Phase::closed:
      return ChannelState::closed;
    case Phase::failed:
      return ChannelState::failed;
  }
  return ChannelState::failed;
}

std::string OutLink::path() const { return "shm pid " + std::to_string(address_.pid); }

std::string OutLink::explain(const Status& status) const {
  if (status.code == failure_.load(std::memory_order_acquire)) {
    const std::lock_guard words(why_mutex_);
    if (!why_.empty()) return why_;
  }
  if (std::string details = refusals_.explain(status); !details.empty()) return details;
  if (status.code == Errc::timed_out && state() == ChannelState::connecting) {
    return "not connected before the deadline; process " + std::to_string(address_.pid) + " did not answer";
  }
  return words_for(status.code);
}

// --- progress ---

int OutLink::drive(int budget) {
  switch (phase_.load(std::memory_order_acquire)) {
    case Phase::connecting: {
      if (!dialer_ready_ && Deadline::Clock::now() < dialer_->next_deadline()) return 0;
      dialer_ready_ = false;
      auto parts = dialer_->drive();
      if (!parts) {
        lost(parts.error().code, parts.error().message);
        return 1;
      }
      if (!parts->has_value()) return 0;
      open(std::move(**parts));
      return 1;
    }
    case Phase::open:
    case Phase::closing:
      return drive_open(budget);
    case Phase::closed:
    case Phase::failed:
      retire();
      return 0;
  }
  return 0;
}

void OutLink::open(OutParts parts) {
  dialer_.reset();
  parts_ = std::move(parts);
  peer_makes_barriers_ = parts_.control->barriers != 0;
  forward_ = RingProducer(parts_.memory.forward());
  backward_ = RingConsumer(parts_.memory.backward());
  const auto largest = static_cast<std::uint32_t>(forward_.memory().max_frame());
  max_message_ = static_cast<std::uint32_t>(std::min<std::size_t>(local_->options.eager_bytes, largest));
  constexpr std::uint32_t kFragment = 32 << 10;  // with its header it fills whole slots
  fragment_ = std::min(kFragment, largest + 8) - static_cast<std::uint32_t>(sizeof(PutBody) + sizeof(std::uint64_t));
  imports_.open(parts_.validity);
  reader_.expect(message_, 1);
  auto socket = local_->poller.add(parts_.socket.get(), *this);
  if (!socket) return lost(socket.error().code, socket.error().message);
  socket_watch_ = std::move(*socket);
  if (parts_.process) {
    auto process = local_->poller.add(parts_.process.get(), *this);
    if (!process) return lost(process.error().code, process.error().message);
    process_watch_ = std::move(*process);
  }
  DTR_LOG_INFO("rank ", peer_, " is linked by shm: process ", parts_.pid, ", other memory by ",
               parts_.cma ? "process_vm_writev" : "the ring");
  const std::lock_guard lock(lock_);
  if (phase_.load(std::memory_order_relaxed) != Phase::connecting) return;  // aborted meanwhile: retire comes next
  phase_.store(Phase::open, std::memory_order_release);
  gate_.store(Gate::open, std::memory_order_seq_cst);
}

int OutLink::drive_open(int budget) {
  int handled = take_answers(budget);
  if (open_operations_.load(std::memory_order_acquire) > 0) {
    Ended ended;
    bool pushed = false;
    {
      const std::lock_guard lock(lock_);
      const int moved = advance(ended);
      handled += moved;
      pushed = moved > 0;
    }
    if (pushed) ring_peer();
  }
  imports_.release_unmapped(*local_->lines, peer_);
  if (imports_.has_questions() && !imports_.ask(parts_.socket.get())) {
    lost(Errc::peer_failed, "the peer's process is gone");
    return handled + 1;
  }
  if (phase_.load(std::memory_order_acquire) == Phase::closing &&
      open_operations_.load(std::memory_order_acquire) == 0) {
    {
      const std::lock_guard lock(lock_);
      if (phase_.load(std::memory_order_relaxed) != Phase::closing) return handled;
      gate_.store(Gate::shut, std::memory_order_seq_cst);
    }
    const Message farewell{.type = MessageType::farewell, .code = static_cast<std::int32_t>(Errc::peer_left)};
    told_ = send_value(parts_.socket.get(), farewell);
    phase_.store(Phase::closed, std::memory_order_release);
    ++handled;
  }
  return handled;
}

void OutLink::on_readable(int fd) noexcept {
  try {
    if (dialer_.has_value()) {
      dialer_ready_ = true;
    } else if (fd == parts_.process.get()) {
      if (parts_.socket) read_messages();  // a farewell explains it better
      lost(Errc::peer_failed, "the peer's process ended");
    } else {
      read_messages();
    }
  } catch (const std::exception& e) {
    lost(Errc::resource_exhausted, e.what());
  }
}

void OutLink::read_messages() {
  while (parts_.socket) {
    const ExactReader::Got got = reader_.read(parts_.socket.get());
    if (got == ExactReader::Got::nothing) return;
    if (got == ExactReader::Got::ended) return lost(Errc::peer_failed, "the peer's process ended");
    switch (message_.type) {
      case MessageType::answer:
        if (auto taken = imports_.answer(message_, reader_.fds()); !taken) {
          return lost(taken.error().code, taken.error().message);
        }
        break;
      case MessageType::unmap:
        imports_.unmap(message_.segment);
        break;
      case MessageType::farewell:
        return lost(errc_from_wire(message_.code), "the peer ended the connection");
      default:
        return lost(Errc::protocol_error, "the peer sent a malformed message");
    }
    reader_.expect(message_, 1);
  }
}

void OutLink::lost(Errc code, const std::string& why) {
  const Phase before = phase_.load(std::memory_order_acquire);
  if (before == Phase::open || before == Phase::closing) {
    while (take_answers(1 << 10) > 0) {  // what the target answered before it went still counts
    }
  }
  socket_watch_.reset();
  process_watch_.reset();
  if (code == Errc::peer_failed && local_->peers.has_left(peer_)) code = Errc::peer_left;
  fail_with(code, why);
  told_ = true;  // there is nobody left to tell
  if (before == Phase::closed || before == Phase::failed) return;
  if (code == Errc::peer_failed || code == Errc::peer_left || code == Errc::fenced) {
    local_->peers.down(peer_, code, why);
  } else {
    DTR_LOG_WARN("shm: the connection to rank ", peer_, " ended: ", dtr::to_string(code), ": ", why);
  }
}

void OutLink::retire() noexcept {
  dialer_.reset();
  if (!parts_.socket) return;
  // The target takes the end of the socket as our word that no thread of ours touches its memory.
  if (!std::exchange(retiring_, true)) heavy_barrier();
  if (local_->lines->inside(peer_)) return;
  if (!std::exchange(told_, true)) {
    const Message farewell{.type = MessageType::farewell, .code = static_cast<std::int32_t>(Errc::closed)};
    static_cast<void>(send_value(parts_.socket.get(), farewell));
  }
  socket_watch_.reset();
  process_watch_.reset();
  parts_.socket.reset();
  parts_.process.reset();
}

void OutLink::shut_down() noexcept {
  fail_with(Errc::closed, {});
  dialer_.reset();
  socket_watch_.reset();
  process_watch_.reset();
  parts_.socket.reset();
  parts_.process.reset();
}

void OutLink::fence() {
  if (phase_.load(std::memory_order_acquire) == Phase::connecting) dialer_.reset();
  fail_with(Errc::peer_failed, "the peer was declared failed");
}

void OutLink::leave() {
  if (parts_.socket && !std::exchange(told_, true)) {
    const Message farewell{.type = MessageType::farewell, .code = static_cast<std::int32_t>(Errc::peer_left)};
    static_cast<void>(send_value(parts_.socket.get(), farewell));
  }
  fail_with(Errc::closed, "this process leaves");
}

bool OutLink::has_work() {
  const Phase phase = phase_.load(std::memory_order_acquire);
  if (phase == Phase::closed || phase == Phase::failed) return parts_.socket.get() >= 0 && !retiring_;
  if (phase == Phase::connecting) return dialer_ready_;
  if (!backward_.empty() || imports_.has_questions()) return true;
  const std::lock_guard lock(lock_);
  if (phase == Phase::closing && open_operations_.load(std::memory_order_relaxed) == 0) return true;
  if (runnable_) return true;
  if (stalled_) {
    // Once more after the barrier of going to sleep: the consumer may have missed that we wait.
    forward_.ask_for_room();
    if (forward_.has_room_for(static_cast<std::uint32_t>(forward_.memory().max_frame()))) {
      stalled_ = false;
      return true;
    }
  }
  return false;
}

Deadline::Clock::time_point OutLink::next_deadline() const noexcept {
  auto next = Deadline::Clock::time_point::max();
  const Phase phase = phase_.load(std::memory_order_acquire);
  if (phase == Phase::connecting && dialer_.has_value()) return dialer_->next_deadline();
  if ((phase == Phase::closed || phase == Phase::failed) && parts_.socket) {
    return Deadline::Clock::now() + std::chrono::milliseconds(1);  // a thread is still inside the peer's memory
  }
  if (open_operations_.load(std::memory_order_acquire) == 0) return next;
  const std::lock_guard lock(lock_);
  for (std::uint32_t id = operations_.front(); id != operations_.back(); ++id) {
    if (operations_[id].open()) next = std::min(next, operations_[id].deadline);
  }
  return next;
}

bool OutLink::over() const noexcept {
  const Phase phase = phase_.load(std::memory_order_acquire);
  const bool ended = phase == Phase::closed || phase == Phase::failed;
  return ended && detached_.load(std::memory_order_acquire) && !parts_.socket && !dialer_.has_value();
}

}  // namespace fabric::shm
}  // namespace dtr::inline v0
