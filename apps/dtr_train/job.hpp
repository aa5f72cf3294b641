// What dtr_train was asked for, and what came out.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "dtr/runtime/runtime.hpp"

namespace dtr::train {

/// Steps from one checkpoint to the next where nobody says: with two workers an epoch of this job has 469.
inline constexpr std::uint64_t kCheckpointEvery = 100;

struct Options {
  int servers = 1;
  bool colocated = false;  ///< every rank computes and sums; without `servers`
  std::uint64_t epochs = 6;
  std::uint64_t batch = 64;  ///< images a worker and step
  double rate = 0.1;         ///< falls to 0 in a straight line over all steps
  std::uint64_t seed = 1;
  std::string data = "/usr/share/datasets/fashion-mnist";
  std::string checkpoint_dir{};                     ///< empty = no checkpoints
  std::optional<std::uint64_t> checkpoint_every{};  ///< 0 = never; unset = checkpoint.interval_steps if that is set
  bool resume = false;
  std::uint64_t max_steps = 0;  ///< counted from step 0; 0 = no limit
  std::string json{};
};

struct Summary {
  bool finished = true;  ///< false: it was asked to stop
  double test_accuracy = 0;
  std::string parameter_digest{};
  std::uint64_t steps = 0;
  double samples_per_second = 0;
  std::string transport{};
  double push_pull_seconds = 0;
  double compute_seconds = 0;
  double data_seconds = 0;
};

/// Sums rows of floats over all workers, the same bits on each.
class GradientExchange {
 public:
  virtual ~GradientExchange() = default;
  [[nodiscard]] virtual std::span<float> mine() = 0;
  /// Of the last run.
  [[nodiscard]] virtual std::span<const float> sum() const = 0;
  /// Collective over the workers.
  [[nodiscard]] virtual Result<void> run() = 0;
};
using MakeExchange = std::function<std::unique_ptr<GradientExchange>(Runtime& rt, std::size_t floats)>;

/// Throws Exception.
[[nodiscard]] std::unique_ptr<GradientExchange> exchange_by_push_pull(Runtime& rt, std::size_t floats);

/// A worker's whole training.
[[nodiscard]] Result<Summary> train(Runtime& rt, const Options& options,
                                    const MakeExchange& make_exchange = exchange_by_push_pull);

/// Whether write_json could work, found out before the hours of a training: is there a folder, may we write into it?
[[nodiscard]] Result<void> check_json(const std::string& path);

[[nodiscard]] Result<void> write_json(const std::string& path, const Summary& summary);

}  // namespace dtr::train
