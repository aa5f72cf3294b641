// The network: 784 -> hidden (ReLU) -> 10 (softmax). All parameters in one flat row of floats, as they travel.
//
// The same numbers on every machine: sums run in an order that depends on shapes only, and exp is our own, for the
// C library picks its versions by CPU.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace dtr::train {

struct ModelShape {
  int inputs = 784;
  int hidden = 256;
  int classes = 10;

  [[nodiscard]] std::size_t parameters() const noexcept {
    const auto width = static_cast<std::size_t>(hidden);
    return (static_cast<std::size_t>(inputs) + 1) * width + (width + 1) * static_cast<std::size_t>(classes);
  }
};

/// Fixes what Eigen would otherwise take from the CPU it runs on. Call before anything else.
void make_arithmetic_portable();

/// He-uniform weights from a seed; biases 0.
void initialize(const ModelShape& shape, std::uint64_t seed, std::span<float> parameters);

/// e^x for x <= 0, correct to a few units in the last place of float.
[[nodiscard]] float portable_exp(float x) noexcept;

/// Work space for batches of up to `rows` images.
class Model {
 public:
  Model(const ModelShape& shape, std::size_t rows);

  struct Outcome {
    double loss = 0;  ///< summed over the batch
    std::uint64_t correct = 0;
  };

  /// Sums the gradient of the loss over the batch into `gradient` (overwritten).
  /// images: rows x inputs pixels 0..255; labels: one class a row.
  Outcome gradient(std::span<const float> parameters, std::span<const std::uint8_t> images,
                   std::span<const std::uint8_t> labels, std::span<float> gradient);

  /// Forward only.
  Outcome evaluate(std::span<const float> parameters, std::span<const std::uint8_t> images,
                   std::span<const std::uint8_t> labels);

 private:
  Outcome forward(std::span<const float> parameters, std::span<const std::uint8_t> images,
                  std::span<const std::uint8_t> labels);

  ModelShape shape_;
  std::size_t rows_;
  std::vector<float> inputs_;
  std::vector<float> hidden_;
  std::vector<float> hidden_gradient_;
  std::vector<float> output_;  ///< logits, then probabilities, then their gradient
};

/// Stochastic gradient descent with momentum: v = momentum * v + g; p = p - rate * v.
void descend(std::span<float> parameters, std::span<float> velocity, std::span<const float> gradient, float scale,
             float rate, float momentum) noexcept;

}  // namespace dtr::train
