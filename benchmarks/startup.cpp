// What it takes to start: MPI_Init and, beyond it, Runtime::init. mpirun -n N bench_startup. Prints a line of JSON:
// times until the last rank is through, the most anonymous memory and threads that Runtime::init has added to a rank.
#include <algorithm>
#include <array>
#include <cstdio>
#include <fstream>
#include <optional>
#include <sstream>
#include <string>

#include <mpi.h>

#include "dtr/runtime/runtime.hpp"
#include "measure.hpp"

namespace {

/// A number of /proc/self/status.
double status_of_process(const std::string& key) {
  std::ifstream file("/proc/self/status");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind(key + ":", 0) == 0) return std::stod(line.substr(key.size() + 1));
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const double begin = bench::now_us();
  MPI_Init(&argc, &argv);
  const double mpi_ready = bench::now_us();
  MPI_Barrier(MPI_COMM_WORLD);
  const double memory = status_of_process("RssAnon");
  const double threads = status_of_process("Threads");
  try {
    MPI_Barrier(MPI_COMM_WORLD);
    const double start = bench::now_us();
    std::optional<dtr::Runtime> rt(std::in_place);
    const double ready = bench::now_us();
    MPI_Barrier(MPI_COMM_WORLD);
    const double more_memory = status_of_process("RssAnon") - memory;
    const double more_threads = status_of_process("Threads") - threads;
    MPI_Barrier(MPI_COMM_WORLD);
    const double before_end = bench::now_us();
    dtr::value_or_throw(rt->finalize());
    rt.reset();
    const std::array<double, 5> mine{(mpi_ready - begin) / 1000, (ready - start) / 1000,
                                     (bench::now_us() - before_end) / 1000, more_memory, more_threads};
    std::array<double, 5> most{};
    MPI_Reduce(mine.data(), most.data(), static_cast<int>(mine.size()), MPI_DOUBLE, MPI_MAX, 0, MPI_COMM_WORLD);
    int rank = 0;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    if (rank == 0) {
      std::printf(
          "{\"mpi_ms\": %.2f, \"init_ms\": %.2f, \"finalize_ms\": %.2f, \"memory_kib\": %.0f, \"threads\": %.0f}\n",
          most[0], most[1], most[2], most[3], most[4]);
    }
  } catch (const dtr::Exception& failure) {
    std::fprintf(stderr, "%s\n", failure.what());
    MPI_Abort(MPI_COMM_WORLD, 1);
  }
  MPI_Finalize();
  return 0;
}
