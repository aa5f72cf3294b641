// Full, read-only and forbidden disks: a clear error, nothing left behind, the previous step untouched.
#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>

#include "checkpoint/checkpoint_support.hpp"
#include "checkpoint/child_process.hpp"

namespace dtr {
namespace {

using testing::numbers;
using testing::patience;

constexpr int kNoMount = 77;

void write_text(const char* path, const std::string& text) {
  const int fd = ::open(path, O_WRONLY | O_CLOEXEC);
  if (fd < 0) return;
  static_cast<void>(::write(fd, text.data(), text.size()));
  ::close(fd);
}

/// A file system of its own at `folder`, seen by this process only and gone with it. Works as root and where users
/// may make namespaces.
bool mount_tmpfs(const std::filesystem::path& folder, const std::string& options) {
  const auto uid = ::getuid();
  const auto gid = ::getgid();
  if (::unshare(CLONE_NEWNS) != 0) {
    if (::unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0) return false;
    write_text("/proc/self/setgroups", "deny");
    write_text("/proc/self/uid_map", "0 " + std::to_string(uid) + " 1");
    write_text("/proc/self/gid_map", "0 " + std::to_string(gid) + " 1");
  }
  return ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 &&
         ::mount("tmpfs", folder.c_str(), "tmpfs", 0, options.c_str()) == 0;
}

/// `body` in a child with a tmpfs at `folder`; false if the machine does not allow that.
bool with_tmpfs(const std::filesystem::path& folder, const std::string& options, const std::function<void()>& body) {
  const auto ending = testing::in_child([&] {
    if (!mount_tmpfs(folder, options)) ::_exit(kNoMount);
    body();
  });
  if (ending.code == kNoMount) return false;
  EXPECT_EQ(ending.code, 0);
  return true;
}

TEST(DiskTest, ADiskThatFillsUpAtAnyPointFailsTheSaveAndKeepsThePreviousStep) {
  const testing::TemporaryFolder store;
  const bool possible = with_tmpfs(store.path(), "size=24m", [&] {
    int failures = 0;
    constexpr std::size_t kCount = 700'000;  // 2.8 MB and 1 MB of alignment: the last rounds fit
    ASSERT_TRUE(testing::save_alone(store.path(), 1, kCount));
    for (std::uintmax_t left = 0; left < 8 << 20; left = left < 256 << 10 ? left + (4 << 10) : left + (512 << 10)) {
      const auto space = std::filesystem::space(store.path());
      testing::write_all(store / "filler", std::string(space.available - left, 'x'));
      const auto saved = testing::save_alone(store.path(), 2, kCount);
      if (saved) {
        std::filesystem::remove_all(testing::step_folder(store.path(), 2));
      } else {
        ++failures;
        EXPECT_EQ(saved.error().code, Errc::no_space) << left << ": " << saved.error().to_string();
      }
      SoloGroup solo;
      CheckpointManager manager(solo, {.path = store.path().string(), .writers = 1});
      const auto loaded = manager.load_latest(patience());
      ASSERT_TRUE(loaded);
      EXPECT_EQ(loaded->step(), 1U);
      EXPECT_EQ(testing::leftovers(store.path()), std::vector<std::string>{"filler"});
      std::filesystem::remove(store / "filler");
    }
    EXPECT_GT(failures, 60);
    ASSERT_TRUE(testing::save_alone(store.path(), 2, kCount));
  });
  if (!possible) GTEST_SKIP() << "this machine lets us mount no tmpfs";
}

TEST(DiskTest, OneRanksFullDiskFailsTheSaveOfAll) {
  const testing::TemporaryFolder store;
  const bool possible = with_tmpfs(store.path(), "size=6m", [&] {
    testing::as_ranks(3, [&](Group& group) {
      CheckpointManager manager(group, {.path = store.path().string(), .writers = 1});
      const auto values = numbers(group.rank() == 2 ? 3'000'000 : 1000, 1);
      const auto saved = manager.save(1, {TensorView::of("w" + std::to_string(group.rank()), values)}, patience());
      ASSERT_FALSE(saved);
      EXPECT_EQ(saved.error().code, Errc::no_space) << saved.error().to_string();
      EXPECT_EQ(saved.error().peer, 2);
      ASSERT_TRUE(manager.save(2, {TensorView::of("w" + std::to_string(group.rank()), numbers(10, 1))}, patience()));
    });
    EXPECT_TRUE(testing::leftovers(store.path()).empty());
  });
  if (!possible) GTEST_SKIP() << "this machine lets us mount no tmpfs";
}

TEST(DiskTest, AReadOnlyFileSystemIsNamed) {
  const testing::TemporaryFolder store;
  const bool possible = with_tmpfs(store.path(), "size=4m", [&] {
    ASSERT_EQ(::mount(nullptr, store.path().c_str(), nullptr, MS_REMOUNT | MS_RDONLY, "size=4m"), 0);
    const auto saved = testing::save_alone(store.path(), 1);
    ASSERT_FALSE(saved);
    EXPECT_EQ(saved.error().code, Errc::io_error);
    EXPECT_NE(saved.error().message.find("Read-only file system"), std::string::npos) << saved.error().message;
  });
  if (!possible) GTEST_SKIP() << "this machine lets us mount no tmpfs";
}

TEST(DiskTest, AFolderWithoutPermissionIsNamed) {
  const testing::TemporaryFolder parent;
  std::filesystem::permissions(parent.path(), std::filesystem::perms::owner_read | std::filesystem::perms::owner_exec |
                                                  std::filesystem::perms::others_exec);
  const auto ending = testing::in_child([&] {
    constexpr uid_t kNobody = 65534;
    if (::getuid() == 0) {
      ASSERT_EQ(::setuid(kNobody), 0);
    }
    const auto saved = testing::save_alone(parent / "store", 1);
    ASSERT_FALSE(saved);
    EXPECT_EQ(saved.error().code, Errc::permission_denied) << saved.error().to_string();
    EXPECT_NE(saved.error().message.find("store"), std::string::npos);
  });
  std::filesystem::permissions(parent.path(), std::filesystem::perms::owner_all);
  EXPECT_EQ(ending.code, 0);
}

TEST(DiskTest, APathBelowAFileIsNamed) {
  const testing::TemporaryFolder parent;
  testing::write_all(parent / "file", "x");
  const auto saved = testing::save_alone(parent / "file", 1);
  ASSERT_FALSE(saved);
  EXPECT_EQ(saved.error().code, Errc::io_error);
  EXPECT_NE(saved.error().message.find("Not a directory"), std::string::npos) << saved.error().message;
  EXPECT_FALSE(testing::save_alone(parent / "file/below", 1));
}

}  // namespace
}  // namespace dtr
