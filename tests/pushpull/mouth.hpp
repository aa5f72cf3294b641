// One end of push_pull's protocol, spoken by hand.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <mutex>
#include <span>
#include <vector>

#include "dtr/fabric/fabric.hpp"
#include "dtr/pushpull/detail/route.hpp"
#include "dtr/pushpull/detail/wire.hpp"
#include "dtr/runtime/runtime.hpp"
#include "support/bytes_of.hpp"
#include "support/test_support.hpp"

namespace dtr::testing {

/// A whole tensor, pushed to the server of the same process where it is.
[[nodiscard]] inline pushpull::PushEntry push_in_place(std::uint64_t key, std::span<const float> tensor) {
  return {.key = key,
          .bytes = tensor.size_bytes(),
          .total = tensor.size_bytes(),
          .slot = pushpull::kInPlace,
          .dtype = static_cast<std::uint8_t>(DType::f32),
          .address = reinterpret_cast<std::uint64_t>(tensor.data())};
}

class Mouth final : public fabric::PortHandler {
 public:
  Mouth(Runtime& rt, const char* listens, const char* speaks)
      : rt_(rt),
        mine_(value_or_throw(rt.service_port(listens, 0))),
        theirs_(value_or_throw(rt.service_port(speaks, 0))) {
    value_or_throw(rt.fabric().open_port(mine_, *this));
  }
  ~Mouth() override { rt_.fabric().close_port(mine_); }

  void say(int rank, const std::vector<std::byte>& bytes) {
    const auto request = fabric::WorkRequest::send(theirs_, bytes, nullptr);
    rt_.fabric().submit(static_cast<fabric::PeerId>(rank), {&request, 1}, scaled(10s));
  }

  /// Begins a session with a server, and ends one; waits for its answer.
  void say_hello(int server, std::uint32_t epoch, std::uint32_t workers = 2) {
    say(server, bytes_of(pushpull::Hello{.head = {.kind = pushpull::Kind::hello, .epoch = epoch}, .workers = workers}));
    EXPECT_FALSE(hear(pushpull::Kind::welcome).empty());
  }
  void say_bye(int server, std::uint32_t epoch, std::uint64_t rounds, std::uint8_t flags = 0) {
    const pushpull::Head head{.kind = pushpull::Kind::bye, .flags = flags, .epoch = epoch};
    say(server, bytes_of(pushpull::Bye{.head = head, .rounds = rounds}));
    EXPECT_FALSE(hear(pushpull::Kind::parted).empty());
  }

  /// The next message of this kind; others are dropped. Empty if none comes.
  [[nodiscard]] std::vector<std::byte> hear(pushpull::Kind kind, std::chrono::milliseconds bound = scaled(10s)) {
    const Deadline deadline(bound);
    std::unique_lock lock(mutex_);
    while (true) {
      if (!came_.wait_until(lock, deadline.at(), [&] { return !heard_.empty(); })) return {};
      std::vector<std::byte> first = std::move(heard_.front());
      heard_.pop_front();
      if (pushpull::front<pushpull::Head>(first)->kind == kind) return first;
    }
  }

  void on_notify(fabric::PeerId, std::uint32_t) noexcept override {}
  void on_message(fabric::PeerId, std::span<const std::byte> payload) noexcept override {
    const std::lock_guard lock(mutex_);
    heard_.emplace_back(payload.begin(), payload.end());
    came_.notify_all();
  }
  void on_peer_down(fabric::PeerId, const Error&) noexcept override {}

 private:
  Runtime& rt_;
  fabric::Port mine_;
  fabric::Port theirs_;
  std::mutex mutex_;
  std::condition_variable came_;
  std::deque<std::vector<std::byte>> heard_;
};

}  // namespace dtr::testing
