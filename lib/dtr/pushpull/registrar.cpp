#include "dtr/pushpull/registrar.hpp"

#include "dtr/base/log.hpp"

namespace dtr::inline v0 {
namespace pushpull {

Registrar::~Registrar() {
  for (Region* region : own_) {
    if (auto given_back = fabric_.unregister_memory(*region, timeout_); !given_back) {
      DTR_LOG_WARN(given_back.error().to_string());
    }
  }
}

Result<Registrar::Place> Registrar::locate(std::span<const std::byte> memory) {
  const auto place = [&](Region* region) {
    return Place{.region = region, .offset = static_cast<std::uint64_t>(memory.data() - region->data())};
  };
  if (Region* known = fabric_.regions().covering(memory); known != nullptr) return place(known);
  // The fabric writes only where a pull says so, and a push is only read.
  const std::span<std::byte> bytes(const_cast<std::byte*>(memory.data()), memory.size());
  auto registered = fabric_.register_memory(bytes);
  if (!registered && registered.error().code == Errc::overlap) {
    // Most likely a vector that was registered earlier, freed since, and its memory given to a new one.
    if (auto forgotten = forget(memory); !forgotten) return fail(std::move(forgotten.error()));
    registered = fabric_.register_memory(bytes);
  }
  if (!registered) return fail(std::move(registered.error()));
  const std::lock_guard lock(mutex_);
  own_.push_back(*registered);
  return place(*registered);
}

Result<void> Registrar::forget(std::span<const std::byte> memory) {
  const std::lock_guard lock(mutex_);
  for (auto it = own_.begin(); it != own_.end();) {
    const Region& region = **it;
    const bool touches =
        region.data() < memory.data() + memory.size() && memory.data() < region.data() + region.length();
    if (!touches) {
      ++it;
      continue;
    }
    if (auto given_back = fabric_.unregister_memory(**it, timeout_); !given_back) return given_back;
    it = own_.erase(it);
  }
  return {};
}

}  // namespace pushpull
}  // namespace dtr::inline v0
