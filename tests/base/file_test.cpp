#include "dtr/base/file.hpp"

#include <filesystem>

#include <gtest/gtest.h>

#include "support/test_support.hpp"

namespace dtr {
namespace {

TEST(FileTest, WhatWasReplacedIsReadBackAndNothingElseIsLeft) {
  const testing::TemporaryFolder folder;
  const std::string path = folder / "f";
  const std::string bytes = std::string(200'000, 'x') + '\0' + "end";
  ASSERT_TRUE(replace_file(path, "old"));
  ASSERT_TRUE(replace_file(path, bytes));
  EXPECT_EQ(read_file(path).value(), bytes);
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder.path()), {}), 1);
}

TEST(FileTest, ErrorsNameThePath) {
  const testing::TemporaryFolder folder;
  const std::string path = folder / "no/f";
  EXPECT_EQ(read_file(path).error().to_string(), "read_file: not_found: open " + path + ": No such file or directory");
  EXPECT_EQ(read_file(folder.path()).error().code, Errc::io_error);
  const auto failed = replace_file(path, "x");
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error().code, Errc::not_found);
  EXPECT_EQ(failed.error().message.rfind("create " + path + ".tmp.", 0), 0U) << failed.error().message;
}

TEST(FileTest, AFailedReplaceLeavesNoTemporaryBehind) {
  const testing::TemporaryFolder folder;
  std::filesystem::create_directory(folder / "f");
  const auto failed = replace_file(folder / "f", "x");  // a folder is in the way of the rename
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error().message, "rename to " + (folder / "f").string() + ": Is a directory");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder.path()), {}), 1);
}

TEST(RankPathTest, ReplacesThePlaceOrGoesBeforeTheExtension) {
  EXPECT_EQ(rank_path("/m/{rank}/x-{rank}.prom", 12), "/m/12/x-12.prom");
  EXPECT_EQ(rank_path("/m/run.prom", 3), "/m/run.3.prom");
  EXPECT_EQ(rank_path("/m.d/run", 3), "/m.d/run.3");
  EXPECT_EQ(rank_path(".hidden", 3), ".hidden.3");
  EXPECT_EQ(rank_path("run", -1), "run");
}

}  // namespace
}  // namespace dtr
