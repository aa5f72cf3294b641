// The shm transport: what progress does, in which order.
#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <deque>
#include <exception>
#include <string>

#include <sodium.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "dtr/base/file.hpp"
#include "dtr/base/log.hpp"
#include "dtr/fabric/shm/greeter.hpp"
#include "dtr/fabric/shm/in_link.hpp"
#include "dtr/fabric/shm/local.hpp"
#include "dtr/fabric/shm/out_link.hpp"
#include "dtr/fabric/shm/shm.hpp"

namespace dtr::inline v0 {
namespace fabric::shm {

namespace {

constexpr std::uint32_t kPollEvery = 64;  ///< a system call among so many looks at memory
constexpr int kLoudRefusals = 10;

/// The handle that a channel's user holds; the link may outlive it until progress has put it away.
class ShmChannel final : public Channel {
 public:
  explicit ShmChannel(std::shared_ptr<OutLink> link) : link_(std::move(link)) {}
  ~ShmChannel() override { link_->detach(); }

  PostResult post(std::span<const WorkRequest> requests, Deadline deadline) noexcept override {
    return link_->post(requests, deadline);
  }
  Result<const RemoteRegion*> import(const RemoteKey& key) override { return link_->import(key); }
  std::uint32_t cancel(Completion& completion) noexcept override { return link_->cancel(completion); }
  // What ends here is never touched again: copies happen in the caller, or under a lock that ending takes too.
  bool quiesced() const noexcept override { return true; }
  // A ring loses nothing, so there is nothing to replay and no connection to renew.
  void reset() noexcept override { link_->end_atomics(); }
  void close() noexcept override { link_->close(); }
  void abort(Errc code) noexcept override { link_->abort(code); }
  ChannelState state() const noexcept override { return link_->state(); }
  std::string path() const override { return link_->path(); }
  std::string explain(const Status& status) const override { return link_->explain(status); }

 private:
  std::shared_ptr<OutLink> link_;
};

class ShmTransport final : public Transport, private Watcher {
 public:
  ShmTransport(std::shared_ptr<Local> local, UniqueFd listener, const Address& address, std::string domain)
      : local_(std::move(local)), listener_(std::move(listener)), address_(address), domain_(std::move(domain)) {}
  ~ShmTransport() override;

  Result<void> watch();

  std::string_view name() const noexcept override { return "shm"; }
  std::string domain() const override { return domain_; }
  bool moves(MemoryKind kind) const noexcept override { return kind != MemoryKind::cuda; }
  std::vector<std::byte> address() const override {
    const auto bytes = std::as_bytes(std::span(&address_, 1));
    return {bytes.begin(), bytes.end()};
  }

  Result<void> register_region(Region& region) override;
  bool drained(const Region& region) noexcept override;
  void deregister_region(Region& region) noexcept override;
  Result<std::unique_ptr<Channel>> connect(PeerId peer, std::span<const std::byte> address, Deadline deadline) override;
  void fence(PeerId peer) noexcept override;
  void leave() noexcept override;

  int progress(int budget) noexcept override;
  int wait_descriptor() const noexcept override { return local_->poller.fd(); }
  bool prepare_sleep() noexcept override;
  Deadline::Clock::time_point next_deadline() const noexcept override;

 private:
  void on_readable(int fd) noexcept override;
  int round(int budget);
  int greet();
  void admit(InParts parts);
  void refuse(const Error& why);
  void take_requests();
  [[nodiscard]] bool has_work();

  const std::shared_ptr<Local> local_;
  const UniqueFd listener_;
  const Address address_;
  const std::string domain_;
  Watch listener_watch_;
  Watch doorbell_watch_;

  std::mutex mutex_;  ///< what other threads ask of progress
  std::vector<std::shared_ptr<OutLink>> new_links_;
  std::vector<PeerId> new_fences_;
  std::atomic<bool> requests_{false};

