// The thread that executes the work requests of one device.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <vector>

#include "dtr/base/thread.hpp"
#include "support/software_nic/responder.hpp"

namespace dtr::software_nic {

/// A request that was on the wire when its queue pair failed: it arrives all the same.
struct Straggler {
  Clock::time_point due{};
  RawGid to{};
  std::uint32_t to_qp = 0;
  Request request{};
  std::vector<std::byte> payload{};
};

/// Any thread.
class Engine {
 public:
  explicit Engine(Device& device) : device_(device) {}
  ~Engine() { stop(); }
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  /// There is something to do for the queue pair. Starts the thread if there is none yet.
  void kick(QueuePair& queue_pair);
  /// Nothing is executed or completed until it is thawed, once this has returned.
  void freeze(bool frozen);
  void send_later(Straggler straggler);
  void stop();

 private:
  void run();
  [[nodiscard]] std::shared_ptr<QueuePair> next(Clock::time_point now, Clock::time_point& wake);

  Device& device_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::shared_ptr<QueuePair>> active_;
  std::vector<Straggler> stragglers_;
  std::size_t turn_ = 0;
  bool frozen_ = false;
  bool stopping_ = false;
  bool waiting_ = false;
  bool busy_ = false;
  Thread thread_;
};

/// Executes what is due of a queue pair: answers that have arrived, and one request. Returns when to come again.
[[nodiscard]] Clock::time_point step(QueuePair& queue_pair);
/// Ends all requests of a queue pair in error.
void flush(QueuePair& queue_pair);
/// Hands requests that are on the wire to the engine, for a queue pair that ends. Under its `requesting`.
void leave_on_wire(QueuePair& queue_pair);

}  // namespace dtr::software_nic
