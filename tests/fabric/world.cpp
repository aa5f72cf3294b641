#include "fabric/world.hpp"

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <thread>

namespace dtr::testing {

namespace {

/// Eight bytes of a pattern at once: sanitizers make each access dear.
std::uint64_t pattern_word(std::uint64_t seed, std::uint64_t index) {
  std::uint64_t x = (seed + 1) * 0x9E3779B97F4A7C15ULL + index;
  x ^= x >> 31;
  x *= 0xBF58476D1CE4E5B9ULL;
  return x ^ (x >> 29);
}

}  // namespace

std::byte pattern_byte(std::uint64_t seed, std::uint64_t index) {
  return static_cast<std::byte>(pattern_word(seed, index / 8) >> (index % 8 * 8));
}

World::World(const TransportCase& transport, WorldOptions options) : progress_threads_(options.progress_threads) {
  const std::uint32_t ranks = transport.to_itself ? 1 : options.ranks;
  std::vector<std::vector<std::byte>> addresses;
  fabric::JobToken token{};
  token.fill(std::byte{42});
  for (std::uint32_t rank = 0; rank < ranks; ++rank) {
    fabric::FabricOptions fabric_options;
    fabric_options.identity = {.self = rank, .world = ranks, .host_id = "test-host", .token = {}};
    fabric_options.transports = transport.transports;
    fabric_options.connect_timeout = scaled(5s);
    fabric_options.progress.thread = options.progress_threads;
    fabric_options.progress.waiting.keeps_core = std::chrono::nanoseconds(0);
    fabrics_.push_back(value_or_throw(fabric::Fabric::create(std::move(fabric_options))));
    addresses.push_back(fabrics_.back()->address());
  }
  for (auto& fabric : fabrics_) value_or_throw(fabric->start(addresses, token));
}

World::~World() {
  // A goodbye is answered by the other ends' progress: without threads of their own they get one for this.
  std::atomic<bool> stopped{false};
  std::thread driver;
  if (!progress_threads_) {
    driver = std::thread([&] {
      while (!stopped) {
        for (auto& fabric : fabrics_) {
          if (fabric != nullptr) fabric->progress().poll();
        }
        std::this_thread::sleep_for(100us);
      }
    });
  }
  for (auto& fabric : fabrics_) {
    if (fabric != nullptr) static_cast<void>(fabric->stop(scaled(2s)));
  }
  stopped = true;
  if (driver.joinable()) driver.join();
}

void World::stop(std::size_t number) {
  value_or_throw(fabrics_.at(number)->stop(scaled(5s)));
  fabrics_.at(number).reset();
}

Memory::Memory(fabric::Fabric& fabric, std::size_t bytes, bool managed, RegionOptions options)
    : fabric_(fabric), size_(bytes) {
  if (managed) {
    region_ = value_or_throw(fabric.allocate_segment(bytes, options));
  } else {
    plain_.resize(bytes);
    region_ = value_or_throw(fabric.register_memory(plain_, options));
  }
}

Memory::~Memory() {
  if (region_ == nullptr) return;
  EXPECT_TRUE(fabric_.unregister_memory(*region_, scaled(5s)).has_value());
}

Result<void> Memory::unregister(std::chrono::milliseconds bound) {
  auto done = fabric_.unregister_memory(*region_, scaled(bound));
  if (done) region_ = nullptr;
  return done;
}

void Memory::pattern(std::uint64_t seed) {
  for (std::size_t i = 0; i < size_; i += 8) {
    const std::uint64_t word = pattern_word(seed, i / 8);
    std::memcpy(data() + i, &word, std::min<std::size_t>(8, size_ - i));
  }
}

std::size_t Memory::mismatches(std::uint64_t seed, std::size_t offset, std::size_t bytes) const {
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < bytes; i += 8) {
    const std::size_t count = std::min<std::size_t>(8, bytes - i);
    const std::uint64_t expected = pattern_word(seed, i / 8);
    if (std::memcmp(data() + offset + i, &expected, count) == 0) continue;
    for (std::size_t k = i; k < i + count; ++k) wrong += data()[offset + k] != pattern_byte(seed, k) ? 1 : 0;
  }
  return wrong;
}

}  // namespace dtr::testing
