// What it takes to start: MPI_Init and, beyond it, Runtime::init. mpirun -n N bench_startup. Prints a line of JSON:
// times until the last rank is through, threads that Runtime::init has added to a rank, and the memory that it holds.
//
// Memory is counted, not sampled: what operator new has given out and not got back (libdtr is C++, MPI is C, so MPI's
// own does not count), and the pages present of memory that libdtr shares. Pages of the process move in steps of the
// allocator and with what MPI does meanwhile. `leaf`: the last rank, which is connected with its parent in the watch
// tree and knows all others by name only; `top`: rank 0, which is connected with up to 64.
#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include <mpi.h>

#include "dtr/runtime/runtime.hpp"
#include "held_memory.hpp"
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

/// KiB present of what libdtr has mapped to share.
double shared_by_libdtr() {
  std::ifstream file("/proc/self/smaps");
  double kib = 0;
  bool ours = false;
  for (std::string line; std::getline(file, line);) {
    if (line.find("memfd:dtr") != std::string::npos) {
      ours = true;
    } else if (line.rfind("Rss:", 0) == 0) {
      if (std::exchange(ours, false)) kib += std::stod(line.substr(4));
    }
  }
  return kib;
}

struct Usage {
  double held;      ///< KiB by operator new
  double shared;    ///< KiB
  double resident;  ///< KiB, of the whole process
};

Usage usage() { return {bench::held_kib(), shared_by_libdtr(), status_of_process("RssAnon")}; }

}  // namespace

int main(int argc, char** argv) {
  const double begin = bench::now_us();
  MPI_Init(&argc, &argv);
  const double mpi_ready = bench::now_us();
  MPI_Barrier(MPI_COMM_WORLD);
  const Usage before = usage();
  const double threads = status_of_process("Threads");
  try {
    MPI_Barrier(MPI_COMM_WORLD);
    const double start = bench::now_us();
    std::optional<dtr::Runtime> rt(std::in_place);
    const double ready = bench::now_us();
    // The neighbours in the watch tree connect now instead of at the first beat, and have time for it.
    dtr::value_or_throw(rt->heartbeat());
    MPI_Barrier(MPI_COMM_WORLD);
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    const Usage after = usage();
    const double more_threads = status_of_process("Threads") - threads;
    MPI_Barrier(MPI_COMM_WORLD);
    const double before_end = bench::now_us();
    dtr::value_or_throw(rt->finalize());
    rt.reset();
    const std::array<double, 4> mine{(mpi_ready - begin) / 1000, (ready - start) / 1000,
                                     (bench::now_us() - before_end) / 1000, more_threads};
    std::array<double, 4> most{};
    MPI_Reduce(mine.data(), most.data(), static_cast<int>(mine.size()), MPI_DOUBLE, MPI_MAX, 0, MPI_COMM_WORLD);
    std::array<double, 3> memory{after.held - before.held, after.shared - before.shared,
                                 after.resident - before.resident};
    std::array<double, 3> leaf = memory;
    int rank = 0;
    int size = 0;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    MPI_Bcast(leaf.data(), static_cast<int>(leaf.size()), MPI_DOUBLE, size - 1, MPI_COMM_WORLD);
    if (rank == 0) {
      std::printf("{\"mpi_ms\": %.2f, \"init_ms\": %.2f, \"finalize_ms\": %.2f, \"threads\": %.0f", most[0], most[1],
                  most[2], most[3]);
      std::printf(", \"leaf_kib\": %.2f, \"leaf_shared_kib\": %.0f, \"leaf_resident_kib\": %.0f", leaf[0], leaf[1],
                  leaf[2]);
      std::printf(", \"top_kib\": %.2f, \"top_shared_kib\": %.0f, \"top_resident_kib\": %.0f}\n", memory[0], memory[1],
                  memory[2]);
    }
  } catch (const dtr::Exception& failure) {
    std::fprintf(stderr, "%s\n", failure.what());
    MPI_Abort(MPI_COMM_WORLD, 1);
  }
  MPI_Finalize();
  return 0;
}
