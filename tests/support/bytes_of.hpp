// What a peer would say, put together from the structures of its protocol.
#pragma once

#include <cstddef>
#include <type_traits>
#include <vector>

namespace dtr::testing {

/// The parts as they lie in memory, one behind the other.
template <class... Parts>
[[nodiscard]] std::vector<std::byte> bytes_of(const Parts&... parts) {
  static_assert((std::is_trivially_copyable_v<Parts> && ...));
  std::vector<std::byte> all;
  const auto add = [&](const auto& part) {
    const auto* at = reinterpret_cast<const std::byte*>(&part);
    all.insert(all.end(), at, at + sizeof part);
  };
  (add(parts), ...);
  return all;
}

}  // namespace dtr::testing
