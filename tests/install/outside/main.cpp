#include <cstdio>

#include <dtr/base/error.hpp>
#include <dtr/bootstrap/bootstrap.hpp>
#include <dtr/bootstrap/host.hpp>
#include <dtr/bootstrap/mpi.hpp>

int main() {
  auto world = dtr::value_or_throw(dtr::world_bootstrap());
  auto again = dtr::value_or_throw(dtr::mpi_bootstrap(MPI_COMM_SELF));
  std::printf("outside: rank %d of %d on %s\n", world->rank(), world->size(), dtr::host_name().c_str());
  return again->finalize(true) && world->finalize(true) ? 0 : 1;
}
