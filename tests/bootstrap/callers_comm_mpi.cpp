// The application starts and ends MPI; libdtr gets a communicator of it.
#include <chrono>
#include <thread>

#include <gtest/gtest.h>

#include "dtr/bootstrap/mpi.hpp"
#include "support/test_support.hpp"

namespace dtr {
namespace {

using namespace std::chrono_literals;
using testing::scaled;

// The cases of this program run in the order in which they stand here: MPI's life is a one-way street.

TEST(CallersMpiTest, ACommunicatorOfAnMpiThatDoesNotRunIsAnError) {
  const auto refused = mpi_bootstrap(MPI_COMM_WORLD);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().to_string(), "bootstrap: invalid_argument: MPI is not initialised");
}

TEST(CallersMpiTest, TheRanksAreThoseOfTheGivenCommunicator) {
  int level = 0;
  ASSERT_EQ(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &level), MPI_SUCCESS);
  int rank = 0;
  int size = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  MPI_Comm backwards = MPI_COMM_NULL;
  ASSERT_EQ(MPI_Comm_split(MPI_COMM_WORLD, 0, -rank, &backwards), MPI_SUCCESS);
  auto made = mpi_bootstrap(backwards);
  ASSERT_TRUE(made) << made.error().to_string();
  EXPECT_EQ((*made)->rank(), size - 1 - rank);
  // Duplicated: the caller may free its own.
  ASSERT_EQ(MPI_Comm_free(&backwards), MPI_SUCCESS);
  EXPECT_TRUE((*made)->barrier(scaled(30s)));
  EXPECT_TRUE((*made)->finalize(true));
  int ended = 1;
  MPI_Finalized(&ended);
  EXPECT_EQ(ended, 0) << "MPI is the application's";
}

TEST(CallersMpiTest, NullIsAnError) { EXPECT_EQ(mpi_bootstrap(MPI_COMM_NULL).error().code, Errc::invalid_argument); }

TEST(CallersMpiTest, BelowSerializedOnlyTheMainThreadMayWaitInABarrier) {
  auto made = mpi_bootstrap(MPI_COMM_WORLD);
  ASSERT_TRUE(made) << made.error().to_string();
  int level = 0;
  MPI_Query_thread(&level);
  ASSERT_LT(level, MPI_THREAD_SERIALIZED) << "this MPI grants more than was asked for; the case proves nothing";
  Result<void> elsewhere;
  Result<std::unique_ptr<Bootstrap>> another;
  std::thread([&] {
    elsewhere = (*made)->barrier(1s);
    another = world_bootstrap();
  }).join();
  ASSERT_FALSE(elsewhere);
  EXPECT_EQ(elsewhere.error().to_string(),
            "barrier: unsupported: MPI runs below MPI_THREAD_SERIALIZED: call on its main thread");
  ASSERT_FALSE(another);
  EXPECT_EQ(another.error().code, Errc::unsupported);
  EXPECT_TRUE((*made)->barrier(scaled(30s)));
  EXPECT_TRUE((*made)->finalize(true));
}

TEST(CallersMpiTest, AnOpenBarrierIsReportedByFinalizeAndHarmsNothing) {
  auto made = mpi_bootstrap(MPI_COMM_WORLD);
  ASSERT_TRUE(made);
  if ((*made)->rank() == 0) {
    EXPECT_EQ((*made)->barrier(20ms).error().code, Errc::timed_out);
    const auto open = (*made)->finalize(true);
    ASSERT_FALSE(open);
    EXPECT_EQ(open.error().code, Errc::busy);
  } else {
    EXPECT_TRUE((*made)->finalize(true));
  }
  MPI_Barrier(MPI_COMM_WORLD);
}

TEST(CallersMpiTest, MpiFinalizeBeforeOursRunsTheCallbackAndLeavesAClosedBootstrap) {
  auto made = mpi_bootstrap(MPI_COMM_WORLD);
  auto silent = mpi_bootstrap(MPI_COMM_WORLD);
  auto forgotten = mpi_bootstrap(MPI_COMM_WORLD);
  ASSERT_TRUE(made && silent && forgotten);
  Bootstrap& bootstrap = **made;
  int runs = 0;
  Result<void> barrier_inside = fail(Errc::internal, "did not run");
  Result<void> finalize_inside = fail(Errc::internal, "did not run");
  bootstrap.on_mpi_finalize([&] { FAIL() << "replaced by the next"; });
  bootstrap.on_mpi_finalize([&] {
    ++runs;
    barrier_inside = bootstrap.barrier(scaled(30s));
    finalize_inside = bootstrap.finalize(true);
  });
  (*forgotten)->on_mpi_finalize([&] { FAIL() << "its Bootstrap is gone"; });
  forgotten->reset();

  ASSERT_EQ(MPI_Finalize(), MPI_SUCCESS);
  EXPECT_EQ(runs, 1);
  EXPECT_TRUE(barrier_inside) << barrier_inside.error().to_string();
  EXPECT_TRUE(finalize_inside) << finalize_inside.error().to_string();
  EXPECT_EQ(bootstrap.barrier(1s).error().code, Errc::closed);
  EXPECT_EQ((*silent)->barrier(1s).error().to_string(), "barrier: closed: MPI has ended in this process");
  EXPECT_EQ(mpi_bootstrap(MPI_COMM_WORLD).error().code, Errc::unsupported);
}

}  // namespace
}  // namespace dtr
