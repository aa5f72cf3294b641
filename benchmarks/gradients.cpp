// Gradients summed by push_pull, against MPI_Allreduce of the same workers in the same run. Every result is checked.
//   mpirun -n W+S bench_gradients BYTES ROUNDS --servers S [--managed]     W workers, S servers that only serve
//   mpirun -n W   bench_gradients BYTES ROUNDS --colocated [--managed]     W ranks that are both
// --managed: libdtr's tensors are in the pool's memory; otherwise, and always for MPI, in memory of malloc. --split
// BYTES: WorkerOptions::split_bytes. --alone: push_pull only, for a profiler. Prints a line of JSON: of the rounds the
// medians, each the time until the last worker had its sum. `again` is MPI_Allreduce a second time: how far two
// measurements of the same thing lie apart.
#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include <mpi.h>

#include "dtr/pushpull/reducer.hpp"
#include "dtr/pushpull/worker.hpp"
#include "measure.hpp"

namespace {

struct Options {
  std::size_t bytes = 0;
  int rounds = 0;
  int servers = 1;
  bool colocated = false;
  bool managed = false;
  bool alone = false;
  std::size_t split = 512 << 10;
};

Options parse(int argc, char** argv) {
  Options options;
  if (argc >= 3) {
    options.bytes = std::strtoull(argv[1], nullptr, 10) / sizeof(float) * sizeof(float);
    options.rounds = std::atoi(argv[2]);
  }
  for (int i = 3; i < argc; ++i) {
    if (std::strcmp(argv[i], "--colocated") == 0) options.colocated = true;
    if (std::strcmp(argv[i], "--managed") == 0) options.managed = true;
    if (std::strcmp(argv[i], "--alone") == 0) options.alone = true;
    if (std::strcmp(argv[i], "--split") == 0 && i + 1 < argc) options.split = std::strtoull(argv[++i], nullptr, 10);
    if (std::strcmp(argv[i], "--servers") == 0 && i + 1 < argc) options.servers = std::atoi(argv[++i]);
  }
  if (options.bytes == 0 || options.rounds <= 0 || options.servers <= 0) {
    throw dtr::Exception({.message = "bench_gradients BYTES ROUNDS [--servers S | --colocated] [--managed]"});
  }
  return options;
}

/// A worker's gradient and where the sum goes. Small whole numbers: their sums are exact in any order.
struct Tensors {
  std::span<float> gradient;
  std::span<float> sum;

  void write(int rank, int round) const {
    for (std::size_t i = 0; i < gradient.size(); ++i) gradient[i] = static_cast<float>((rank + 1) * factor(round, i));
    std::fill(sum.begin(), sum.end(), -1.0F);
  }
  void check(int workers, int round, const char* side) const {
    const int ranks = workers * (workers + 1) / 2;
    for (std::size_t i = 0; i < sum.size(); ++i) {
      if (sum[i] == static_cast<float>(ranks * factor(round, i))) continue;
      throw dtr::Exception({.message = std::string(side) + ": element " + std::to_string(i) + " is " +
                                       std::to_string(sum[i]) + " in round " + std::to_string(round)});
    }
  }

 private:
  static int factor(int round, std::size_t i) {
    return 1 + static_cast<int>((static_cast<std::size_t>(round) + i) % 7);
  }
};

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

/// What all workers say. Who waits here sleeps, and takes no core from those who still work.
double greatest(dtr::Group& workers, double mine) {
  const auto all =
      dtr::value_or_throw(workers.allgather("times", std::as_bytes(std::span(&mine, 1)), std::chrono::minutes(5)));
  for (const auto& bytes : all) {
    double other = 0;
    std::memcpy(&other, bytes.data(), sizeof other);
    mine = std::max(mine, other);
  }
  return mine;
}

/// Microseconds until the last worker is through.
template <class Operation>
double timed(dtr::Group& workers, Operation&& operation) {
  greatest(workers, 0);
  const double start = bench::now_us();
  operation();
  return greatest(workers, bench::now_us() - start);
}

void work(dtr::Runtime& rt, MPI_Comm workers, const Options& options) {
  const std::size_t count = options.bytes / sizeof(float);
  std::vector<float> gradient(count);
  std::vector<float> sum(count);
  const Tensors plain{gradient, sum};
  std::optional<dtr::Buffer> pooled[2];
  Tensors ours = plain;
  if (options.managed) {
    for (auto& buffer : pooled) buffer = dtr::value_or_throw(rt.allocate(options.bytes));
    ours = {pooled[0]->as<float>().first(count), pooled[1]->as<float>().first(count)};
  }
  dtr::Worker worker(rt, {.split_bytes = options.split});
  const auto group = dtr::value_or_throw(rt.worker_group());
  int rank = 0;
  MPI_Comm_rank(workers, &rank);

  std::array<std::vector<double>, 3> times;  // ours, theirs, theirs again
  const int warm_up = 2;
  for (int round = -warm_up; round < options.rounds; ++round) {
    for (std::size_t turn = 0; turn < times.size(); ++turn) {
      const std::size_t side = round % 2 == 0 ? turn : times.size() - 1 - turn;  // what drifts hits all alike
      if (options.alone && side != 0) continue;
      const Tensors& tensors = side == 0 ? ours : plain;
      const int number = 3 * (round + warm_up) + static_cast<int>(side);
      tensors.write(rank, number);
      const double took = timed(*group, [&] {
        if (side == 0) {
          const auto handle =
              dtr::value_or_throw(worker.push_pull({{.key = 1, .push = tensors.gradient, .pull = tensors.sum}}));
          dtr::value_or_throw(worker.wait(handle));
        } else {
          MPI_Allreduce(tensors.gradient.data(), tensors.sum.data(), static_cast<int>(count), MPI_FLOAT, MPI_SUM,
                        workers);
        }
      });
      tensors.check(rt.workers(), number, side == 0 ? "push_pull" : "MPI_Allreduce");
      if (round >= 0) times[side].push_back(took);
    }
  }
  if (rank != 0) return;
  if (options.alone) times[1] = times[2] = times[0];
  std::printf("{\"bytes\": %zu, \"ours_us\": %.2f, \"peer_us\": %.2f, \"again_us\": %.2f}\n", options.bytes,
              median(times[0]), median(times[1]), median(times[2]));
}

void run(const Options& options) {
  dtr::Runtime rt({.servers = options.colocated ? 0 : options.servers, .colocated = options.colocated});
  MPI_Comm workers = MPI_COMM_NULL;
  MPI_Comm_split(MPI_COMM_WORLD, rt.is_worker() ? 0 : 1, rt.rank(), &workers);
  std::optional<dtr::Reducer> reducer;
  if (rt.is_server()) reducer.emplace(rt);
  if (!rt.is_worker()) {
    dtr::value_or_throw(reducer->serve());
  } else {
    if (reducer) dtr::value_or_throw(reducer->start());
    work(rt, workers, options);
    if (reducer) dtr::value_or_throw(reducer->join(std::chrono::seconds(10)));
  }
  MPI_Comm_free(&workers);
}

}  // namespace

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  try {
    run(parse(argc, argv));
  } catch (const dtr::Exception& failure) {
    std::fprintf(stderr, "%s\n", failure.what());
    MPI_Abort(MPI_COMM_WORLD, 1);
  }
  MPI_Finalize();
  return 0;
}
