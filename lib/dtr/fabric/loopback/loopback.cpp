#include "dtr/fabric/loopback/loopback.hpp"

#include <atomic>
#include <cerrno>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>

#include <sys/eventfd.h>
#include <unistd.h>

#include "dtr/base/fd.hpp"
#include "dtr/base/fork_guard.hpp"
#include "dtr/fabric/checks.hpp"
#include "dtr/fabric/refusals.hpp"

namespace dtr::inline v0 {
namespace fabric {

namespace {

constexpr std::uint64_t kPiece = 4ULL << 20;  ///< a copy looks at its deadline this often

/// Events on their way from post to progress: a ring of bytes, so that nothing is allocated per message.
class EventQueue {
 public:
  struct Header {
    std::uint32_t bytes = 0;  ///< of payload
    std::uint32_t value = 0;
    Port port = 0;
    bool is_message = false;
  };

  explicit EventQueue(std::size_t capacity) : ring_(new std::byte[capacity]), capacity_(capacity) {}

  [[nodiscard]] bool empty() const noexcept { return used_ == 0; }

  [[nodiscard]] bool push(const Header& header, const std::byte* payload) noexcept {
    if (sizeof header + header.bytes > capacity_ - used_) return false;
    write(reinterpret_cast<const std::byte*>(&header), sizeof header);
    write(payload, header.bytes);
    return true;
  }

  /// The next event; its payload goes to `payload`, which holds the largest message.
  Header pop(std::byte* payload) noexcept {
    Header header;
    read(reinterpret_cast<std::byte*>(&header), sizeof header);
    read(payload, header.bytes);
    return header;
  }

 private:
  void write(const std::byte* from, std::size_t bytes) noexcept {
    if (bytes == 0) return;
    const std::size_t at = (head_ + used_) % capacity_;
    const std::size_t first = std::min(bytes, capacity_ - at);
    std::memcpy(ring_.get() + at, from, first);
    if (bytes > first) std::memcpy(ring_.get(), from + first, bytes - first);
    used_ += bytes;
  }
  void read(std::byte* to, std::size_t bytes) noexcept {
    if (bytes == 0) return;
    const std::size_t first = std::min(bytes, capacity_ - head_);
    std::memcpy(to, ring_.get() + head_, first);
    if (bytes > first) std::memcpy(to + first, ring_.get(), bytes - first);
    used_ -= bytes;
    head_ = used_ == 0 ? 0 : (head_ + bytes) % capacity_;  // empty: at the front again, where the memory is warm
  }

  std::unique_ptr<std::byte[]> ring_;  ///< untouched beyond what was ever in it, which takes no memory
  std::size_t capacity_;
  std::size_t head_ = 0;
  std::size_t used_ = 0;
};

class Loopback;

class LoopbackChannel final : public Channel {
 public:
  explicit LoopbackChannel(Loopback& transport) : transport_(transport) {}

  PostResult post(std::span<const WorkRequest> requests, Deadline deadline) noexcept override;

  Result<const RemoteRegion*> import(const RemoteKey& key) override {
    const std::lock_guard lock(mutex_);
    for (const RemoteRegion& known : imported_) {
      if (known.key.slot == key.slot && known.key.generation == key.generation && known.key.secret == key.secret) {
        return &known;
      }
    }
    RemoteRegion& region = imported_.emplace_back();
    region.key = key;
    return &region;
  }

  // Everything ends inside post, so there is never anything to cancel or to wait for.
  std::uint32_t cancel(Completion&) noexcept override { return 0; }
  bool quiesced() const noexcept override { return true; }
  void reset() noexcept override {}
  void close() noexcept override { state_.store(ChannelState::closed, std::memory_order_release); }
  void abort(Errc code) noexcept override {
    failure_.store(code, std::memory_order_relaxed);
    state_.store(ChannelState::failed, std::memory_order_release);
  }
  ChannelState state() const noexcept override { return state_.load(std::memory_order_acquire); }
  std::string path() const override { return "loopback"; }
  std::string explain(const Status& status) const override {
    const std::string details = refusals_.explain(status);
    return details.empty() ? words_for(status.code) : details;
  }

 private:
  /// One request from start to end; `again` when the queue is full.
  [[nodiscard]] Errc execute(const WorkRequest& request, Deadline deadline) noexcept;

  Loopback& transport_;
  std::atomic<ChannelState> state_{ChannelState::open};
  std::atomic<Errc> failure_{Errc::closed};
  std::mutex mutex_;
  std::deque<RemoteRegion> imported_;
  Refusals refusals_;
};

class Loopback final : public Transport {
 public:
  Loopback(const TransportContext& context, const LoopbackOptions& options)
      : context_(context), options_(options), queue_(options.queue_bytes), scratch_(options.eager_bytes) {
    bell_.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!bell_) throw Exception(errno_error(errno, "eventfd", "start loopback"));
  }

  std::string_view name() const noexcept override { return "loopback"; }
  std::string domain() const override { return "loopback:" + std::to_string(context_.identity.self); }
  bool moves(MemoryKind kind) const noexcept override { return kind != MemoryKind::cuda; }
  std::size_t max_message() const noexcept override { return options_.eager_bytes; }
  std::vector<std::byte> address() const override { return {}; }
  Result<void> register_region(Region&) override { return {}; }
  bool drained(const Region& region) noexcept override { return region.uses() == 0; }
  void deregister_region(Region&) noexcept override {}
  void fence(PeerId) noexcept override {}
  void leave() noexcept override {}