  std::deque<std::unique_ptr<Greeter>> greeters_;  // progress only, as what follows
  std::vector<std::unique_ptr<InLink>> in_;
  std::vector<std::shared_ptr<OutLink>> out_;
  std::uint32_t rounds_ = 0;
  bool slept_ = true;
  bool accepting_ = false;
  int refusals_ = 0;
  std::size_t first_ = 0;           ///< the link that is served first: none starves another
  std::vector<RemoteKey> revoked_;  ///< regions whose revocation all peers have seen
};

ShmTransport::~ShmTransport() {
  if (local_->fork_guard.in_forked_child()) return;
  local_->lines->retire();
  for (const auto& link : out_) link->shut_down();
  for (const auto& link : new_links_) link->shut_down();
  greeters_.clear();
  in_.clear();
}

Result<void> ShmTransport::watch() {
  auto listener = local_->poller.add(listener_.get(), *this);
  if (!listener) return fail(std::move(listener.error()));
  listener_watch_ = std::move(*listener);
  auto doorbell = local_->poller.add(local_->doorbell.get(), *this);
  if (!doorbell) return fail(std::move(doorbell.error()));
  doorbell_watch_ = std::move(*doorbell);
  return {};
}

// --- any thread ---

Result<void> ShmTransport::register_region(Region& region) {
  if (auto alive = local_->fork_guard.check("register memory"); !alive) return alive;
  local_->segments.add(region);
  return {};
}

void ShmTransport::deregister_region(Region& region) noexcept {
  if (local_->fork_guard.in_forked_child()) return;
  local_->segments.remove(region);
  requests_.store(true, std::memory_order_release);
  local_->wake();
}

Result<std::unique_ptr<Channel>> ShmTransport::connect(PeerId peer, std::span<const std::byte> address,
                                                       Deadline deadline) {
  if (auto alive = local_->fork_guard.check("connect"); !alive) return fail(std::move(alive.error()));
  if (address.size() != sizeof(Address)) {
    return fail(Errc::invalid_argument, "the address is not one of shm", "connect", static_cast<int>(peer), "shm");
  }
  Address where;
  std::memcpy(&where, address.data(), sizeof where);
  auto link = std::make_shared<OutLink>(local_, peer, where, deadline);
  {
    const std::lock_guard lock(mutex_);
    new_links_.push_back(link);
  }
  requests_.store(true, std::memory_order_release);
  local_->wake();
  return std::unique_ptr<Channel>(new ShmChannel(std::move(link)));
}

void ShmTransport::fence(PeerId peer) noexcept {
  if (local_->fork_guard.in_forked_child()) return;
  try {
    local_->peers.fence(peer);
    const std::lock_guard lock(mutex_);
    new_fences_.push_back(peer);
  } catch (const std::bad_alloc&) {
    DTR_LOG_ERROR("shm: no memory to shut out rank ", peer);
  }
  requests_.store(true, std::memory_order_release);
  local_->wake();
}

// --- progress ---

int ShmTransport::progress(int budget) noexcept {
  if (local_->fork_guard.in_forked_child()) return 0;
  try {
    return round(budget);
  } catch (const std::exception& e) {
    DTR_LOG_ERROR("shm: progress: ", e.what());
    return 0;
  }
}

int ShmTransport::round(int budget) {
  int handled = 0;
  if (local_->control->sleeping.load(std::memory_order_relaxed) != 0) {
    local_->control->sleeping.store(0, std::memory_order_relaxed);
  }
  if (requests_.load(std::memory_order_acquire)) take_requests();

  const bool setting_up = !greeters_.empty() || accepting_;
  if (std::exchange(slept_, false) || setting_up || ++rounds_ % kPollEvery == 0) handled += local_->poller.poll();
  if (!greeters_.empty() || accepting_) handled += greet();

  const std::size_t links = in_.size();
  if (links > 0) {
    first_ = first_ + 1 < links ? first_ + 1 : 0;
    for (std::size_t i = 0; i < links && handled < budget; ++i) {
      const std::size_t at = first_ + i < links ? first_ + i : first_ + i - links;
      handled += in_[at]->serve(budget - handled);
    }
    std::erase_if(in_, [](const auto& link) { return link->over(); });
  }
  for (std::size_t i = 0; i < out_.size(); ++i) handled += out_[i]->drive(budget);
  std::erase_if(out_, [](const auto& link) { return link->over(); });
  return handled;
}

void ShmTransport::take_requests() {
  requests_.store(false, std::memory_order_relaxed);
  std::vector<PeerId> fences;
  {
    const std::lock_guard lock(mutex_);
    std::move(new_links_.begin(), new_links_.end(), std::back_inserter(out_));
    new_links_.clear();
    fences.swap(new_fences_);
  }
  for (const PeerId peer : fences) {
    for (const auto& link : in_) {
      if (link->peer() == peer) link->drop(Errc::fenced, "it was declared failed");
    }
    for (const auto& link : out_) {
      if (link->peer() == peer) link->fence();
    }
  }
  for (const std::uint64_t segment : local_->segments.take_gone()) {
    for (const auto& link : in_) link->unmap(segment);
  }
}

void ShmTransport::on_readable(int fd) noexcept {
  if (fd == listener_.get()) {
    accepting_ = true;
    return;
  }
  std::uint64_t rings = 0;
  [[maybe_unused]] const auto got = ::read(fd, &rings, sizeof rings);
}

int ShmTransport::greet() {
  int handled = 0;
  while (std::exchange(accepting_, false)) {
    UniqueFd socket = accept_from(listener_.get());
    if (!socket) break;
    ++handled;
    accepting_ = handled < 64;
    if (greeters_.size() >= local_->options.max_handshakes) {
      refuse({.code = Errc::resource_exhausted,
              .message = "too many connections in their handshake; the oldest is closed",
              .operation = "accept"});
      greeters_.pop_front();
    }
    auto greeter = std::make_unique<Greeter>(*local_, std::move(socket), local_->options.handshake_timeout);
    if (auto watched = greeter->watch(); watched) greeters_.push_back(std::move(greeter));
  }
  const auto now = Deadline::Clock::now();
  for (auto it = greeters_.begin(); it != greeters_.end();) {
    Greeter& greeter = **it;
    if (!greeter.ready() && now < greeter.deadline().at()) {
      ++it;
      continue;
    }
    ++handled;
    auto parts = greeter.drive();
    if (parts && !parts->has_value()) {
      ++it;
      continue;
    }
    if (!parts) {
      refuse(parts.error());
    } else {
      admit(std::move(**parts));
    }
    it = greeters_.erase(it);
  }
  return handled;
}

void ShmTransport::admit(InParts parts) {
  auto link = std::make_unique<InLink>(*local_, std::move(parts));
  in_.push_back(std::move(link));  // first known to drained(), then told to the peer
  if (auto started = in_.back()->start(); !started) {
    refuse(started.error());
    in_.pop_back();
  }
}

void ShmTransport::refuse(const Error& why) {
  // A stranger must not fill the log.
  if (++refusals_ <= kLoudRefusals) {
    DTR_LOG_WARN("shm: a connection is refused: ", why.to_string(),
                 refusals_ == kLoudRefusals ? " (further ones at level debug)" : "");
  } else {
    DTR_LOG_DEBUG("shm: a connection is refused: ", why.to_string());
  }
}

bool ShmTransport::prepare_sleep() noexcept {
  if (local_->fork_guard.in_forked_child()) return true;
  // Whoever publishes something either sees that we sleep, or has published it before we look once more.
  local_->control->sleeping.exchange(1, std::memory_order_acq_rel);
  heavy_barrier();
  slept_ = true;
  try {
    if (!has_work()) return true;
  } catch (const std::exception& e) {
    DTR_LOG_ERROR("shm: ", e.what());
  }
  local_->control->sleeping.store(0, std::memory_order_relaxed);
  return false;
}

bool ShmTransport::has_work() {
  if (requests_.load(std::memory_order_acquire) || accepting_) return true;
  for (const auto& greeter : greeters_) {
    if (greeter->ready()) return true;
  }
  for (const auto& link : in_) {
    if (link->has_work()) return true;
  }
  for (const auto& link : out_) {
    if (link->has_work()) return true;
  }
  return false;
}

Deadline::Clock::time_point ShmTransport::next_deadline() const noexcept {
  auto next = Deadline::Clock::time_point::max();
  if (local_->fork_guard.in_forked_child()) return next;
  for (const auto& greeter : greeters_) next = std::min(next, greeter->deadline().at());
  for (const auto& link : out_) next = std::min(next, link->next_deadline());
  return next;
}

bool ShmTransport::drained(const Region& region) noexcept {
  if (local_->fork_guard.in_forked_child()) return true;
  const RemoteKey& key = region.key();
  const auto seen = std::find_if(revoked_.begin(), revoked_.end(), [&](const RemoteKey& other) {
    return other.slot == key.slot && other.generation == key.generation;
  });
  // From this barrier on, a thread that raises its flag sees the revocation; what is raised now, we see.
  if (seen == revoked_.end()) {
    heavy_barrier();
    try {
      revoked_.push_back(key);
    } catch (const std::bad_alloc&) {
      return false;  // called again
    }
  }
  const std::uint64_t value = FlagLine::value(local_->identity.self, key.slot);
  const bool shown = std::any_of(in_.begin(), in_.end(), [&](const auto& link) { return link->shows(value); });
  if (shown || region.uses() != 0) return false;
  std::erase_if(revoked_, [&](const RemoteKey& other) { return other.slot == key.slot; });
  return true;
}

void ShmTransport::leave() noexcept {
  if (local_->fork_guard.in_forked_child()) return;
  try {
    take_requests();
    for (const auto& link : in_) link->leave();
    for (const auto& link : out_) link->leave();
  } catch (const std::exception& e) {
    DTR_LOG_ERROR("shm: leave: ", e.what());
  }
}

/// Boot and network namespace: processes that agree in both share memory and abstract sockets.
Result<std::string> domain_of(const Identity& identity) {
  auto boot = read_file("/proc/sys/kernel/random/boot_id");
  if (!boot) return fail(std::move(boot.error()));
  std::string net(64, '\0');
  const ssize_t length = ::readlink("/proc/self/ns/net", net.data(), net.size());
  if (length < 0) return fail(errno_error(errno, "readlink /proc/self/ns/net", "start shm"));
  net.resize(static_cast<std::size_t>(length));
  boot->erase(std::remove(boot->begin(), boot->end(), '\n'), boot->end());
  return "shm:" + identity.host_id + ":" + *boot + ":" + net;
}

/// Rings hold four of the largest messages, whatever is asked for.
Result<ShmOptions> usable(ShmOptions options) {
  constexpr std::size_t kLargest = LinkMemory::kMaxSlots * kSlot;
  if (options.ring_bytes > kLargest || options.eager_bytes > kLargest / 8 || options.max_handshakes == 0) {
    return fail(Errc::invalid_argument,
                "ring_bytes " + std::to_string(options.ring_bytes) + ", eager_bytes " +
                    std::to_string(options.eager_bytes) + ", max_handshakes " + std::to_string(options.max_handshakes) +
                    ": at most " + std::to_string(kLargest) + ", an eighth of it, at least 1",
                "start shm");
  }
  const std::size_t least = std::max(LinkMemory::kMinSlots * kSlot, 4 * (options.eager_bytes + kSlot));
  options.ring_bytes = std::bit_ceil(std::max(options.ring_bytes, least));
  return options;
}

Result<std::unique_ptr<Transport>> make(const TransportContext& context, const ShmOptions& asked) {
  auto options = usable(asked);
  if (!options) return fail(std::move(options.error()));
  if (sodium_init() < 0) return fail(Errc::unsupported, "no source of random numbers", "start shm");
  auto domain = domain_of(context.identity);
  if (!domain) return fail(std::move(domain.error()));
  auto local = std::make_shared<Local>(context, *options);
  local->barriers = enable_barriers();
  auto control = Control::create(local->barriers);
  if (!control) return fail(std::move(control.error()));
  local->control = std::move(*control);
  local->lines = std::make_shared<FlagLines>(local->control);
  local->doorbell.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!local->doorbell) return fail(errno_error(errno, "eventfd", "start shm"));
  randombytes_buf(local->probe.data(), local->probe.size());
  if (auto opened = local->poller.open(); !opened) return fail(std::move(opened.error()));

  Address address{.pid = static_cast<std::uint32_t>(::getpid())};
  randombytes_buf(address.name.data(), address.name.size());
  auto listener = listen_at(address);
  if (!listener) return fail(std::move(listener.error()));
  auto transport = std::make_unique<ShmTransport>(std::move(local), std::move(*listener), address, std::move(*domain));
  if (auto watched = transport->watch(); !watched) return fail(std::move(watched.error()));
  return transport;
}

}  // namespace

Result<std::unique_ptr<Transport>> make_shm(const TransportContext& context, const ShmOptions& options) {
  return make(context, options);
}

}  // namespace fabric::shm
}  // namespace dtr::inline v0
