// What dtr_train was asked for, and what came out.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "dtr/runtime/runtime.hpp"

namespace dtr::train {

/// Steps from one checkpoint to the next where nobody says: with two workers an epoch of this job has 469.
inline constexpr std::uint64_t kCheckpointEvery = 100;

struct Options {
  int servers = 1;
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

/// A worker's whole training.
[[nodiscard]] Result<Summary> train(Runtime& rt, const Options& options);

/// Whether write_json could work, found out before the hours of a training: is there a folder, may we write into it?
[[nodiscard]] Result<void> check_json(const std::string& path);

[[nodiscard]] Result<void> write_json(const std::string& path, const Summary& summary);

}  // namespace dtr::train
