#include "dtr/bootstrap/launcher.hpp"

#include <charconv>
#include <cstdlib>
#include <optional>
#include <string_view>

namespace dtr::inline v0 {
namespace {

std::optional<int> number(const ReadEnvironment& read, const char* name) {
  const char* text = read(name);
  if (text == nullptr) return std::nullopt;
  const std::string_view digits(text);
  int value = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (error != std::errc() || end != digits.data() + digits.size() || value < 0) return std::nullopt;
  return value;
}

}  // namespace

LaunchHint launch_hint(const ReadEnvironment& read) {
  const auto ompi_rank = number(read, "OMPI_COMM_WORLD_RANK");
  const auto ompi_size = number(read, "OMPI_COMM_WORLD_SIZE");
  if (ompi_rank && ompi_size) {
    return {.launcher = "mpirun",
            .rank = *ompi_rank,
            .size = *ompi_size,
            .local_rank = number(read, "OMPI_COMM_WORLD_LOCAL_RANK").value_or(0)};
  }
  const auto pmix_rank = number(read, "PMIX_RANK");
  const auto step_size = number(read, "SLURM_STEP_NUM_TASKS");
  if (pmix_rank && step_size) {
    return {.launcher = "srun",
            .rank = *pmix_rank,
            .size = *step_size,
            .local_rank = number(read, "SLURM_LOCALID").value_or(0)};
  }
  return {};
}

LaunchHint launch_hint() {
  return launch_hint([](const char* name) -> const char* { return std::getenv(name); });
}

}  // namespace dtr::inline v0
