// How far an epoch has come: what a checkpoint stores to go on with, on any number of ranks.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "dtr/base/error.hpp"

namespace dtr::inline v0 {

/// An epoch, and what was consumed of it so far. Not a list of samples: each stage says how many ranks shared what the
/// stages before it had left, and how many samples each of them consumed. A few bytes, whatever the size of the set.
struct EpochCursor {
  struct Stage {
    int world = 1;
    std::vector<std::uint64_t> consumed{};  ///< by rank; a single entry stands for all ranks (the usual case)
    friend bool operator==(const Stage&, const Stage&) = default;
  };

  std::uint64_t epoch = 0;
  std::vector<Stage> stages{};

  friend bool operator==(const EpochCursor&, const EpochCursor&) = default;

  /// "epoch 3: 4x1200, 2x30" (4 ranks took 1200 samples each, then 2 ranks 30 each), "epoch 0: 3x10/11/10".
  [[nodiscard]] std::string to_string() const;

  /// The inverse of to_string(). Error: invalid_argument, quoting the text.
  [[nodiscard]] static Result<EpochCursor> parse(std::string_view text);
};

}  // namespace dtr::inline v0
