// Requests of all kinds whose effect is checked to the last byte: everything arrives, and once.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>
#include <thread>
#include <vector>

#include "fabric/world.hpp"

namespace dtr::testing {

using fabric::Completion;
using fabric::RemoteRegion;
using fabric::WorkRequest;

/// Submits to a peer and waits for the end.
[[nodiscard]] inline Result<void> run(fabric::Fabric& from, fabric::PeerId to, std::vector<WorkRequest> requests,
                                      std::chrono::milliseconds bound = 20s) {
  Completion done;
  for (WorkRequest& request : requests) request.completion = &done;
  from.submit(to, requests, scaled(bound));
  return from.wait(done, to, "test", scaled(bound) + 5s);
}

/// Counts notifications, which are to come exactly once each.
class Tally final : public fabric::PortHandler {
 public:
  explicit Tally(std::size_t values) : seen_(values) {}
  void on_notify(fabric::PeerId, std::uint32_t value) noexcept override {
    if (value < seen_.size()) ++seen_[value];
    ++total_;
  }
  void on_message(fabric::PeerId, std::span<const std::byte> payload) noexcept override {
    std::uint32_t value = 0;
    std::memcpy(&value, payload.data(), std::min(sizeof value, payload.size()));
    if (value < seen_.size()) ++seen_[value];
    ++total_;
  }
  void on_peer_down(fabric::PeerId, const Error&) noexcept override {}

  [[nodiscard]] std::uint64_t total() const { return total_; }
  [[nodiscard]] bool wait_for(std::uint64_t count, std::chrono::milliseconds bound = 20s) const {
    const Deadline deadline(scaled(bound));
    while (total_ < count && !deadline.passed()) std::this_thread::sleep_for(1ms);
    return total_ >= count;
  }
  [[nodiscard]] bool each_once() const {
    return std::all_of(seen_.begin(), seen_.end(), [](const auto& count) { return count == 1; });
  }

 private:
  std::vector<std::atomic<int>> seen_;
  std::atomic<std::uint64_t> total_{0};
};

/// Puts with content, notifications and messages, all checked at the end.
class Traffic {
 public:
  static constexpr fabric::Port kPort = 40;
  static constexpr std::size_t kPiece = 3000;

  Traffic(World& world, std::size_t count)
      : world_(world),
        count_(count),
        source_(world.initiator(), kPiece * count, true),
        sink_(world.target(), kPiece * count, true),
        tally_(count) {
    source_.pattern(count);
    sink_.fill(std::byte{0});
    value_or_throw(world.target().open_port(kPort, tally_));
    remote_ = value_or_throw(world.initiator().import(world.target_id(), sink_.region()->key()));
  }
  ~Traffic() { world_.target().close_port(kPort); }

  void start(std::chrono::milliseconds bound = 30s) {
    std::vector<WorkRequest> requests;
    for (std::size_t i = 0; i < count_; ++i) {
      const std::uint64_t at = i * kPiece;
      switch (i % 3) {
        case 0:
          requests.push_back(WorkRequest::put_notify({source_.region(), at}, {remote_, at}, kPiece, kPort,
                                                     static_cast<std::uint32_t>(i), &done_));
          break;
        case 1:
          requests.push_back(WorkRequest::put({source_.region(), at}, {remote_, at}, kPiece, &done_));
          requests.push_back(WorkRequest::notify(kPort, static_cast<std::uint32_t>(i), &done_));
          break;
        default: {
          const auto value = static_cast<std::uint32_t>(i);
          requests.push_back(WorkRequest::put({source_.region(), at}, {remote_, at}, kPiece, &done_));
          requests.push_back(WorkRequest::send(kPort, std::as_bytes(std::span(&value, 1)), &done_));
          world_.initiator().submit(world_.target_id(), requests, scaled(bound));
          requests.clear();
        }
      }
    }
    world_.initiator().submit(world_.target_id(), requests, scaled(bound));
  }
  [[nodiscard]] Result<void> finish(std::chrono::milliseconds bound = 40s) {
    return world_.initiator().wait(done_, world_.target_id(), "traffic", scaled(bound));
  }
  void expect_everything_once() {
    EXPECT_TRUE(tally_.wait_for(count_));
    EXPECT_TRUE(tally_.each_once());
    EXPECT_EQ(tally_.total(), count_);
    EXPECT_EQ(sink_.mismatches(count_, 0, kPiece * count_), 0U);
  }

 private:
  World& world_;
  std::size_t count_;
  Memory source_;
  Memory sink_;
  Tally tally_;
  const RemoteRegion* remote_ = nullptr;
  Completion done_;
};

}  // namespace dtr::testing
