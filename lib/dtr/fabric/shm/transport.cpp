#include "dtr/fabric/shm/transport.hpp"

#include <algorithm>
#include <cstring>
#include <exception>

#include <unistd.h>

#include "dtr/base/log.hpp"
#include "dtr/fabric/shm/channel.hpp"

namespace dtr::inline v0 {
namespace fabric::shm {

namespace {

constexpr std::uint32_t kPollEvery = 64;  ///< a system call among so many looks at memory
constexpr int kLoudRefusals = 10;

}  // namespace

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
  local_->registration.tidy();
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

}  // namespace fabric::shm
}  // namespace dtr::inline v0
