// kill -9 at every stage and at any moment: the newest complete step stays loadable, with the right bytes.
#include <atomic>
#include <random>

#include "checkpoint/checkpoint_support.hpp"
#include "checkpoint/child_process.hpp"
#include "checkpoint/traced_child.hpp"

namespace dtr {
namespace {

using testing::numbers;
using testing::patience;

constexpr std::size_t kCount = 2'500'000;  // 10 MB from each rank: three pieces

/// Each rank saves its half of "w" and a cursor.
Result<void> save_half(CheckpointManager& manager, const Group& group, std::uint64_t step, std::size_t count) {
  const auto rank = static_cast<std::uint64_t>(group.rank());
  const auto whole = numbers(count * 2, step);
  const std::span<const float> mine = std::span(whole).subspan(rank * count, count);
  const std::vector<std::uint64_t> cursor{step * 100 + rank};
  return manager.save(step,
                      {TensorView::of("w", mine, {count * 2}, {{rank * count}, {count}}),
                       TensorView::of("cursor/" + std::to_string(rank), cursor)},
                      patience());
}

/// The newest step, after every byte of it was compared with what was saved.
std::uint64_t checked_newest(const std::filesystem::path& store, std::size_t count) {
  SoloGroup solo;
  CheckpointManager manager(solo, {.path = store.string(), .writers = 1});
  const auto loaded = manager.load_latest(patience());
  EXPECT_TRUE(loaded) << loaded.error().to_string();
  if (!loaded) return 0;
  EXPECT_TRUE(loaded->skipped().empty()) << loaded->skipped().front();
  EXPECT_EQ(loaded->get<float>("w").value(), numbers(count * 2, loaded->step()));
  for (std::uint64_t rank = 0; rank < 2; ++rank) {
    EXPECT_EQ(loaded->get<std::uint64_t>("cursor/" + std::to_string(rank)).value().front(),
              loaded->step() * 100 + rank);
  }
  return loaded->step();
}

TEST(CrashTest, KilledAtEachStageTheNewestCompleteStepIsLoaded) {
  const testing::TemporaryFolder store;
  ASSERT_EQ(testing::in_child([&] {
              testing::as_ranks(2, [&](Group& group) {
                CheckpointManager manager(group, {.path = store.path().string(), .writers = 1});
                ASSERT_TRUE(save_half(manager, group, 1, kCount));
              });
            }).code,
            0);
  std::uint64_t expected = 1;
  int kills = 0;
  for (int fatal = 0;; ++fatal) {
    const std::uint64_t step = expected + 1;
    const auto ending = testing::in_child([&] {
      std::atomic<int> events{0};
      testing::as_ranks(2, [&](Group& group) {
        const auto die = [&](const SaveProgress&) {
          if (events++ == fatal) ::kill(::getpid(), SIGKILL);
        };
        CheckpointManager manager(group,
                                  {.path = store.path().string(), .keep_last_n = 2, .writers = 1, .progress = die});
        ASSERT_TRUE(save_half(manager, group, step, kCount));
      });
    });
    const auto newest = checked_newest(store.path(), kCount);
    if (!ending.killed) {
      ASSERT_EQ(ending.code, 0);
      EXPECT_EQ(newest, step);
      break;
    }
    ++kills;
    ASSERT_TRUE(newest == expected || newest == step) << "event " << fatal;
    expected = newest;
  }
  // Two ranks, each: begin, write, three pieces and a cursor, ready, done; rank 0 also manifest, commit, retire.
  EXPECT_EQ(kills, 2 * 8 + 3);
  EXPECT_GT(expected, 1U) << "no kill came after the commit";
  EXPECT_TRUE(testing::leftovers(store.path()).empty()) << testing::leftovers(store.path()).front();
}

TEST(CrashTest, KilledBeforeEachCallThatChangesTheDiskTheNewestCompleteStepIsLoadedAndTheNextSaveWorks) {
  constexpr std::size_t kSmall = 20'000;
  const testing::TemporaryFolder folder;
  const auto save = [&](const std::filesystem::path& store, std::uint64_t step) {
    testing::as_ranks(2, [&](Group& group) {
      CheckpointManager manager(group, {.path = store.string(), .keep_last_n = 1, .writers = 1});
      const auto saved = save_half(manager, group, step, kSmall);
      ASSERT_TRUE(saved) << saved.error().to_string();
    });
  };
  // Step 1 is intact, step 2 is there but broken, and what a dead run left lies beside them: the save of step 2
  // cleans up, writes, replaces, and retires step 1.
  save(folder / "before", 1);
  std::filesystem::copy(testing::step_folder(folder / "before", 1), testing::step_folder(folder / "before", 2));
  std::filesystem::create_directory(folder / "before" / checkpoint::temporary_name(2, "0123456789abcdef-1"));

  bool replaced = false;
  int fatal = 1;
  for (;; ++fatal) {
    const auto store = folder / "now";
    std::filesystem::remove_all(store);
    std::filesystem::copy(folder / "before", store, std::filesystem::copy_options::recursive);
    const auto traced = testing::killed_before_call(fatal, [&] { save(store, 2); });
    if (!traced.possible) GTEST_SKIP() << "this machine lets us trace no child";

    SoloGroup solo;
    CheckpointManager manager(solo, {.path = store.string(), .writers = 1});
    const auto loaded = manager.load_latest(patience());
    ASSERT_TRUE(loaded) << "before call " << fatal << ": " << loaded.error().to_string();
    ASSERT_TRUE(loaded->step() == 2 || (loaded->step() == 1 && !replaced)) << "before call " << fatal;
    replaced = loaded->step() == 2;
    ASSERT_EQ(loaded->get<float>("w").value(), numbers(kSmall * 2, loaded->step()));
    save(store, 3);
    EXPECT_EQ(checked_newest(store, kSmall), 3U);
    EXPECT_TRUE(testing::leftovers(store).empty());
    if (!traced.ending.killed) {
      EXPECT_EQ(traced.ending.code, 0);
      break;
    }
  }
  EXPECT_TRUE(replaced);
  EXPECT_GT(fatal, 30) << "two files of two tensors, index, manifest, and the folders cannot be fewer calls";
}

TEST(CrashTest, KilledAtRandomMomentsNoConfirmedStepIsLost) {
  constexpr std::size_t kSmall = 30'000;
  const testing::TemporaryFolder store;
  std::mt19937 random(20);
  std::uint64_t confirmed = 0;
  int kills = 0;
  for (int round = 0; round < 25; ++round) {
    int words[2];
    ASSERT_EQ(::pipe(words), 0);
    const pid_t child = testing::start_child([&] {
      testing::as_ranks(2, [&](Group& group) {
        CheckpointManager manager(group, {.path = store.path().string(), .keep_last_n = 2, .writers = 1});
        for (std::uint64_t step = confirmed + 1;; ++step) {
          // A step may be there: committed, and killed before it was confirmed.
          const auto saved = save_half(manager, group, step, kSmall);
          ASSERT_TRUE(saved || saved.error().code == Errc::already_exists) << saved.error().to_string();
          if (group.rank() == 0) {
            ASSERT_EQ(::write(words[1], &step, sizeof(step)), static_cast<ssize_t>(sizeof(step)));
          }
        }
      });
    });
    ::close(words[1]);
    std::uint64_t step = 0;
    ASSERT_EQ(::read(words[0], &step, sizeof(step)), static_cast<ssize_t>(sizeof(step))) << "no step was saved";
    confirmed = step;
    ::usleep(static_cast<useconds_t>(random() % 40'000));
    ::kill(child, SIGKILL);
    kills += testing::wait_for(child).killed ? 1 : 0;
    while (::read(words[0], &step, sizeof(step)) == static_cast<ssize_t>(sizeof(step))) confirmed = step;
    ::close(words[0]);
    ASSERT_GE(checked_newest(store.path(), kSmall), confirmed);
  }
  EXPECT_EQ(kills, 25);
}

}  // namespace
}  // namespace dtr
