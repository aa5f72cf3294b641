#include "dtr/bootstrap/local.hpp"

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <mutex>
#include <utility>

#include "dtr/base/fork_guard.hpp"

namespace dtr::inline v0 {
namespace bootstrap {
namespace {

/// Where the ranks meet. Collectives are numbered by each rank alone, and equal numbers meet.
struct Meeting {
  struct Round {
    std::map<int, std::vector<std::byte>> contributions;
    int left_to_read = 0;  // exchanges only; a barrier's round goes with the meeting's count of arrivals
  };
  struct Family {
    std::shared_ptr<Meeting> meeting;
    std::vector<int> members;  // ranks of the parent, in order
  };

  explicit Meeting(int ranks) : size(ranks), arrivals(static_cast<std::size_t>(ranks), 0) {}

  const int size;
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<std::uint64_t> arrivals;                       // barriers that each rank has come to
  std::map<std::uint64_t, Round> rounds;                     // exchanges
  std::map<std::pair<std::uint64_t, int>, Family> families;  // by (exchange that agreed on it, colour)
};

class LocalBootstrap final : public Bootstrap {
 public:
  LocalBootstrap(std::shared_ptr<Meeting> meeting, int rank) : meeting_(std::move(meeting)), rank_(rank) {}

  [[nodiscard]] int rank() const noexcept override { return rank_; }
  [[nodiscard]] int size() const noexcept override { return meeting_->size; }

  [[nodiscard]] Result<std::vector<std::vector<std::byte>>> exchange(std::span<const std::byte> mine,
                                                                     Deadline deadline) override {
    if (auto r = usable("exchange"); !r) return fail(std::move(r.error()));
    std::unique_lock lock(meeting_->mutex);
    auto& round = meeting_->rounds[exchanges_];
    round.contributions.emplace(rank_, std::vector<std::byte>(mine.begin(), mine.end()));
    const auto complete = [&] { return static_cast<int>(round.contributions.size()) == meeting_->size; };
    if (complete()) {
      round.left_to_read = meeting_->size;
      meeting_->changed.notify_all();
    }
    if (!meeting_->changed.wait_until(lock, deadline.at(), complete)) {
      given_up_ = true;
      return fail(Errc::timed_out, "not every rank came", "exchange");
    }
    std::vector<std::vector<std::byte>> all;
    for (const auto& [rank, blob] : round.contributions) all.push_back(blob);
    if (--round.left_to_read == 0) meeting_->rounds.erase(exchanges_);
    ++exchanges_;
    return all;
  }

  [[nodiscard]] Result<std::unique_ptr<Bootstrap>> split(int color, Deadline deadline) override {
    const std::uint64_t agreement = exchanges_;
    auto colors = exchange(std::as_bytes(std::span(&color, 1)), deadline);
    if (!colors) {
      colors.error().operation = "split";
      return fail(std::move(colors.error()));
    }
    if (color < 0) return nullptr;
    std::vector<int> members;
    for (int r = 0; r < meeting_->size; ++r) {
      int theirs = 0;
      std::copy_n((*colors)[static_cast<std::size_t>(r)].data(), sizeof theirs, reinterpret_cast<std::byte*>(&theirs));
      if (theirs == color) members.push_back(r);
    }
    const std::lock_guard lock(meeting_->mutex);
    auto& family = meeting_->families[{agreement, color}];
    if (!family.meeting) family = {std::make_shared<Meeting>(static_cast<int>(members.size())), members};
    const auto place = std::lower_bound(members.begin(), members.end(), rank_) - members.begin();
    return std::make_unique<LocalBootstrap>(family.meeting, static_cast<int>(place));
  }

  [[nodiscard]] Result<void> barrier(Deadline deadline, const Poll& poll) override {
    if (auto r = usable("barrier"); !r) return r;
    std::unique_lock lock(meeting_->mutex);
    const std::uint64_t mine = ++meeting_->arrivals[static_cast<std::size_t>(rank_)];
    meeting_->changed.notify_all();
    const auto complete = [&] {
      return std::all_of(meeting_->arrivals.begin(), meeting_->arrivals.end(), [&](auto n) { return n >= mine; });
    };
    while (!complete()) {
      if (poll) {
        lock.unlock();
        auto r = poll();
        lock.lock();
        if (!r && !complete()) return r;
      }
      if (complete()) break;
      if (deadline.passed()) return fail(Errc::timed_out, "not every rank came", "barrier");
      const auto look_again = Deadline(std::chrono::milliseconds(poll ? 1 : 1000));
      meeting_->changed.wait_until(lock, std::min(look_again, deadline).at());
    }
    return {};
  }

  Result<void> finalize(bool, Deadline) override {
    open_ = false;
    return {};
  }

  void on_mpi_finalize(std::function<void()>) override {}

 private:
  [[nodiscard]] Result<void> usable(const char* operation) const {
    if (auto r = fork_guard_.check(operation); !r) return r;
    if (!open_) return fail(Errc::closed, "after finalize", operation);
    if (given_up_) return fail(Errc::closed, "an earlier exchange was given up", operation);
    return {};
  }

  std::shared_ptr<Meeting> meeting_;
  const int rank_;
  const ForkGuard fork_guard_;
  std::uint64_t exchanges_ = 0;
  bool open_ = true;
  bool given_up_ = false;
};

}  // namespace
}  // namespace bootstrap

std::vector<std::unique_ptr<Bootstrap>> local_bootstraps(int size) {
  auto meeting = std::make_shared<bootstrap::Meeting>(size);
  std::vector<std::unique_ptr<Bootstrap>> ranks;
  ranks.reserve(static_cast<std::size_t>(std::max(size, 0)));
  for (int r = 0; r < size; ++r) ranks.push_back(std::make_unique<bootstrap::LocalBootstrap>(meeting, r));
  return ranks;
}

}  // namespace dtr::inline v0
