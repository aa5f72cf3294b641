// XXH3 (64 bit): the one checksum of the checkpoint format.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

namespace dtr::inline v0 {
namespace checkpoint {

[[nodiscard]] std::uint64_t checksum(std::span<const std::byte> data) noexcept;
[[nodiscard]] std::uint64_t checksum(std::string_view text) noexcept;

/// The same over parts.
class Checksum {
 public:
  Checksum();
  ~Checksum();
  Checksum(const Checksum&) = delete;
  Checksum& operator=(const Checksum&) = delete;

  void update(std::span<const std::byte> data) noexcept;
  [[nodiscard]] std::uint64_t value() const noexcept;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace checkpoint
}  // namespace dtr::inline v0
