// dtr_train with MPI_Allreduce for its gradients: mpirun -n N bench_train_mpi STEPS BATCH. The same model, data and
// loop; all ranks compute. Prints a line of JSON. See benchmarks/train.py.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include <mpi.h>

#include "dtr_train/job.hpp"
#include "dtr_train/model.hpp"

namespace {

class AllreduceExchange final : public dtr::train::GradientExchange {
 public:
  explicit AllreduceExchange(std::size_t floats) : mine_(floats), sum_(floats) {}
  [[nodiscard]] std::span<float> mine() override { return mine_; }
  [[nodiscard]] std::span<const float> sum() const override { return sum_; }
  [[nodiscard]] dtr::Result<void> run() override {
    const int code =
        MPI_Allreduce(mine_.data(), sum_.data(), static_cast<int>(mine_.size()), MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
    if (code != MPI_SUCCESS) return dtr::fail(dtr::Errc::mpi_error, "MPI_Allreduce", "training");
    return {};
  }

 private:
  std::vector<float> mine_;
  std::vector<float> sum_;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return std::fprintf(stderr, "usage: %s STEPS BATCH\n", argv[0]), 2;
  MPI_Init(&argc, &argv);
  dtr::train::make_arithmetic_portable();
  int code = 1;
  try {
    dtr::Runtime rt;
    dtr::train::Options options;
    options.max_steps = std::strtoull(argv[1], nullptr, 10);
    options.batch = std::strtoull(argv[2], nullptr, 10);
    const auto make = [](dtr::Runtime&, std::size_t floats) { return std::make_unique<AllreduceExchange>(floats); };
    const auto summary = dtr::value_or_throw(dtr::train::train(rt, options, make));
    if (rt.rank() == 0) {
      std::printf("{\"samples_per_second\": %.1f, \"exchange_seconds\": %.4f, \"digest\": \"%s\"}\n",
                  summary.samples_per_second, summary.push_pull_seconds, summary.parameter_digest.c_str());
    }
    code = 0;
  } catch (const dtr::Exception& failure) {
    std::fprintf(stderr, "%s\n", failure.what());
    MPI_Abort(MPI_COMM_WORLD, 1);
  }
  MPI_Finalize();
  return code;
}
