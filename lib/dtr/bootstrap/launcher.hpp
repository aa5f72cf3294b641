// What the launcher left in the environment: for names of files that are written before MPI is up.
#pragma once

#include <functional>
#include <string>

namespace dtr::inline v0 {

/// A hint, never the truth: the truth is the Bootstrap.
struct LaunchHint {
  std::string launcher{};  ///< "mpirun", "srun", or "" for a process started alone
  int rank = 0;            ///< in the whole job step
  int size = 1;            ///< of the whole job step
  int local_rank = 0;      ///< on this node
};

/// Reads a variable; nullptr if it is not set.
using ReadEnvironment = std::function<const char*(const char* name)>;

/// Looks at Open MPI's variables first, then at PMIx with Slurm's: inside a job, mpirun's ranks inherit Slurm's
/// variables from its daemons, and those are wrong. A batch script itself is a process started alone.
[[nodiscard]] LaunchHint launch_hint();
[[nodiscard]] LaunchHint launch_hint(const ReadEnvironment& read);

}  // namespace dtr::inline v0