  Result<std::unique_ptr<Channel>> connect(PeerId peer, std::span<const std::byte>, Deadline) override {
    if (peer != context_.identity.self) {
      return fail(Errc::invalid_argument, "loopback reaches this process only", "connect", static_cast<int>(peer));
    }
    return std::unique_ptr<Channel>(new LoopbackChannel(*this));
  }

  int progress(int budget) noexcept override {
    int handled = 0;
    while (calls_.load(std::memory_order_acquire) && handled < budget) {
      EventQueue::Header event;
      {
        const std::lock_guard lock(mutex_);
        if (std::exchange(armed_, false)) silence();
        if (queue_.empty()) {
          calls_.store(false, std::memory_order_relaxed);
          break;
        }
        event = queue_.pop(scratch_.data());
      }
      ++handled;
      if (event.is_message) {
        context_.receiver.on_message(context_.identity.self, event.port, {scratch_.data(), event.bytes});
      } else {
        context_.receiver.on_notify(context_.identity.self, event.port, event.value);
      }
    }
    return handled;
  }

  int wait_descriptor() const noexcept override { return bell_.get(); }

  bool prepare_sleep() noexcept override {
    const std::lock_guard lock(mutex_);
    if (!queue_.empty()) return false;
    armed_ = true;
    calls_.store(true, std::memory_order_release);
    return true;
  }

  Deadline::Clock::time_point next_deadline() const noexcept override { return Deadline::Clock::time_point::max(); }

  [[nodiscard]] bool deliver(const EventQueue::Header& header, const std::byte* payload) noexcept {
    const std::lock_guard lock(mutex_);
    if (!queue_.push(header, payload)) return false;
    calls_.store(true, std::memory_order_release);
    if (armed_) {
      const std::uint64_t one = 1;
      [[maybe_unused]] const auto written = ::write(bell_.get(), &one, sizeof one);
    }
    return true;
  }

  [[nodiscard]] const TransportContext& context() const noexcept { return context_; }
  [[nodiscard]] const ForkGuard& fork_guard() const noexcept { return fork_guard_; }

 private:
  void silence() noexcept {
    std::uint64_t count = 0;
    [[maybe_unused]] const auto got = ::read(bell_.get(), &count, sizeof count);
  }

  TransportContext context_;
  LoopbackOptions options_;
  ForkGuard fork_guard_;
  UniqueFd bell_;
  std::mutex mutex_;
  EventQueue queue_;
  bool armed_ = false;
  std::atomic<bool> calls_{false};  ///< there is something for progress to do
  std::vector<std::byte> scratch_;
};

PostResult LoopbackChannel::post(std::span<const WorkRequest> requests, Deadline deadline) noexcept {
  PostResult result;
  if (transport_.fork_guard().in_forked_child()) {
    result.status.code = Errc::forked;
    return result;
  }
  if (const ChannelState now = state(); now != ChannelState::open) {
    result.status.code = now == ChannelState::closed ? Errc::closed : failure_.load(std::memory_order_relaxed);
    return result;
  }
  for (const WorkRequest& request : requests) {
    result.status.code = execute(request, deadline);
    if (!result.status.ok()) {
      if (result.status.code != Errc::again) transport_.context().traffic->count_failure(result.status.code);
      result.status = refusals_.remember(request, result.status, transport_.max_message());
      break;
    }
    transport_.context().traffic->count(request);
    result.finished = ++result.accepted;
  }
  return result;
}

Errc LoopbackChannel::execute(const WorkRequest& request, Deadline deadline) noexcept {
  if (const Errc wrong = check_request(request, transport_.max_message()); wrong != Errc::ok) return wrong;
  RegionTable::Use use;
  if (request.moves_memory() && request.remote != nullptr) {
    const RemoteKey& key = request.remote->key;
    const Errc refused = transport_.context().regions.acquire({.slot = key.slot,
                                                               .generation = key.generation,
                                                               .secret = key.secret,
                                                               .offset = request.remote_offset,
                                                               .length = request.bytes(),
                                                               .access = needed_access(request.opcode)},
                                                              use);
    if (refused != Errc::ok) return refused;
  }
  const EventQueue::Header event{
      .bytes = request.opcode == Opcode::send ? static_cast<std::uint32_t>(request.length) : 0,
      .value = request.value,
      .port = request.port,
      .is_message = request.opcode == Opcode::send};
  if (request.opcode == Opcode::send) return transport_.deliver(event, request.payload) ? Errc::ok : Errc::again;
  if (request.opcode == Opcode::flush) return Errc::ok;
  if (request.is_atomic()) {
    const std::uint64_t old = execute_atomic(request.opcode, use.data(), request.operand, request.compare);
    std::memcpy(request.local->data() + request.local_offset, &old, sizeof old);
    return Errc::ok;
  }
  for (std::uint64_t done = 0; done < request.length;) {
    if (done > 0 && deadline.passed()) return Errc::timed_out;
    const std::uint64_t piece = std::min(kPiece, request.length - done);
    std::byte* local = request.local->data() + request.local_offset + done;
    std::byte* remote = use.data() + done;
    // The two sides may overlap: both are this process's memory.
    request.opcode == Opcode::get ? std::memmove(local, remote, piece) : std::memmove(remote, local, piece);
    done += piece;
  }
  if (request.opcode != Opcode::put_notify) return Errc::ok;
  return transport_.deliver(event, nullptr) ? Errc::ok : Errc::again;
}

}  // namespace

Result<std::unique_ptr<Transport>> make_loopback(const TransportContext& context, const LoopbackOptions& options) {
  try {
    return std::unique_ptr<Transport>(new Loopback(context, options));
  } catch (const Exception& e) {
    return fail(e.error());
  }
}

}  // namespace fabric
}  // namespace dtr::inline v0
