// Ranks as threads: a Group whose members share one process, for tests of services without a launcher.
#pragma once

#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "dtr/runtime/group.hpp"

namespace dtr::testing {

class ThreadGroup final : public Group {
 public:
  /// One member for each of `size` ranks; give each to its own thread.
  static std::vector<std::unique_ptr<ThreadGroup>> make(int size) {
    auto meeting = std::make_shared<Meeting>();
    std::vector<std::unique_ptr<ThreadGroup>> members;
    for (int rank = 0; rank < size; ++rank) members.emplace_back(new ThreadGroup(meeting, rank, size));
    return members;
  }

  [[nodiscard]] int rank() const noexcept override { return rank_; }
  [[nodiscard]] int size() const noexcept override { return size_; }

  [[nodiscard]] Result<std::vector<Bytes>> allgather(std::string_view topic, std::span<const std::byte> mine,
                                                     Deadline deadline) override {
    std::unique_lock lock(meeting_->mutex);
    const std::string round = std::string(topic) + "#" + std::to_string(rounds_[std::string(topic)]++);
    auto& table = meeting_->tables[round];
    table.contributions[rank_] = Bytes(mine.begin(), mine.end());
    meeting_->arrived.notify_all();
    const auto complete = [&] { return static_cast<int>(table.contributions.size()) == size_; };
    if (!meeting_->arrived.wait_until(lock, deadline.at(), complete)) {
      std::string missing;
      for (int r = 0; r < size_; ++r) {
        if (!table.contributions.contains(r)) missing += (missing.empty() ? "" : ", ") + std::to_string(r);
      }
      return fail(Errc::timed_out, "did not come: rank " + missing, "allgather " + std::string(topic));
    }
    std::vector<Bytes> all;
    for (auto& [rank, bytes] : table.contributions) all.push_back(bytes);
    return all;
  }

 private:
  struct Table {
    std::map<int, Bytes> contributions;
  };
  struct Meeting {
    std::mutex mutex;
    std::condition_variable arrived;
    std::map<std::string, Table> tables;
  };

  ThreadGroup(std::shared_ptr<Meeting> meeting, int rank, int size)
      : meeting_(std::move(meeting)), rank_(rank), size_(size) {}

  std::shared_ptr<Meeting> meeting_;
  std::map<std::string, int> rounds_;
  int rank_;
  int size_;
};

}  // namespace dtr::testing
