#include "dtr/bootstrap/host.hpp"

#include <algorithm>
#include <map>
#include <thread>

#include <gtest/gtest.h>
#include <sched.h>

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

TEST(HostTest, ARankThatSharesItsCpusWithNobodyHasThemForItself) {
  const std::vector<CpuSet> pinned = {{0b01}, {0b10}, {0b1100}, {0, 1}};
  EXPECT_EQ(ranks_per_cpu(pinned, 0), 1);
  EXPECT_EQ(ranks_per_cpu(pinned, 1), 1);
  EXPECT_EQ(ranks_per_cpu(pinned, 2), 0.5);
  EXPECT_EQ(ranks_per_cpu(pinned, 3), 1);
}

TEST(HostTest, RanksThatMayRunAnywhereAreSpreadOverAllCpus) {
  EXPECT_EQ(ranks_per_cpu(std::vector<CpuSet>(8, CpuSet{0b11}), 5), 4);
  EXPECT_EQ(ranks_per_cpu(std::vector<CpuSet>(2, CpuSet{0b1111}), 0), 0.5);
  const std::vector<CpuSet> mixed = {{0b01}, {0b11}, {0b11}};
  EXPECT_EQ(ranks_per_cpu(mixed, 0), 2);
  EXPECT_EQ(ranks_per_cpu(mixed, 1), 1.5);
}

TEST(HostTest, WhatTheKernelDoesNotSayIsTakenForAllCpus) {
  const double all = std::max(1U, std::thread::hardware_concurrency());
  EXPECT_EQ(ranks_per_cpu(std::vector<CpuSet>(2), 0), 2 / all);
}

TEST(HostTest, AllowedCpusAreThoseOfThisThread) {
  cpu_set_t before;
  ASSERT_EQ(::sched_getaffinity(0, sizeof before, &before), 0);
  int first = 0;
  while (CPU_ISSET(first, &before) == 0) ++first;
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(first, &one);
  ASSERT_EQ(::sched_setaffinity(0, sizeof one, &one), 0);
  const CpuSet pinned = allowed_cpus();
  ::sched_setaffinity(0, sizeof before, &before);
  CpuSet expected(static_cast<std::size_t>(first) / 64 + 1);
  expected.back() = std::uint64_t{1} << (first % 64);
  EXPECT_EQ(pinned, expected);
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
                                     {"PMIX_RANK", "3"},
                                     {"SLURM_PROCID", "1"},
                                     {"SLURM_LOCALID", "0"},
                                     {"SLURM_STEP_NUM_TASKS", "2"}});
  EXPECT_EQ(hint.launcher, "mpirun");
  EXPECT_EQ(hint.rank, 3);
  EXPECT_EQ(hint.size, 4);
  EXPECT_EQ(hint.local_rank, 1);
}

TEST(LauncherTest, SrunIsReadFromPmixAndTheStep) {
  const LaunchHint hint =
      hint_from({{"PMIX_RANK", "5"}, {"SLURM_STEP_NUM_TASKS", "8"}, {"SLURM_LOCALID", "1"}, {"SLURM_NTASKS", "99"}});
  EXPECT_EQ(hint.launcher, "srun");
  EXPECT_EQ(hint.rank, 5);
  EXPECT_EQ(hint.size, 8);
  EXPECT_EQ(hint.local_rank, 1);
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
