// The wire that connects the devices of all software NICs of a test.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <shared_mutex>
#include <string>
#include <vector>

#include "support/software_nic/faults.hpp"

namespace dtr::software_nic {

class Device;
using RawGid = std::array<std::uint8_t, 16>;
using Clock = std::chrono::steady_clock;

struct NetworkOptions {
  std::uint64_t seed = 1;  ///< of what is random: loss and jitter
  bool routed = true;      ///< false: IPv4-mapped GIDs reach each other only within one /24 subnet
};

/// Any thread.
class Network {
 public:
  explicit Network(NetworkOptions options = {}) : options_(options), random_(options.seed) {}

  /// What happens to all that goes from one device to another ("rank0/soft0": nic and device; "" = any). Replaces
  /// the rule for the same pair; of several that match, the one set last counts.
  void set_wire(const std::string& from, const std::string& to, WireFaults faults);
  /// Both directions.
  void cut(const std::string& a = {}, const std::string& b = {}, std::chrono::milliseconds lasting = {});
  /// Forgets all rules.
  void heal();

  // For the devices.

  /// An address of a port; the device is forgotten when it is gone. Replaces what the same device had there.
  void attach(const std::shared_ptr<Device>& device, std::uint8_t port, const std::vector<RawGid>& gids);
  void detach(const Device& device);
  struct Place {
    std::shared_ptr<Device> device{};
    std::uint8_t port = 0;
  };
  /// Who has this GID; nobody: no device.
  [[nodiscard]] Place find(const RawGid& gid) const;
  /// Changes with every attach and detach.
  [[nodiscard]] std::uint64_t version() const noexcept { return version_.load(std::memory_order_acquire); }

  [[nodiscard]] bool has_rules() const noexcept { return has_rules_.load(std::memory_order_acquire); }
  [[nodiscard]] bool loses(const std::string& from, const std::string& to);
  [[nodiscard]] Clock::duration latency(const std::string& from, const std::string& to);

  /// An address reaches another: link-local ones within one host only.
  [[nodiscard]] bool connects(const RawGid& from, const std::string& from_host, const RawGid& to,
                              const std::string& to_host) const noexcept;
  /// Numbers are not used twice on one network, and tell devices apart.
  [[nodiscard]] std::uint32_t next_qp_number() noexcept {
    return next_qp_.fetch_add(1, std::memory_order_relaxed) & 0xFFFFFF;
  }
  [[nodiscard]] std::uint32_t next_key() noexcept;
  [[nodiscard]] int next_nic() noexcept { return next_nic_.fetch_add(1, std::memory_order_relaxed); }

 private:
  struct Rule {
    std::string from{};
    std::string to{};
    WireFaults faults{};
    Clock::time_point end = Clock::time_point::max();
  };
  struct Entry {
    std::weak_ptr<Device> device{};
    const Device* identity = nullptr;
    std::uint8_t port = 0;
  };

  [[nodiscard]] Rule* match(const std::string& from, const std::string& to);

  const NetworkOptions options_;
  std::atomic<std::uint32_t> next_qp_{0x11};
  std::atomic<std::uint32_t> next_key_{1};
  std::atomic<int> next_nic_{0};
  std::atomic<std::uint64_t> version_{1};
  mutable std::shared_mutex places_mutex_;
  std::map<RawGid, Entry> places_;
  std::atomic<bool> has_rules_{false};
  std::mutex rules_mutex_;
  std::vector<Rule> rules_;
  std::mt19937_64 random_;
};

}  // namespace dtr::software_nic
