// What messages are sent from and received into, in the programs and the tests that compare the two kinds.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

#include "dtr/runtime/runtime.hpp"

namespace dtr::common {

/// Memory of the pool, which peers in the same host map, or of malloc. Written once, so that no page fault is timed.
class Memory {
 public:
  Memory(Runtime& rt, std::size_t bytes, bool of_the_pool) {
    if (of_the_pool) {
      pooled_ = value_or_throw(rt.allocate(std::max<std::size_t>(bytes, 1)));
      span_ = pooled_.span().first(bytes);
    } else {
      own_.resize(bytes);
      span_ = own_;
    }
    std::fill(span_.begin(), span_.end(), std::byte{1});
  }

  [[nodiscard]] std::span<std::byte> span() const { return span_; }

 private:
  Buffer pooled_{};
  std::vector<std::byte> own_{};
  std::span<std::byte> span_{};
};

}  // namespace dtr::common
