// Gradients summed by push_pull, against MPI_Allreduce of the same two workers in the same run.
//   mpirun -n 3 bench_push_pull [--iterations N] [--pageable]     2 workers, 1 server that only serves
//   mpirun -n 2 bench_push_pull --colocated [...]                 2 ranks that are both
// --pageable: tensors in ordinary memory instead of the pool's. Prints a line a size: medians in us, and the ratio
// (above 1 = libdtr is ahead).
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <vector>

#include <mpi.h>

#include "dtr/pushpull/reducer.hpp"
#include "dtr/pushpull/worker.hpp"
#include "measure.hpp"

namespace {

struct Options {
  bool colocated = false;
  bool pageable = false;
  int iterations = 0;
};

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--colocated") == 0) options.colocated = true;
    if (std::strcmp(argv[i], "--pageable") == 0) options.pageable = true;
    if (std::strcmp(argv[i], "--iterations") == 0 && i + 1 < argc) options.iterations = std::atoi(argv[++i]);
  }
  return options;
}

template <class Round>
double median_us(int iterations, MPI_Comm workers, Round&& round) {
  std::vector<double> each;
  for (int i = -(iterations / 10 + 2); i < iterations; ++i) {
    MPI_Barrier(workers);
    const double start = bench::now_us();
    round();
    if (i >= 0) each.push_back(bench::now_us() - start);
  }
  std::nth_element(each.begin(), each.begin() + static_cast<std::ptrdiff_t>(each.size() / 2), each.end());
  return each[each.size() / 2];
}

/// Both turn and turn about, so that what else the machine does hits both.
void measure(dtr::Runtime& rt, dtr::Worker& worker, MPI_Comm workers, std::size_t bytes, const Options& options) {
  const std::size_t count = bytes / sizeof(float);
  std::vector<float> own[2] = {std::vector<float>(count, 1.0F), std::vector<float>(count)};
  const auto mine = dtr::value_or_throw(rt.allocate(bytes));
  const auto sums = dtr::value_or_throw(rt.allocate(bytes));
  const std::span<float> gradient = options.pageable ? std::span(own[0]) : mine.as<float>().first(count);
  const std::span<float> sum = options.pageable ? std::span(own[1]) : sums.as<float>().first(count);
  std::fill(gradient.begin(), gradient.end(), 1.0F);
  const int iterations = options.iterations > 0
                             ? options.iterations
                             : static_cast<int>(std::clamp<std::size_t>((64 << 20) / bytes, 20, 500));
  double ours = 1e18;
  double theirs = 1e18;
  for (int turn = 0; turn < 5; ++turn) {
    ours = std::min(ours, median_us(iterations, workers, [&] {
                      const auto round =
                          dtr::value_or_throw(worker.push_pull({{.key = bytes, .push = gradient, .pull = sum}}));
                      dtr::value_or_throw(worker.wait(round));
                    }));
    theirs =
        std::min(theirs, median_us(iterations, workers, [&] {
                   MPI_Allreduce(own[0].data(), own[1].data(), static_cast<int>(count), MPI_FLOAT, MPI_SUM, workers);
                 }));
  }
  if (sum.back() != static_cast<float>(rt.workers())) throw dtr::Exception({.message = "the sum is wrong"});
  if (rt.rank() != 0) return;
  std::printf("push_pull/%zu%s%s  %.2f us  MPI_Allreduce %.2f us  ratio %.3f\n", bytes,
              options.colocated ? "/colocated" : "", options.pageable ? "/pageable" : "", ours, theirs, theirs / ours);
}

void work(dtr::Runtime& rt, MPI_Comm workers, const Options& options) {
  dtr::Worker worker(rt, {.split_bytes = 512 << 10});
  for (const std::size_t bytes : {std::size_t{4} << 10, std::size_t{1} << 20, std::size_t{16} << 20}) {
    measure(rt, worker, workers, bytes, options);
  }
}

int run(const Options& options) {
  dtr::Runtime rt({.servers = options.colocated ? 0 : 1, .colocated = options.colocated});
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
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  int code = 1;
  try {
    code = run(parse(argc, argv));
  } catch (const dtr::Exception& failure) {
    std::fprintf(stderr, "%s\n", failure.what());
    MPI_Abort(MPI_COMM_WORLD, 1);
  }
  MPI_Finalize();
  return code;
}
