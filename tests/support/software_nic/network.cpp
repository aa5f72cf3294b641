#include "support/software_nic/network.hpp"

#include <algorithm>

namespace dtr::software_nic {

void Network::set_wire(const std::string& from, const std::string& to, WireFaults faults) {
  const std::lock_guard lock(rules_mutex_);
  std::erase_if(rules_, [&](const Rule& rule) { return rule.from == from && rule.to == to; });
  Rule rule{.from = from, .to = to, .faults = faults};
  if (faults.lasting.count() > 0) rule.end = Clock::now() + faults.lasting;
  rules_.push_back(rule);
  has_rules_.store(true, std::memory_order_release);
}

void Network::cut(const std::string& a, const std::string& b, std::chrono::milliseconds lasting) {
  set_wire(a, b, {.cut = true, .lasting = lasting});
  set_wire(b, a, {.cut = true, .lasting = lasting});
}

void Network::heal() {
  const std::lock_guard lock(rules_mutex_);
  rules_.clear();
  has_rules_.store(false, std::memory_order_release);
}

Network::Rule* Network::match(const std::string& from, const std::string& to) {
  const Clock::time_point now = Clock::now();
  std::erase_if(rules_, [&](const Rule& rule) { return rule.end <= now; });
  has_rules_.store(!rules_.empty(), std::memory_order_release);
  const auto found = std::find_if(rules_.rbegin(), rules_.rend(), [&](const Rule& rule) {
    return (rule.from.empty() || rule.from == from) && (rule.to.empty() || rule.to == to);
  });
  return found == rules_.rend() ? nullptr : &*found;
}

bool Network::loses(const std::string& from, const std::string& to) {
  if (!has_rules()) return false;
  const std::lock_guard lock(rules_mutex_);
  Rule* rule = match(from, to);
  if (rule == nullptr) return false;
  if (rule->faults.cut) return true;
  if (rule->faults.drop_next > 0) {
    --rule->faults.drop_next;
    return true;
  }
  return rule->faults.loss > 0 && std::uniform_real_distribution<double>(0, 1)(random_) < rule->faults.loss;
}

Clock::duration Network::latency(const std::string& from, const std::string& to) {
  if (!has_rules()) return {};
  const std::lock_guard lock(rules_mutex_);
  const Rule* rule = match(from, to);
  if (rule == nullptr) return {};
  Clock::duration time = rule->faults.delay;
  if (rule->faults.jitter.count() > 0) {
    time +=
        std::chrono::microseconds(std::uniform_int_distribution<std::int64_t>(0, rule->faults.jitter.count())(random_));
  }
  return time;
}

void Network::attach(const std::shared_ptr<Device>& device, std::uint8_t port, const std::vector<RawGid>& gids) {
  const std::unique_lock lock(places_mutex_);
  std::erase_if(places_,
                [&](const auto& place) { return place.second.identity == device.get() && place.second.port == port; });
  for (const RawGid& gid : gids) places_[gid] = {.device = device, .identity = device.get(), .port = port};
  version_.fetch_add(1, std::memory_order_release);
}

void Network::detach(const Device& device) {
  const std::unique_lock lock(places_mutex_);
  std::erase_if(places_, [&](const auto& place) { return place.second.identity == &device; });
  version_.fetch_add(1, std::memory_order_release);
}

Network::Place Network::find(const RawGid& gid) const {
  const std::shared_lock lock(places_mutex_);
  const auto found = places_.find(gid);
  if (found == places_.end()) return {};
  return {.device = found->second.device.lock(), .port = found->second.port};
}

bool Network::connects(const RawGid& from, const std::string& from_host, const RawGid& to,
                       const std::string& to_host) const noexcept {
  const auto link_local = [](const RawGid& gid) { return gid[0] == 0xFE && (gid[1] & 0xC0) == 0x80; };
  if (link_local(from) != link_local(to)) return false;
  if (link_local(from)) return from_host == to_host;
  constexpr std::size_t kSubnet = 15;
  return options_.routed || std::equal(from.begin(), from.begin() + kSubnet, to.begin());
}

std::uint32_t Network::next_key() noexcept {
  // Spread out, so that a wrong key is not by chance another region's.
  std::uint32_t key = 0;
  while (key == 0) key = next_key_.fetch_add(1, std::memory_order_relaxed) * 0x9E3779B1U;
  return key;
}

}  // namespace dtr::software_nic
