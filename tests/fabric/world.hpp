// Ranks in one process: a Fabric each, over the transport under test.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "dtr/fabric/fabric.hpp"
#include "support/test_support.hpp"

namespace dtr::testing {

using namespace std::chrono_literals;

/// One way to run the conformance suite.
struct TransportCase {
  std::string name;
  bool to_itself = false;  ///< loopback: rank 0 is both sides
  std::vector<fabric::TransportFactory> transports{};
  bool managed = true;  ///< memory under test is mappable by the peer
  /// Puts and gets finish without the target's CPU.
  bool one_sided = true;
};
inline std::ostream& operator<<(std::ostream& out, const TransportCase& c) { return out << c.name; }

/// Every transport that is built, in each of its ways to move memory.
[[nodiscard]] std::vector<TransportCase> transport_cases();

/// Keeps what arrives on a port.
class Inbox final : public fabric::PortHandler {
 public:
  struct Event {
    fabric::PeerId from = 0;
    bool is_message = false;
    std::uint32_t value = 0;
    std::vector<std::byte> payload{};
  };

  void on_notify(fabric::PeerId from, std::uint32_t value) noexcept override { push({from, false, value, {}}); }
  void on_message(fabric::PeerId from, std::span<const std::byte> payload) noexcept override {
    push({from, true, 0, {payload.begin(), payload.end()}});
  }
  void on_peer_down(fabric::PeerId peer, const Error& error) noexcept override {
    const std::lock_guard lock(mutex_);
    down_.emplace_back(peer, error);
    arrived_.notify_all();
  }

  /// The next event, or nothing within the bound.
  [[nodiscard]] std::optional<Event> next(std::chrono::milliseconds bound = 10s) {
    std::unique_lock lock(mutex_);
    if (!arrived_.wait_for(lock, scaled(bound), [&] { return !events_.empty(); })) return std::nullopt;
    Event event = std::move(events_.front());
    events_.pop_front();
    return event;
  }
  [[nodiscard]] std::optional<Error> next_down(std::chrono::milliseconds bound = 10s) {
    std::unique_lock lock(mutex_);
    if (!arrived_.wait_for(lock, scaled(bound), [&] { return !down_.empty(); })) return std::nullopt;
    Error error = down_.front().second;
    down_.pop_front();
    return error;
  }
  [[nodiscard]] std::size_t size() const {
    const std::lock_guard lock(mutex_);
    return events_.size();
  }

 private:
  void push(Event event) noexcept {
    const std::lock_guard lock(mutex_);
    events_.push_back(std::move(event));
    arrived_.notify_all();
  }
  mutable std::mutex mutex_;
  std::condition_variable arrived_;
  std::deque<Event> events_;
  std::deque<std::pair<fabric::PeerId, Error>> down_;
};

struct WorldOptions {
  std::uint32_t ranks = 2;
  bool progress_threads = true;
};

/// Fabrics that know each other. `initiator()` and `target()` are the same one for loopback.
class World {
 public:
  explicit World(const TransportCase& transport, WorldOptions options = {});
  ~World();

  [[nodiscard]] fabric::Fabric& rank(std::size_t number) { return *fabrics_.at(number); }
  [[nodiscard]] fabric::Fabric& initiator() { return *fabrics_.front(); }
  [[nodiscard]] fabric::Fabric& target() { return *fabrics_.back(); }
  [[nodiscard]] fabric::PeerId target_id() const { return static_cast<fabric::PeerId>(fabrics_.size() - 1); }
  void stop(std::size_t number);

 private:
  bool progress_threads_;
  std::vector<std::unique_ptr<fabric::Fabric>> fabrics_;
};

/// Registered memory of a fabric, mappable or plain, that goes with the object.
class Memory {
 public:
  Memory(fabric::Fabric& fabric, std::size_t bytes, bool managed, RegionOptions options = {});
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  [[nodiscard]] Region* region() const { return region_; }
  [[nodiscard]] std::byte* data() const { return region_->data(); }
  [[nodiscard]] std::size_t size() const { return size_; }
  void fill(std::byte value) { std::memset(data(), static_cast<int>(value), size_); }
  void pattern(std::uint64_t seed);
  [[nodiscard]] std::size_t mismatches(std::uint64_t seed, std::size_t offset, std::size_t bytes) const;
  /// Ends the registration early.
  [[nodiscard]] Result<void> unregister(std::chrono::milliseconds bound = 5s);

 private:
  fabric::Fabric& fabric_;
  std::size_t size_;
  std::vector<std::byte> plain_;
  Region* region_ = nullptr;
};

/// The i-th byte of a pattern: any shift or mix-up shows.
[[nodiscard]] std::byte pattern_byte(std::uint64_t seed, std::uint64_t index);

}  // namespace dtr::testing
