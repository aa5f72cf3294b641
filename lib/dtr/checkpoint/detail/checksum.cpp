#include "dtr/checkpoint/detail/checksum.hpp"

#include <new>

#include <xxhash.h>

namespace dtr::inline v0 {
namespace checkpoint {

std::uint64_t checksum(std::span<const std::byte> data) noexcept { return XXH3_64bits(data.data(), data.size()); }

std::uint64_t checksum(std::string_view text) noexcept { return checksum(std::as_bytes(std::span(text))); }

struct Checksum::State {
  struct Free {
    void operator()(XXH3_state_t* state) const noexcept { XXH3_freeState(state); }
  };
  std::unique_ptr<XXH3_state_t, Free> xxh3{XXH3_createState()};
};

Checksum::Checksum() : state_(std::make_unique<State>()) {
  if (!state_->xxh3) throw std::bad_alloc();
  XXH3_64bits_reset(state_->xxh3.get());
}

Checksum::~Checksum() = default;

void Checksum::update(std::span<const std::byte> data) noexcept {
  XXH3_64bits_update(state_->xxh3.get(), data.data(), data.size());
}

std::uint64_t Checksum::value() const noexcept { return XXH3_64bits_digest(state_->xxh3.get()); }

}  // namespace checkpoint
}  // namespace dtr::inline v0
