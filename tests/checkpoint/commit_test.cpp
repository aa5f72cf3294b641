// How saves end: together, in order, within their time, and without a trace where they fail.
#include <atomic>
#include <future>
#include <mutex>

#include "checkpoint/checkpoint_support.hpp"

namespace dtr {
namespace {

using testing::numbers;
using testing::patience;
using testing::save_alone;

/// Lets the first `calls` allgathers through; then the peer is dead.
class DyingGroup final : public Group {
 public:
  DyingGroup(Group& group, int calls) : group_(group), left_(calls) {}
  [[nodiscard]] int rank() const noexcept override { return group_.rank(); }
  [[nodiscard]] int size() const noexcept override { return group_.size(); }
  [[nodiscard]] Result<std::vector<Bytes>> allgather(std::string_view topic, std::span<const std::byte> mine,
                                                     Deadline deadline) override {
    if (left_-- > 0) return group_.allgather(topic, mine, deadline);
    return fail(Errc::peer_failed, "the process ended", "allgather", 1 - group_.rank());
  }

 private:
  Group& group_;
  std::atomic<int> left_;
};

TEST(CommitTest, APeerThatDiesBeforeTheCommitFailsTheSave) {
  for (const int rounds : {0, 1}) {
    const testing::TemporaryFolder store;
    ASSERT_TRUE(save_alone(store.path(), 1));
    testing::as_ranks(2, [&](Group& whole) {
      DyingGroup group(whole, rounds);
      CheckpointManager manager(group, {.path = store.path().string(), .writers = 1});
      const auto values = numbers(100, 2);
      const auto saved = manager.save(2, {TensorView::of("w" + std::to_string(group.rank()), values)}, patience());
      ASSERT_FALSE(saved);
      EXPECT_EQ(saved.error().code, Errc::peer_failed);
      EXPECT_EQ(saved.error().peer, 1 - group.rank());
    });
    SoloGroup solo;
    CheckpointManager manager(solo, {.path = store.path().string()});
    EXPECT_EQ(manager.load_latest(patience())->step(), 1U) << rounds;
  }
}

TEST(CommitTest, APeerThatDiesAfterTheCommitDoesNotUndoIt) {
  const testing::TemporaryFolder store;
  testing::as_ranks(2, [&](Group& whole) {
    DyingGroup group(whole, 2);
    CheckpointManager manager(group, {.path = store.path().string(), .writers = 1});
    const auto values = numbers(100, 2);
    const auto saved = manager.save(2, {TensorView::of("w" + std::to_string(group.rank()), values)}, patience());
    if (group.rank() == 0) {
      EXPECT_TRUE(saved);
    } else {
      ASSERT_FALSE(saved);
      EXPECT_NE(saved.error().message.find("whether step 2 was committed is not known"), std::string::npos);
    }
  });
  SoloGroup solo;
  CheckpointManager manager(solo, {.path = store.path().string()});
  EXPECT_EQ(manager.load_latest(patience())->step(), 2U);
}

TEST(CommitTest, ARankThatComesTooLateFailsTheSaveOnAllRanksAndTheNextIsLevel) {
  const testing::TemporaryFolder store;
  auto groups = testing::ThreadGroup::make(2);
  const auto values = numbers(100, 2);
  CheckpointManager second(*groups[1], {.path = store.path().string(), .writers = 1, .save_timeout = patience()});
  {
    CheckpointManager first(
        *groups[0],
        {.path = store.path().string(), .writers = 1, .save_timeout = testing::scaled(std::chrono::seconds(2))});
    const auto alone = first.save(1, {TensorView::of("a", values)}, patience());
    ASSERT_FALSE(alone);
    EXPECT_EQ(alone.error().code, Errc::timed_out);
    EXPECT_NE(alone.error().message.find("rank 1"), std::string::npos) << alone.error().message;
    const auto late = second.save(1, {TensorView::of("b", values)}, patience());
    ASSERT_FALSE(late);
    EXPECT_EQ(late.error().code, Errc::timed_out);
    // Both together. The late rank made its folder again: garbage by name, and gone with the next save.
    const auto ticket = second.save_async(2, {TensorView::of("b", values)});
    const auto together = first.save(2, {TensorView::of("a", values)}, patience());
    EXPECT_TRUE(together) << together.error().to_string();
    EXPECT_TRUE(ticket->wait(patience()));
    EXPECT_EQ(first.steps().value(), std::vector<std::uint64_t>{2});
  }
  EXPECT_TRUE(testing::leftovers(store.path()).empty());
}

TEST(CommitTest, AStepThatExistsIsNotWrittenAgain) {
  const testing::TemporaryFolder store;
  ASSERT_TRUE(save_alone(store.path(), 1, 100));
  const auto before = testing::read_all(testing::step_folder(store.path(), 1) / "manifest.json");
  testing::as_ranks(2, [&](Group& group) {
    CheckpointManager manager(group, {.path = store.path().string(), .writers = 1});
    const auto values = numbers(100, 2);
    const auto saved = manager.save(1, {TensorView::of("w" + std::to_string(group.rank()), values)}, patience());
    ASSERT_FALSE(saved);
    EXPECT_EQ(saved.error().code, Errc::already_exists);
  });
  EXPECT_EQ(testing::read_all(testing::step_folder(store.path(), 1) / "manifest.json"), before);
}

/// Holds the save of step 1 at its beginning.
class Held {
 public:
  [[nodiscard]] CheckpointOptions options(const testing::TemporaryFolder& store, std::uint64_t staging_bytes) const {
    return {.path = store.path().string(),
            .staging_bytes = staging_bytes,
            .writers = 1,
            .staging_timeout = std::chrono::milliseconds(30),
            .progress = [released = released_](const SaveProgress& progress) {
              if (progress.step == 1 && progress.stage == "begin") released.wait();
            }};
  }
  void release() { promise_.set_value(); }

