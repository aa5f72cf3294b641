#include "dtr/bootstrap/host.hpp"

#include <map>

#include <gtest/gtest.h>

#include "dtr/bootstrap/launcher.hpp"

namespace dtr {
namespace {

TEST(HostTest, IdIsStableNamesTheHostAndCanBeOverridden) {
  EXPECT_EQ(host_id(), host_id());
  EXPECT_NE(host_id().find(host_name()), std::string::npos);
  EXPECT_EQ(host_id("east"), "east");
}

TEST(HostTest, PlaceCountsTheRanksOfTheSameHostOnly) {
  const std::vector<std::string> ids = {"b", "a", "b", "a", "a"};
  const HostPlace last = place_on_host(ids, 4);
  EXPECT_EQ(last.local_rank, 2);
  EXPECT_EQ(last.local_size, 3);
  EXPECT_EQ(last.host, 1);
  EXPECT_EQ(last.hosts, 2);
  const HostPlace first = place_on_host(ids, 0);
  EXPECT_EQ(first.local_rank, 0);
  EXPECT_EQ(first.local_size, 2);
  EXPECT_EQ(first.host, 0);
}

LaunchHint hint_from(const std::map<std::string, std::string>& environment) {
  return launch_hint([&](const char* name) -> const char* {
    const auto found = environment.find(name);
    return found == environment.end() ? nullptr : found->second.c_str();
  });
}

TEST(LauncherTest, MpirunInsideASlurmJobIsReadFromOpenMpiNotFromSlurm) {
  const LaunchHint hint = hint_from({{"OMPI_COMM_WORLD_RANK", "3"},
                                     {"OMPI_COMM_WORLD_SIZE", "4"},
                                     {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                                     {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"},
                                     {"PMIX_RANK", "3"},
                                     {"SLURM_PROCID", "1"},
                                     {"SLURM_LOCALID", "0"},
                                     {"SLURM_STEP_NUM_TASKS", "2"}});
  EXPECT_EQ(hint.launcher, "mpirun");
  EXPECT_EQ(hint.rank, 3);
  EXPECT_EQ(hint.size, 4);
  EXPECT_EQ(hint.local_rank, 1);
  EXPECT_EQ(hint.local_size, 2);
}

TEST(LauncherTest, SrunIsReadFromPmixAndTheStep) {
  const LaunchHint hint =
      hint_from({{"PMIX_RANK", "5"}, {"SLURM_STEP_NUM_TASKS", "8"}, {"SLURM_LOCALID", "1"}, {"SLURM_NTASKS", "99"}});
  EXPECT_EQ(hint.launcher, "srun");
  EXPECT_EQ(hint.rank, 5);
  EXPECT_EQ(hint.size, 8);
  EXPECT_EQ(hint.local_rank, 1);
  EXPECT_FALSE(hint.local_size);
}

TEST(LauncherTest, TheBatchScriptItselfIsAProcessStartedAlone) {
  const LaunchHint hint = hint_from({{"SLURM_NTASKS", "4"}, {"SLURM_PROCID", "0"}, {"SLURM_LOCALID", "0"}});
  EXPECT_EQ(hint.launcher, "");
  EXPECT_EQ(hint.size, 1);
}

TEST(LauncherTest, WhatIsNotANumberCountsAsNotSet) {
  const LaunchHint hint = hint_from({{"OMPI_COMM_WORLD_RANK", "x"}, {"OMPI_COMM_WORLD_SIZE", "4"}});
  EXPECT_EQ(hint.launcher, "");
}

}  // namespace
}  // namespace dtr
