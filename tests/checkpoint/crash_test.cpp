// kill -9 at every stage and at any moment: the newest complete step stays loadable, with the right bytes.
#include <atomic>
#include <random>

#include "checkpoint/checkpoint_support.hpp"
#include "checkpoint/child_process.hpp"

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
