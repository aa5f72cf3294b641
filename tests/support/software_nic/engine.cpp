#include "support/software_nic/engine.hpp"

#include <algorithm>

#include "support/software_nic/device.hpp"

namespace dtr::software_nic {

namespace {

constexpr Clock::time_point kNever = Clock::time_point::max();

void deliver(Device& device, Straggler& straggler) {
  const Network::Place place = device.network().find(straggler.to);
  if (place.device == nullptr || !place.device->port_active(place.port)) return;
  if (device.network().loses(device.full_name(), place.device->full_name())) return;
  const std::shared_ptr<QueuePair> target = place.device->find_queue_pair(straggler.to_qp);
  if (target == nullptr) return;
  straggler.request.payload = straggler.payload.data();
  std::vector<std::byte> result;
  static_cast<void>(execute(*target, straggler.request, result));
}

}  // namespace

void Engine::kick(QueuePair& queue_pair) {
  bool wake = false;
  {
    const std::lock_guard lock(mutex_);
    if (stopping_) return;
    queue_pair.due = {};
    if (!queue_pair.listed) {
      queue_pair.listed = true;
      active_.push_back(queue_pair.shared_from_this());
    }
    if (!thread_.joinable()) {
      thread_ = Thread([this](const std::stop_token&) { run(); }, {.name = "soft-nic"});
    }
    wake = waiting_;
  }
  if (wake) changed_.notify_all();
}

void Engine::freeze(bool frozen) {
  std::unique_lock lock(mutex_);
  frozen_ = frozen;
  changed_.notify_all();
  if (frozen) changed_.wait(lock, [&] { return !busy_; });
}

void Engine::send_later(Straggler straggler) {
  const std::lock_guard lock(mutex_);
  if (stopping_) return;
  stragglers_.push_back(std::move(straggler));
  changed_.notify_all();
}

void Engine::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    changed_.notify_all();
  }
  if (thread_.joinable()) thread_.join();
  active_.clear();
  stragglers_.clear();
}

std::shared_ptr<QueuePair> Engine::next(Clock::time_point now, Clock::time_point& wake) {
  for (std::size_t i = 0; i < active_.size(); ++i) {
    const std::size_t index = (turn_ + i) % active_.size();
    if (active_[index]->due <= now) {
      turn_ = index + 1;
      return active_[index];
    }
    wake = std::min(wake, active_[index]->due);
  }
  return nullptr;
}

void Engine::run() {
  std::unique_lock lock(mutex_);
  const auto outside = [&](const auto& work) {
    busy_ = true;
    lock.unlock();
    work();
    lock.lock();
    busy_ = false;
    if (frozen_) changed_.notify_all();
  };
  while (!stopping_) {
    Clock::time_point wake = kNever;
    const Clock::time_point now = Clock::now();
    std::shared_ptr<QueuePair> queue_pair;
    if (!frozen_) {
      // What a queue pair left on the wire arrives in its order.
      const auto late = std::min_element(stragglers_.begin(), stragglers_.end(),
                                         [](const Straggler& a, const Straggler& b) { return a.due < b.due; });
      if (late != stragglers_.end() && late->due <= now) {
        Straggler straggler = std::move(*late);
        stragglers_.erase(late);
        outside([&] { deliver(device_, straggler); });
        continue;
      }
      if (late != stragglers_.end()) wake = late->due;
      queue_pair = next(now, wake);
    }
    if (queue_pair == nullptr) {
      waiting_ = true;
      if (wake == kNever) {
        changed_.wait(lock);
      } else {
        changed_.wait_until(lock, wake);
      }
      waiting_ = false;
      continue;
    }
    queue_pair->due = kNever;  // a kick from here on is not lost
    Clock::time_point again = kNever;
    outside([&] { again = step(*queue_pair); });
    queue_pair->due = std::min(queue_pair->due, again);
    if (queue_pair->due == kNever) {
      queue_pair->listed = false;
      std::erase(active_, queue_pair);
    }
  }
}

}  // namespace dtr::software_nic
