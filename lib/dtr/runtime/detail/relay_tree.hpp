// The ways of words among many ranks that nobody is connected with all of: up and down a tree, passed on at each rank
// between. Internal to runtime/.
#pragma once

#include <cstdint>

namespace dtr::inline v0 {

/// A tree over the places 0 to `count` - 1, with place 0 on top and `width` below each: that of WatchTree where the
/// places are the ranks. Nobody passes on who is not `alive(place)`: those below go to the next one above it.
template <class Alive>
class RelayTree {
 public:
  RelayTree(std::uint32_t count, std::uint32_t width, Alive alive) : count_(count), width_(width), alive_(alive) {}

  [[nodiscard]] std::uint32_t above(std::uint32_t place) const noexcept { return (place - 1) / width_; }

  /// Whom `from` gives what is meant for `to`: a neighbour in the tree, or `to` itself where nobody lives between.
  [[nodiscard]] std::uint32_t next(std::uint32_t from, std::uint32_t to) const {
    std::uint32_t highest = to;  // that lives, on the way from `to` upwards
    for (std::uint32_t place = to; place > from; place = above(place)) {
      if (alive_(place)) highest = place;
      if (above(place) == from) return highest;
    }
    for (std::uint32_t place = from; place != 0;) {
      place = above(place);
      if (place == to || alive_(place)) return place;
    }
    return to;
  }

  /// Whom `from` tells what all shall hear.
  template <class Visit>
  void for_each_below(std::uint32_t from, Visit&& visit) const {
    const std::uint64_t first = std::uint64_t{from} * width_ + 1;
    for (std::uint64_t child = first; child < first + width_ && child < count_; ++child) {
      const auto place = static_cast<std::uint32_t>(child);
      if (alive_(place)) {
        visit(place);
      } else {
        for_each_below(place, visit);
      }
    }
  }

 private:
  std::uint32_t count_;
  std::uint32_t width_;
  Alive alive_;
};

}  // namespace dtr::inline v0