 private:
  std::promise<void> promise_;
  std::shared_future<void> released_ = promise_.get_future().share();
};

TEST(CommitTest, ASaveThatFindsNoStagingMemoryInTimeIsBusyAndTheFirstIsUnharmed) {
  const testing::TemporaryFolder store;
  SoloGroup solo;
  Held held;
  CheckpointManager manager(solo, held.options(store, 0));
  const auto values = numbers(1'000'000, 1);
  const auto first = manager.save_async(1, {TensorView::of("w", values)});
  ASSERT_TRUE(first);
  const auto second = manager.save_async(2, {TensorView::of("w", values)});
  EXPECT_FALSE(first->done());
  EXPECT_EQ(first->wait(std::chrono::milliseconds(1)).error().code, Errc::timed_out);
  held.release();
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, Errc::busy);
  EXPECT_TRUE(first->wait(patience()));
  EXPECT_TRUE(manager.save(3, {TensorView::of("w", values)}, patience()));
}

TEST(CommitTest, TwoSavesAreInFlightWhereTheStagingMemoryHasRoomForBoth) {
  const testing::TemporaryFolder store;
  SoloGroup solo;
  Held held;
  CheckpointManager manager(solo, held.options(store, 8 << 20));
  const auto values = numbers(1'000'000, 1);
  const auto first = manager.save_async(1, {TensorView::of("w", values)});
  const auto second = manager.save_async(2, {TensorView::of("w", values)});
  const auto third = manager.save_async(3, {TensorView::of("w", values)});
  held.release();
  ASSERT_TRUE(first && second);
  EXPECT_EQ(third.error().code, Errc::busy);
  EXPECT_TRUE(first->wait(patience()));
  EXPECT_TRUE(second->wait(patience()));
}

TEST(CommitTest, ASaveLargerThanTheStagingMemorySaysWhatToRaise) {
  const testing::TemporaryFolder store;
  SoloGroup solo;
  CheckpointManager manager(solo, {.path = store.path().string(), .staging_bytes = 1 << 20});
  const auto values = numbers(1'000'000, 1);
  const auto saved = manager.save_async(1, {TensorView::of("w", values)});
  ASSERT_FALSE(saved);
  EXPECT_EQ(saved.error().code, Errc::resource_exhausted);
  EXPECT_NE(saved.error().message.find("staging_bytes"), std::string::npos);
}

TEST(CommitTest, ClosingCancelsWhatHasNotBegunWhenItsTimeIsOver) {
  const testing::TemporaryFolder store;
  SoloGroup solo;
  std::vector<Ticket> tickets;
  {
    CheckpointManager manager(solo, {.path = store.path().string(),
                                     .staging_bytes = 8 << 20,
                                     .writers = 1,
                                     .close_timeout = std::chrono::milliseconds(20),
                                     .progress = [](const SaveProgress& progress) {
                                       if (progress.stage == "begin")
                                         std::this_thread::sleep_for(std::chrono::seconds(1));
                                     }});
    const auto values = numbers(1000, 1);
    for (std::uint64_t step = 1; step < 4; ++step) {
      tickets.push_back(manager.save_async(step, {TensorView::of("w", values)}).value());
    }
  }
  for (const auto& ticket : tickets) EXPECT_TRUE(ticket.done());
  EXPECT_EQ(tickets[2].wait(std::chrono::milliseconds(0)).error().code, Errc::cancelled);
  EXPECT_TRUE(testing::leftovers(store.path()).empty());
}

TEST(CommitTest, ASecondJobAtTheSamePathIsBusyAndDisturbsNothing) {
  const testing::TemporaryFolder store;
  SoloGroup solo;
  CheckpointManager first(solo, {.path = store.path().string(), .writers = 1});
  const auto values = numbers(1000, 1);
  ASSERT_TRUE(first.save(1, {TensorView::of("w", values)}, patience()));
  {
    CheckpointManager second(
        solo, {.path = store.path().string(), .writers = 1, .save_timeout = std::chrono::milliseconds(50)});
    EXPECT_EQ(second.save(2, {TensorView::of("w", values)}, patience()).error().code, Errc::busy);
    EXPECT_EQ(second.load_latest(patience())->step(), 1U) << "reading needs no lock";
  }
  ASSERT_TRUE(first.save(2, {TensorView::of("w", values)}, patience()));
}

TEST(CommitTest, WhatDeadRunsLeftIsRemovedByTheFirstSaveAndNotByALoad) {
  const testing::TemporaryFolder store;
  const auto temporary = store / checkpoint::temporary_name(5, "0123456789abcdef-1");
  const auto trash = store / checkpoint::trash_name(4, "0123456789abcdef-2");
  for (const auto& folder : {temporary, trash}) {
    std::filesystem::create_directory(folder);
    testing::write_all(folder / "rank_00000.h5", "half");
  }
  SoloGroup solo;
  CheckpointManager manager(solo, {.path = store.path().string(), .writers = 1});
  EXPECT_EQ(manager.load_latest(patience()).error().code, Errc::not_found);
  EXPECT_TRUE(std::filesystem::exists(temporary));
  ASSERT_TRUE(manager.save(6, {TensorView::of("w", numbers(10, 1))}, patience()));
  EXPECT_TRUE(testing::leftovers(store.path()).empty());
}

TEST(CommitTest, AProgressCallbackThatThrowsHarmsNothing) {
  const testing::TemporaryFolder store;
  SoloGroup solo;
  CheckpointManager manager(
      solo, {.path = store.path().string(), .progress = [](const SaveProgress&) { throw std::runtime_error("mine"); }});
  EXPECT_TRUE(manager.save(1, {TensorView::of("w", numbers(10, 1))}, patience()));
}

TEST(CommitTest, ProgressGoesThroughTheStagesInOrderUpToAllBytes) {
  const testing::TemporaryFolder store;
  SoloGroup solo;
  std::mutex mutex;
  std::vector<std::string> stages;
  std::uint64_t most = 0;
  const auto note = [&](const SaveProgress& progress) {
    const std::lock_guard lock(mutex);
    if (stages.empty() || stages.back() != progress.stage) stages.emplace_back(progress.stage);
    most = std::max(most, progress.bytes_written);
    EXPECT_EQ(progress.bytes_total, 12'000'000U);
  };
  {
    CheckpointManager manager(solo, {.path = store.path().string(), .progress = note});
    ASSERT_TRUE(manager.save(1, {TensorView::of("w", numbers(3'000'000, 1))}, patience()));
  }
  EXPECT_EQ(stages, (std::vector<std::string>{"begin", "write", "ready", "manifest", "commit", "retire", "done"}));
  EXPECT_EQ(most, 12'000'000U);
}

TEST(RetentionTest, TheNewestStepsStayAndOlderOnesGo) {
  const testing::TemporaryFolder store;
  testing::as_ranks(2, [&](Group& group) {
    CheckpointManager manager(group, {.path = store.path().string(), .keep_last_n = 3, .writers = 1});
    const std::string name = "w" + std::to_string(group.rank());
    for (const std::uint64_t step : {10, 20, 30, 40, 50}) {
      ASSERT_TRUE(manager.save(step, {TensorView::of(name, numbers(100, step))}, patience()));
    }
    EXPECT_EQ(manager.latest().value(), 50U);
    EXPECT_EQ(manager.steps().value(), (std::vector<std::uint64_t>{30, 40, 50}));
  });
  EXPECT_TRUE(testing::leftovers(store.path()).empty());
}

TEST(RetentionTest, BrokenStepsDoNotCountAndGoWhenTheyAreOld) {
  const testing::TemporaryFolder store;
  for (const std::uint64_t step : {10, 20, 30, 40}) ASSERT_TRUE(save_alone(store.path(), step));
  std::filesystem::remove(testing::step_folder(store.path(), 20) / "manifest.json");
  std::filesystem::remove(testing::step_folder(store.path(), 40) / "rank_00000.h5");
  ASSERT_TRUE(save_alone(store.path(), 50, 100, 2));
  EXPECT_FALSE(std::filesystem::exists(testing::step_folder(store.path(), 10)));
  EXPECT_FALSE(std::filesystem::exists(testing::step_folder(store.path(), 20)));
  EXPECT_TRUE(std::filesystem::exists(testing::step_folder(store.path(), 30)));
  EXPECT_TRUE(std::filesystem::exists(testing::step_folder(store.path(), 40))) << "newer than one that is kept";
  SoloGroup solo;
  CheckpointManager manager(solo, {.path = store.path().string()});
  EXPECT_EQ(manager.steps().value(), (std::vector<std::uint64_t>{30, 50}));
}

TEST(RetentionTest, TheStepJustSavedStaysEvenBelowNewerOnes) {
  const testing::TemporaryFolder store;
  for (const std::uint64_t step : {100, 200, 300}) ASSERT_TRUE(save_alone(store.path(), step));
  ASSERT_TRUE(save_alone(store.path(), 50, 100, 2));
  SoloGroup solo;
  CheckpointManager manager(solo, {.path = store.path().string()});
  EXPECT_EQ(manager.steps().value(), (std::vector<std::uint64_t>{50, 200, 300}));
}

TEST(RetentionTest, ZeroKeepsAll) {
  const testing::TemporaryFolder store;
  for (std::uint64_t step = 0; step < 8; ++step) ASSERT_TRUE(save_alone(store.path(), step, 10, 0));
  SoloGroup solo;
  CheckpointManager manager(solo, {.path = store.path().string()});
  EXPECT_EQ(manager.steps().value().size(), 8U);
}

}  // namespace
}  // namespace dtr
