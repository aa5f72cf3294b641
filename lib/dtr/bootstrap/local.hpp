// Ranks as threads of one process: a Bootstrap without MPI, for several Runtimes in a process and for tests.
#pragma once

#include <memory>
#include <vector>

#include "dtr/bootstrap/bootstrap.hpp"

namespace dtr::inline v0 {

/// One Bootstrap for each of `size` ranks, all of the same job; each may live on its own thread. `size` at least 1.
/// The same contract as over MPI; on_mpi_finalize callbacks never run.
[[nodiscard]] std::vector<std::unique_ptr<Bootstrap>> local_bootstraps(int size);

}  // namespace dtr::inline v0
