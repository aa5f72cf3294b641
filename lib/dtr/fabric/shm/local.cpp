#include "dtr/fabric/shm/local.hpp"

#include <utility>

namespace dtr::inline v0 {
namespace fabric::shm {

void SharedSegments::add(const Region& region) {
  if (region.segment() == nullptr) return;
  const std::lock_guard lock(mutex_);
  Held& held = held_[region.segment()->id()];
  held.segment = region.segment();
  ++held.regions;
}

void SharedSegments::remove(const Region& region) noexcept {
  if (region.segment() == nullptr) return;
  const std::lock_guard lock(mutex_);
  const auto held = held_.find(region.segment()->id());
  if (held == held_.end() || --held->second.regions > 0) return;
  gone_.push_back(held->first);
  held_.erase(held);
}

std::shared_ptr<Segment> SharedSegments::find(std::uint64_t id) const {
  const std::lock_guard lock(mutex_);
  const auto held = held_.find(id);
  return held == held_.end() ? nullptr : held->second.segment;
}

std::vector<std::uint64_t> SharedSegments::take_gone() {
  const std::lock_guard lock(mutex_);
  std::vector<std::uint64_t> gone = std::exchange(gone_, {});
  std::erase_if(gone, [&](std::uint64_t id) { return held_.contains(id); });  // registered in again meanwhile
  return gone;
}

void PeerBook::down(PeerId peer, Errc code, std::string_view why) {
  if (down_.insert(peer).second) receiver_.on_peer_down(peer, code, why);
}

void PeerBook::fence(PeerId peer) {
  const std::lock_guard lock(mutex_);
  fenced_.insert(peer);
}

bool PeerBook::fenced(PeerId peer) const {
  const std::lock_guard lock(mutex_);
  return fenced_.contains(peer);
}

}  // namespace fabric::shm
}  // namespace dtr::inline v0
