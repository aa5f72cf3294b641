// What a Messenger has done, as metrics.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "dtr/base/metrics.hpp"

namespace dtr::inline v0 {
namespace messaging {

/// How a message came.
enum class Carrier : std::uint8_t { eager, slots, read, self };

/// With the Messenger's lock, which makes one writer of all: no atomic read-modify-write, which would wait until what
/// was just written into a ring has reached the other core.
class Counts {
 public:
  Counts(MetricsRegistry& metrics, int group) {
    const std::string number = std::to_string(group);
    constexpr std::array<const char*, 4> kCarriers = {"eager", "slots", "read", "self"};
    for (std::size_t i = 0; i < kCarriers.size(); ++i) {
      const MetricLabels labels{{"group", number}, {"way", kCarriers[i]}};
      received_[i] = {&metrics.counter("dtr_messages_received_total", "Messages that recvs got.", labels),
                      &metrics.counter("dtr_messages_received_bytes_total", "Bytes of them.", labels)};
    }
    const MetricLabels labels{{"group", number}};
    sent_ = {&metrics.counter("dtr_messages_sent_total", "Sends that ended well.", labels),
             &metrics.counter("dtr_messages_sent_bytes_total", "Bytes of them.", labels)};
    failed_ = &metrics.counter("dtr_messages_failed_total", "Sends and recvs that ended with an Error.", labels);
  }

  void sent(std::uint64_t bytes) noexcept { sent_.count(bytes); }
  void received(Carrier by, std::uint64_t bytes) noexcept { received_[static_cast<std::size_t>(by)].count(bytes); }
  void failed() noexcept { add(*failed_, 1); }

 private:
  static void add(Counter& counter, std::uint64_t n) noexcept { counter.follow(counter.value() + n); }

  struct Pair {
    Counter* messages = nullptr;
    Counter* bytes = nullptr;
    void count(std::uint64_t n) const noexcept {
      add(*messages, 1);
      add(*bytes, n);
    }
  };

  std::array<Pair, 4> received_{};
  Pair sent_{};
  Counter* failed_ = nullptr;
};

}  // namespace messaging
}  // namespace dtr::inline v0
