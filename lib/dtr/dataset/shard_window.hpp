// The shards that a loader has in memory: the one it picks from, and the next ones, which a thread reads ahead.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "dtr/base/error.hpp"
#include "dtr/base/thread.hpp"
#include "dtr/dataset/plan.hpp"
#include "dtr/dataset/readers/reader.hpp"

namespace dtr::inline v0 {
namespace dataset {

/// One shard of several readers.
struct LoadedShard {
  std::uint64_t id = 0;
  std::vector<std::vector<std::byte>> bytes{};  ///< by reader
};

/// Walks along a plan. begin() and shard() from one thread; reading ahead on a thread of its own, if ahead > 0.
class ShardWindow {
 public:
  ShardWindow(std::vector<ReaderPtr> readers, std::uint64_t shard_size, std::size_t ahead);
  ~ShardWindow();  ///< waits for a read that is going on
  ShardWindow(const ShardWindow&) = delete;
  ShardWindow& operator=(const ShardWindow&) = delete;

  /// Goes to a row of a plan. Shards in memory that come again there are not read again.
  void begin(const ShardPlan& plan, std::uint64_t row);

  /// A shard, in the order of the plan from where begin() went. What lies before it is given up. Waits for its read.
  /// Errors: those of the readers, at the shard that they concern.
  [[nodiscard]] Result<std::shared_ptr<const LoadedShard>> shard(std::uint64_t id);

 private:
  using Shard = std::shared_ptr<const LoadedShard>;

  struct Entry {
    std::uint64_t id = 0;
    std::optional<Result<Shard>> outcome{};  ///< unset: still being read
  };

  [[nodiscard]] Result<Shard> load(std::uint64_t id) const;
  [[nodiscard]] std::optional<std::uint64_t> next_of_plan();
  [[nodiscard]] Shard in_memory(std::uint64_t id) const;
  void read_ahead();

  const std::vector<ReaderPtr> readers_;
  const std::uint64_t shard_size_;
  const std::size_t ahead_;

  std::mutex mutex_;
  std::condition_variable wake_;
  std::optional<ShardPlan> plan_;
  std::uint64_t row_ = 0;         // of the plan, where the shard after the last entry begins
  std::uint64_t generation_ = 0;  // of begin()
  std::deque<Entry> entries_;     // the one in use, then those ahead of it
  std::vector<Shard> left_over_;  // from before begin()
  bool stopping_ = false;

  Thread thread_;  // last: joined before what it uses goes
};

}  // namespace dataset
}  // namespace dtr::inline v0
