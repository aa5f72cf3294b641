// Who watches whom: a tree over the ranks, with rank 0 on top, that closes over those that are gone.
// Internal to runtime/.
#pragma once

#include <algorithm>
#include <optional>
#include <vector>

#include "dtr/fabric/work_request.hpp"

namespace dtr::inline v0 {

/// The edges of one rank among those that are `alive(rank)`. Each end of an edge finds the same edge by itself, so
/// ranks that know of the same deaths agree without a word. A rank has at most `width` + 1 edges until deaths hand it
/// the children of the dead.
template <class Alive>
class WatchTree {
 public:
  WatchTree(fabric::PeerId self, fabric::PeerId size, fabric::PeerId width, Alive alive)
      : self_(self), size_(size), width_(width), alive_(std::move(alive)) {}

  /// The nearest living rank above. Where nobody above is left the lowest living rank takes the top's place.
  [[nodiscard]] std::optional<fabric::PeerId> parent() const {
    for (fabric::PeerId rank = self_; rank != 0;) {
      rank = (rank - 1) / width_;
      if (lives(rank)) return rank;
    }
    const fabric::PeerId top = lowest();
    if (top == self_) return std::nullopt;
    return top;
  }

  /// Parent and children, ascending.
  [[nodiscard]] std::vector<fabric::PeerId> neighbours() const {
    std::vector<fabric::PeerId> found;
    if (const auto above = parent()) found.push_back(*above);
    add_children(self_, found);
    if (self_ != 0 && lowest() == self_) add_children(0, found);
    std::sort(found.begin(), found.end());
    found.erase(std::unique(found.begin(), found.end()), found.end());
    return found;
  }

 private:
  [[nodiscard]] bool lives(fabric::PeerId rank) const { return rank == self_ || alive_(rank); }

  [[nodiscard]] fabric::PeerId lowest() const {
    fabric::PeerId rank = 0;
    while (!lives(rank)) ++rank;
    return rank;
  }

  /// In a dead child's place come its own.
  void add_children(fabric::PeerId rank, std::vector<fabric::PeerId>& found) const {
    const std::uint64_t first = std::uint64_t{rank} * width_ + 1;
    for (std::uint64_t child = first; child < first + width_ && child < size_; ++child) {
      const auto id = static_cast<fabric::PeerId>(child);
      if (id == self_) continue;
      if (lives(id)) {
        found.push_back(id);
      } else {
        add_children(id, found);
      }
    }
  }

  fabric::PeerId self_;
  fabric::PeerId size_;
  fabric::PeerId width_;
  Alive alive_;
};

}  // namespace dtr::inline v0
