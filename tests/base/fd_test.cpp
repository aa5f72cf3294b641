#include "dtr/base/fd.hpp"

#include <cerrno>

#include <fcntl.h>
#include <gtest/gtest.h>

#include "support/test_support.hpp"

namespace dtr {
namespace {

int open_null() { return ::open("/dev/null", O_RDONLY | O_CLOEXEC); }

TEST(UniqueFdTest, ClosesWhatItHoldsExactlyOnce) {
  const auto before = testing::open_descriptors();
  {
    UniqueFd a(open_null());
    ASSERT_TRUE(a);
    UniqueFd b(std::move(a));
    EXPECT_FALSE(a);  // NOLINT(bugprone-use-after-move): the contract under test
    UniqueFd c(open_null());
    c = std::move(b);  // closes the one that c held
    EXPECT_EQ(testing::open_descriptors(), before + 1);
    c.reset(open_null());
    EXPECT_EQ(testing::open_descriptors(), before + 1);
  }
  EXPECT_EQ(testing::open_descriptors(), before);
}

TEST(UniqueFdTest, ReleaseGivesTheDescriptorAway) {
  UniqueFd a(open_null());
  const UniqueFd taken(a.release());
  EXPECT_FALSE(a);
  EXPECT_EQ(::fcntl(taken.get(), F_GETFD), FD_CLOEXEC);
}

TEST(UniqueFdTest, ClosingKeepsErrno) {
  UniqueFd bad(1 << 20);  // close() sets EBADF
  errno = ENOSPC;
  bad.reset();
  EXPECT_EQ(errno, ENOSPC);
}

}  // namespace
}  // namespace dtr
