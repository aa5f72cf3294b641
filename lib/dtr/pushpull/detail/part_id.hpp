// A part of a tensor: its key and where it begins.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dtr::inline v0 {
namespace pushpull {

struct PartId {
  std::uint64_t key = 0;
  std::uint64_t offset = 0;
  friend bool operator==(const PartId&, const PartId&) = default;
};

struct PartIdHash {
  std::size_t operator()(const PartId& id) const noexcept {
    const std::uint64_t mixed = (id.key ^ (id.offset << 1)) * 0x9E37'79B9'7F4A'7C15ULL;
    return static_cast<std::size_t>(mixed ^ (mixed >> 32));
  }
};

}  // namespace pushpull
}  // namespace dtr::inline v0
