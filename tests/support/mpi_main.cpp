// main() of test programs that run under mpirun: the GoogleTest cases run on every rank in the same order, and the rank
// leaves its verdict for mpirun-test.sh. It does not touch MPI: that is up to the cases.
#include <fstream>

#include <gtest/gtest.h>

#include "dtr/bootstrap/launcher.hpp"
#include "support/mpi_test.hpp"

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  const auto verdict = dtr::testing::verdict_folder() / ("rank." + std::to_string(dtr::launch_hint().rank));
  const int result = RUN_ALL_TESTS();

  const auto& all = *::testing::UnitTest::GetInstance();
  std::string words = "ok\n";
  if (all.test_to_run_count() == 0) words = "no test ran\n";
  if (result != 0) words = std::to_string(all.failed_test_count()) + " cases failed\n";
  const auto draft = verdict.string() + ".draft";
  std::ofstream(draft) << words;
  std::filesystem::rename(draft, verdict);
  return result;
}
