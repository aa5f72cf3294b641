#include "dtr/base/log.hpp"

#include <fstream>
#include <regex>
#include <thread>
#include <vector>

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include "support/test_support.hpp"

namespace dtr {
namespace {

std::vector<std::string> lines_of(const std::filesystem::path& path) {
  std::ifstream file(path);
  std::vector<std::string> lines;
  for (std::string line; std::getline(file, line);) lines.push_back(line);
  return lines;
}

/// Puts the log back as it was, whatever a test did to it.
class LogTest : public ::testing::Test {
 protected:
  void TearDown() override { ASSERT_TRUE(configure_log(LogOptions{})); }

  testing::TemporaryFolder folder_;
};

TEST_F(LogTest, WarnIsTheDefaultLevel) {
  EXPECT_FALSE(log_enabled(LogLevel::info));
  EXPECT_TRUE(log_enabled(LogLevel::warn));
  EXPECT_TRUE(log_enabled(LogLevel::error));
}

TEST_F(LogTest, ALineHasUtcTimeLevelRankTextAndPlace) {
  const auto path = folder_ / "log";
  ASSERT_TRUE(configure_log({.level = LogLevel::info, .file = path, .to_stderr = false, .rank = 3}));
  DTR_LOG_INFO("peer ", 7, " by ", std::string("shm"), ", ", 1.5);
  set_log_rank(-1);
  DTR_LOG_ERROR("lone text");
  const auto lines = lines_of(path);
  ASSERT_EQ(lines.size(), 2U);
  const std::string time = R"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00 )";
  EXPECT_TRUE(
      std::regex_match(lines[0], std::regex(time + R"(info rank 3: peer 7 by shm, 1\.5 \[log_test\.cpp:\d+\])")))
      << lines[0];
  EXPECT_TRUE(std::regex_match(lines[1], std::regex(time + R"(error rank -: lone text \[log_test\.cpp:\d+\])")))
      << lines[1];
}

TEST_F(LogTest, BelowTheLevelNotEvenTheTextIsBuilt) {
  const auto path = folder_ / "log";
  ASSERT_TRUE(configure_log({.level = LogLevel::error, .file = path, .to_stderr = false}));
  int built = 0;
  const auto part = [&] { return ++built; };
  DTR_LOG_WARN("count ", part());
  EXPECT_EQ(built, 0);
  set_log_level(LogLevel::off);
  DTR_LOG_ERROR("count ", part());
  EXPECT_EQ(built, 0);
  set_log_level(LogLevel::trace);
  DTR_LOG_TRACE("count ", part());
  EXPECT_EQ(built, 1);
  EXPECT_EQ(lines_of(path).size(), 1U);
}

TEST_F(LogTest, TextFromOutsideCannotFakeALine) {
  const auto path = folder_ / "log";
  ASSERT_TRUE(configure_log({.file = path, .to_stderr = false}));
  DTR_LOG_WARN(std::string("a\nb\r\tc\x1b[31m\x7f"));
  const auto lines = lines_of(path);
  ASSERT_EQ(lines.size(), 1U);
  EXPECT_NE(lines[0].find(R"(a\nb\x0d\tc\x1b[31m\x7f [)"), std::string::npos) << lines[0];
}

TEST_F(LogTest, BracesArePlainText) {
  const auto path = folder_ / "log";
  ASSERT_TRUE(configure_log({.file = path, .to_stderr = false}));
  DTR_LOG_WARN("{} {0} %v %n");
  EXPECT_NE(lines_of(path).at(0).find("{} {0} %v %n"), std::string::npos);
}

TEST_F(LogTest, EachRankMayHaveItsOwnFile) {
  ASSERT_TRUE(configure_log({.file = folder_ / "log.{rank}", .to_stderr = false, .rank = 2}));
  DTR_LOG_WARN("here");
  EXPECT_EQ(lines_of(folder_ / "log.2").size(), 1U);
}

TEST_F(LogTest, AFileThatCannotBeOpenedIsNamedAndTheOldLogStays) {
  const auto path = folder_ / "log";
  ASSERT_TRUE(configure_log({.level = LogLevel::warn, .file = path, .to_stderr = false}));
  const auto missing = (folder_ / "no" / "log").string();
  const auto failed = configure_log({.level = LogLevel::trace, .file = missing, .to_stderr = false});
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error().to_string(),
            "configure_log: not_found: log file " + missing + ": No such file or directory");
  EXPECT_FALSE(log_enabled(LogLevel::info));
  DTR_LOG_WARN("still here");
  EXPECT_EQ(lines_of(path).size(), 1U);
}

TEST_F(LogTest, TheFileIsClosedOnExecAndOnReconfiguration) {
  const auto before = testing::open_descriptors();
  ASSERT_TRUE(configure_log({.file = folder_ / "log", .to_stderr = false}));
  bool found = false;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code ignored;
    if (std::filesystem::read_symlink(entry.path(), ignored) != folder_ / "log") continue;
    found = true;
    EXPECT_EQ(::fcntl(std::stoi(entry.path().filename()), F_GETFD), FD_CLOEXEC);
  }
  EXPECT_TRUE(found);
  ASSERT_TRUE(configure_log(LogOptions{}));
  EXPECT_EQ(testing::open_descriptors(), before);
}

TEST_F(LogTest, ManyThreadsWriteWholeLinesWhileTheLogIsReconfigured) {
  constexpr int kThreads = 4;
  constexpr int kLines = 250;
  const auto path = folder_ / "log";
  const LogOptions options{.file = path, .to_stderr = false};
  ASSERT_TRUE(configure_log(options));
  {
    std::vector<std::jthread> threads;
    threads.reserve(kThreads);
    for (int t = 0; t < kThreads; ++t) {
      threads.emplace_back([t] {
        for (int i = 0; i < kLines; ++i) DTR_LOG_WARN("thread ", t, " line ", i, " end");
      });
    }
    for (int i = 0; i < 20; ++i) {
      ASSERT_TRUE(configure_log(options));
      set_log_rank(i);
      ::usleep(500);
    }
  }
  const auto lines = lines_of(path);
  EXPECT_EQ(lines.size(), static_cast<std::size_t>(kThreads * kLines));
  const std::regex shape(R"(.* warn rank .*: thread \d line \d+ end \[.*\])");
  for (const auto& line : lines) EXPECT_TRUE(std::regex_match(line, shape)) << line;
}

TEST_F(LogTest, AForkedChildMayLogWithoutTheParentsLocks) {
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  ASSERT_TRUE(configure_log(LogOptions{}));  // from here on the parent has a log, also when this case runs alone
  const pid_t child = ::fork();
  if (child == 0) {
    ::alarm(120);
    ::dup2(ends[1], STDERR_FILENO);
    DTR_LOG_WARN("from the child");
    ::_exit(0);
  }
  ::close(ends[1]);
  char text[256] = {};
  EXPECT_GT(::read(ends[0], text, sizeof(text) - 1), 0);
  ::close(ends[0]);
  int status = -1;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(std::string(text).rfind("forked child: warn rank -: from the child [", 0), 0U) << text;
}

TEST(LogLevelTest, NamesGoBothWays) {
  for (int i = 0; i <= static_cast<int>(LogLevel::off); ++i) {
    const auto level = static_cast<LogLevel>(i);
    EXPECT_EQ(parse_log_level(to_string(level)).value(), level);
  }
  EXPECT_EQ(parse_log_level("loud").error().to_string(),
            "parse_log_level: invalid_argument: log level 'loud' is none of trace, debug, info, warn, error, off");
}

}  // namespace
}  // namespace dtr
