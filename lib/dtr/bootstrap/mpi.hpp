// Bootstrap over a communicator of the application. The one public header that needs <mpi.h>.
#pragma once

#include <chrono>
#include <memory>

#include <mpi.h>

#include "dtr/bootstrap/bootstrap.hpp"

namespace dtr::inline v0 {

/// The ranks of `comm`, which is duplicated (collective) and stays the caller's; MPI must be running.
/// Errors: invalid_argument (null or intercommunicator), and those of world_bootstrap.
[[nodiscard]] Result<std::unique_ptr<Bootstrap>> mpi_bootstrap(MPI_Comm comm,
                                                               Deadline deadline = std::chrono::minutes(2));

}  // namespace dtr::inline v0
