// One end of the shm transport for tests: a transport on its own, with its memory and a log of what it tells.
#pragma once

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstring>
#include <fstream>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "dtr/base/log.hpp"
#include "dtr/fabric/shm/shm.hpp"
#include "support/test_support.hpp"

namespace dtr::testing {

using namespace std::chrono_literals;

/// Counts and keeps what the transport tells. Any thread reads.
class Events final : public fabric::Receiver {
 public:
  void on_notify(fabric::PeerId, fabric::Port, std::uint32_t value) noexcept override {
    last_value = value;
    ++notifications;
  }
  void on_message(fabric::PeerId, fabric::Port, std::span<const std::byte> payload) noexcept override {
    message_bytes += payload.size();
    ++messages;
  }
  void on_peer_down(fabric::PeerId peer, Errc code, std::string_view) noexcept override {
    const std::lock_guard lock(mutex_);
    downs_.emplace_back(peer, code);
  }
  [[nodiscard]] std::vector<std::pair<fabric::PeerId, Errc>> downs() const {
    const std::lock_guard lock(mutex_);
    return downs_;
  }

  std::atomic<std::uint64_t> notifications{0};
  std::atomic<std::uint64_t> messages{0};
  std::atomic<std::uint64_t> message_bytes{0};
  std::atomic<std::uint32_t> last_value{0};

 private:
  mutable std::mutex mutex_;
  std::vector<std::pair<fabric::PeerId, Errc>> downs_;
};

class Node {
 public:
  explicit Node(fabric::PeerId self, const fabric::shm::ShmOptions& options = {}, std::byte token = std::byte{42})
      : identity{.self = self, .world = 4, .host_id = "test-host", .token = {}},
        regions(value_or_throw(RegionTable::create())) {
    identity.token.fill(token);
    transport = value_or_throw(fabric::shm::make_shm({identity, *regions, events}, options));
  }

  int pump() { return transport->progress(64); }

  /// New memory, in a segment that peers may map or in this process's own.
  Region& memory(std::size_t bytes, bool managed = true) {
    Region* region = nullptr;
    if (managed) {
      auto segment = value_or_throw(Segment::create(next_segment_++, bytes));
      region = value_or_throw(regions->add({segment->data(), bytes}, {}, segment));
    } else {
      plain_.push_back(std::make_unique<std::vector<std::byte>>(bytes));
      region = value_or_throw(regions->add(*plain_.back(), {}));
    }
    value_or_throw(transport->register_region(*region));
    return *region;
  }
  /// Ends a registration that is revoked and drained.
  void forget(Region& region) {
    transport->deregister_region(region);
    regions->remove(region);
  }

  fabric::Identity identity;
  Events events;
  std::unique_ptr<RegionTable> regions;
  std::unique_ptr<fabric::Transport> transport;

 private:
  std::uint64_t next_segment_ = 1;
  std::vector<std::unique_ptr<std::vector<std::byte>>> plain_;
};

/// Drives the nodes until `done`; false if that takes longer than the bound.
template <class Done>
[[nodiscard]] bool pump_until(std::initializer_list<Node*> nodes, std::chrono::milliseconds bound, Done&& done) {
  const Deadline deadline(scaled(bound));
  while (!done()) {
    if (deadline.passed()) return false;
    int handled = 0;
    for (Node* node : nodes) handled += node->pump();
    if (handled == 0) std::this_thread::yield();
  }
  return true;
}

/// Drives a node on a thread of its own.
class Pump {
 public:
  explicit Pump(Node& node)
      : thread_([this, &node] {
          while (!stop_) {
            if (node.pump() == 0) std::this_thread::yield();
          }
        }) {}
  ~Pump() {
    stop_ = true;
    thread_.join();
  }
  Pump(const Pump&) = delete;
  Pump& operator=(const Pump&) = delete;

 private:
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

inline std::unique_ptr<fabric::Channel> open_channel(Node& from, Node& to) {
  auto channel = value_or_throw(from.transport->connect(to.identity.self, to.transport->address(), scaled(10s)));
  EXPECT_TRUE(pump_until({&from, &to}, 10s, [&] { return channel->state() != fabric::ChannelState::connecting; }));
  EXPECT_EQ(channel->state(), fabric::ChannelState::open);
  return channel;
}

/// Memory that a forked child shares with the test.
template <class T>
class SharedPage {
 public:
  SharedPage() {
    void* at = ::mmap(nullptr, sizeof(T), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) throw std::bad_alloc();
    value_ = new (at) T;
  }
  ~SharedPage() { ::munmap(value_, sizeof(T)); }
  SharedPage(const SharedPage&) = delete;
  SharedPage& operator=(const SharedPage&) = delete;
  T* operator->() const { return value_; }
  T& operator*() const { return *value_; }

 private:
  T* value_;
};

/// Another process of the test. Killed with the object, and with the test.
class Child {
 public:
  explicit Child(const std::function<int()>& body) {
    const pid_t parent = ::getpid();
    pid_ = ::fork();
    if (pid_ != 0) return;
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (::getppid() != parent) ::_exit(99);
    int code = 98;
    try {
      code = body();
    } catch (const std::exception& e) {
      ::fprintf(stderr, "child: %s\n", e.what());
    }
    ::_exit(code);
  }
  ~Child() {
    if (pid_ > 0 && !reaped_) {
      kill(SIGKILL);
      static_cast<void>(wait());
    }
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  void kill(int signal) const { ::kill(pid_, signal); }
  /// Stops it, and returns once it stands still.
  void stop() const {
    kill(SIGSTOP);
    int status = 0;
    ::waitpid(pid_, &status, WUNTRACED);
  }
  /// The exit code; negative = signal.
  [[nodiscard]] int wait() {
    int status = 0;
    ::waitpid(pid_, &status, 0);
    reaped_ = true;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }

 private:
  pid_t pid_ = -1;
  bool reaped_ = false;
};

template <class T>
[[nodiscard]] bool wait_for(const std::atomic<T>& word, T at_least, std::chrono::milliseconds bound = 20s) {
  const Deadline deadline(scaled(bound));
  while (word.load() < at_least) {
    if (deadline.passed()) return false;
    std::this_thread::sleep_for(200us);
  }
  return true;
}

/// Shared segments that this process has mapped.
[[nodiscard]] inline std::size_t mapped_segments() {
  std::ifstream maps("/proc/self/maps");
  std::size_t count = 0;
  for (std::string line; std::getline(maps, line);) count += line.find("memfd:dtr") != std::string::npos ? 1 : 0;
  return count;
}

}  // namespace dtr::testing
