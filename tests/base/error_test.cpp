#include "dtr/base/error.hpp"

#include <cerrno>

#include <gtest/gtest.h>

namespace dtr {
namespace {

TEST(ErrorTest, NamesOperationPeerPathAndCause) {
  const Error error{
      .code = Errc::peer_failed, .message = "the process ended", .operation = "push_pull", .peer = 3, .path = "shm"};
  EXPECT_EQ(error.to_string(), "push_pull to rank 3 (shm): peer_failed: the process ended");
}

TEST(ErrorTest, LeavesOutWhatDoesNotApply) {
  EXPECT_EQ((Error{.code = Errc::not_found, .message = "step 7"}).to_string(), "not_found: step 7");
  EXPECT_EQ((Error{.code = Errc::timed_out, .operation = "barrier"}).to_string(), "barrier: timed_out");
}

TEST(ErrorTest, CodesHaveFixedNegativeValuesAndNames) {
  EXPECT_EQ(static_cast<int>(Errc::peer_failed), -14);
  EXPECT_EQ(static_cast<int>(Errc::stale_handle), -32);
  for (int value = 0; value >= -32; --value) EXPECT_NE(to_string(static_cast<Errc>(value)), "unknown") << value;
}

TEST(ErrorTest, ErrnoBecomesTheFittingCodeInWords) {
  const Error full = errno_error(ENOSPC, "write /x", "save");
  EXPECT_EQ(full.code, Errc::no_space);
  EXPECT_EQ(full.message, "write /x: No space left on device");
  EXPECT_EQ(errno_error(ENOENT, "open").code, Errc::not_found);
  EXPECT_EQ(errno_error(EIO, "read").code, Errc::io_error);
}

TEST(ErrorTest, ValueOrThrowCarriesTheSameError) {
  EXPECT_EQ(value_or_throw(Result<int>(7)), 7);
  try {
    value_or_throw(Result<int>(fail(Errc::busy, "in use")));
    FAIL() << "no exception";
  } catch (const Exception& e) {
    EXPECT_EQ(e.error().code, Errc::busy);
    EXPECT_STREQ(e.what(), "busy: in use");
  }
}

}  // namespace
}  // namespace dtr
