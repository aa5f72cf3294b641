#include "model.hpp"

#include <Eigen/Core>
#include <bit>
#include <cmath>

namespace dtr::train {

namespace {

using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using View = Eigen::Map<Matrix>;
using ConstView = Eigen::Map<const Matrix>;

/// Where each part lies in the flat row.
template <class T>
struct Parts {
  Parts(const ModelShape& shape, std::span<T> flat)
      : weights1(flat.data()),
        bias1(weights1 + shape.inputs * shape.hidden),
        weights2(bias1 + shape.hidden),
        bias2(weights2 + shape.hidden * shape.classes) {}
  T* weights1;  ///< inputs x hidden
  T* bias1;
  T* weights2;  ///< hidden x classes
  T* bias2;
};

/// splitmix64: a fixed stream of 64-bit numbers.
std::uint64_t next_random(std::uint64_t& state) noexcept {
  state += 0x9E3779B97F4A7C15ULL;
  std::uint64_t z = state;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
  return z ^ (z >> 31);
}

void fill_uniform(std::uint64_t& state, float bound, float* values, int count) {
  for (int i = 0; i < count; ++i) {
    const auto unit = static_cast<float>(next_random(state) >> 40) * 0x1p-24F;  // [0, 1), exact
    values[i] = (2.0F * unit - 1.0F) * bound;
  }
}

/// Sums of columns, row after row: Eigen's own order would depend on the alignment.
void sum_columns(const float* rows, std::size_t count, int columns, float* sums) {
  std::fill(sums, sums + columns, 0.0F);
  for (std::size_t r = 0; r < count; ++r) {
    for (int c = 0; c < columns; ++c)
      sums[c] += rows[r * static_cast<std::size_t>(columns) + static_cast<std::size_t>(c)];
  }
}

void add_bias(float* rows, std::size_t count, int columns, const float* bias) {
  for (std::size_t r = 0; r < count; ++r) {
    for (int c = 0; c < columns; ++c)
      rows[r * static_cast<std::size_t>(columns) + static_cast<std::size_t>(c)] += bias[c];
  }
}

}  // namespace

void make_arithmetic_portable() { Eigen::setCpuCacheSizes(32 << 10, 512 << 10, 4 << 20); }

void initialize(const ModelShape& shape, std::uint64_t seed, std::span<float> parameters) {
  std::uint64_t state = seed;
  const Parts<float> parts(shape, parameters);
  // sqrt is exact to the last bit by IEEE 754, so its result is the same everywhere.
  fill_uniform(state, std::sqrt(6.0F / static_cast<float>(shape.inputs)), parts.weights1, shape.inputs * shape.hidden);
  std::fill(parts.bias1, parts.bias1 + shape.hidden, 0.0F);
  fill_uniform(state, std::sqrt(6.0F / static_cast<float>(shape.hidden)), parts.weights2, shape.hidden * shape.classes);
  std::fill(parts.bias2, parts.bias2 + shape.classes, 0.0F);
}

float portable_exp(float x) noexcept {
  if (x < -87.0F) return 0.0F;
  constexpr double kLog2E = 1.4426950408889634;
  constexpr double kLn2 = 0.6931471805599453;
  const double wide = x;
  const double whole = std::floor(wide * kLog2E + 0.5);
  const double r = wide - whole * kLn2;  // |r| <= ln 2 / 2
  double sum = 1.0;
  for (int n = 11; n >= 1; --n) sum = 1.0 + r * sum / n;  // Horner of the series; far below float's last place
  const auto exponent = static_cast<std::uint64_t>(static_cast<std::int64_t>(whole) + 1023);
  return static_cast<float>(sum * std::bit_cast<double>(exponent << 52));
}

Model::Model(const ModelShape& shape, std::size_t rows)
    : shape_(shape),
      rows_(rows),
      inputs_(rows * static_cast<std::size_t>(shape.inputs)),
      hidden_(rows * static_cast<std::size_t>(shape.hidden)),
      hidden_gradient_(rows * static_cast<std::size_t>(shape.hidden)),
      output_(rows * static_cast<std::size_t>(shape.classes)) {}

Model::Outcome Model::forward(std::span<const float> parameters, std::span<const std::uint8_t> images,
                              std::span<const std::uint8_t> labels) {
  const auto rows = static_cast<Eigen::Index>(labels.size());
  const Parts<const float> parts(shape_, parameters);
  for (std::size_t i = 0; i < images.size(); ++i) {
    inputs_[i] = (static_cast<float>(images[i]) * (1.0F / 255.0F) - 0.2860F) * (1.0F / 0.3530F);
  }
  const ConstView inputs(inputs_.data(), rows, shape_.inputs);
  View hidden(hidden_.data(), rows, shape_.hidden);
  View output(output_.data(), rows, shape_.classes);
  hidden.noalias() = inputs * ConstView(parts.weights1, shape_.inputs, shape_.hidden);
  add_bias(hidden_.data(), labels.size(), shape_.hidden, parts.bias1);
  for (Eigen::Index i = 0; i < rows * shape_.hidden; ++i) hidden.data()[i] = std::max(hidden.data()[i], 0.0F);
  output.noalias() = hidden * ConstView(parts.weights2, shape_.hidden, shape_.classes);
  add_bias(output_.data(), labels.size(), shape_.classes, parts.bias2);

  Outcome outcome;
  for (std::size_t r = 0; r < labels.size(); ++r) {
    float* row = output_.data() + r * static_cast<std::size_t>(shape_.classes);
    int best = 0;
    for (int c = 1; c < shape_.classes; ++c) {
      if (row[c] > row[best]) best = c;
    }
    const float top = row[best];
    float sum = 0;
    for (int c = 0; c < shape_.classes; ++c) {
      row[c] = portable_exp(row[c] - top);
      sum += row[c];
    }
    for (int c = 0; c < shape_.classes; ++c) row[c] /= sum;
    outcome.correct += best == labels[r] ? 1 : 0;
    outcome.loss -= std::log(std::max(row[labels[r]], 1e-30F));  // for people only
  }
  return outcome;
}

Model::Outcome Model::evaluate(std::span<const float> parameters, std::span<const std::uint8_t> images,
                               std::span<const std::uint8_t> labels) {
  Outcome total;
  const auto pixels = static_cast<std::size_t>(shape_.inputs);
  for (std::size_t at = 0; at < labels.size(); at += rows_) {
    const std::size_t count = std::min(rows_, labels.size() - at);
    const Outcome part = forward(parameters, images.subspan(at * pixels, count * pixels), labels.subspan(at, count));
    total.loss += part.loss;
    total.correct += part.correct;
  }
  return total;
}

Model::Outcome Model::gradient(std::span<const float> parameters, std::span<const std::uint8_t> images,
                               std::span<const std::uint8_t> labels, std::span<float> gradient) {
  const Outcome outcome = forward(parameters, images, labels);
  const auto rows = static_cast<Eigen::Index>(labels.size());
  const Parts<const float> parts(shape_, parameters);
  const Parts<float> slopes(shape_, gradient);
  for (std::size_t r = 0; r < labels.size(); ++r) {
    output_[r * static_cast<std::size_t>(shape_.classes) + labels[r]] -= 1.0F;
  }
  const ConstView inputs(inputs_.data(), rows, shape_.inputs);
  const ConstView hidden(hidden_.data(), rows, shape_.hidden);
  const ConstView output_slope(output_.data(), rows, shape_.classes);
  View hidden_slope(hidden_gradient_.data(), rows, shape_.hidden);
  View(slopes.weights2, shape_.hidden, shape_.classes).noalias() = hidden.transpose() * output_slope;
  sum_columns(output_.data(), labels.size(), shape_.classes, slopes.bias2);
  hidden_slope.noalias() = output_slope * ConstView(parts.weights2, shape_.hidden, shape_.classes).transpose();
  for (Eigen::Index i = 0; i < rows * shape_.hidden; ++i) {
    if (hidden.data()[i] <= 0.0F) hidden_slope.data()[i] = 0.0F;
  }
  View(slopes.weights1, shape_.inputs, shape_.hidden).noalias() = inputs.transpose() * hidden_slope;
  sum_columns(hidden_gradient_.data(), labels.size(), shape_.hidden, slopes.bias1);
  return outcome;
}

void descend(std::span<float> parameters, std::span<float> velocity, std::span<const float> gradient, float scale,
             float rate, float momentum) noexcept {
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    velocity[i] = momentum * velocity[i] + scale * gradient[i];
    parameters[i] -= rate * velocity[i];
  }
}

}  // namespace dtr::train
