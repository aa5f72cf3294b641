#include "dtr/pushpull/detail/user_memory.hpp"

#include <chrono>
#include <string>

#include "dtr/base/log.hpp"

namespace dtr::inline v0 {
namespace pushpull {

namespace {

constexpr const char* kOperation = "register tensor";
/// Nothing of ours is open on what is unregistered: this bounds a peer that is stopped inside of a copy.
constexpr auto kUnregisterBound = std::chrono::seconds(2);

[[nodiscard]] Access both(Access a, Access b) noexcept {
  return static_cast<Access>(static_cast<unsigned>(a) | static_cast<unsigned>(b));
}

[[nodiscard]] bool contains(const Region& region, std::span<const std::byte> memory) noexcept {
  return memory.data() >= region.data() &&
         region.contains(static_cast<std::uint64_t>(memory.data() - region.data()), memory.size());
}

}  // namespace

UserMemory::~UserMemory() {
  const EndWait wait(runtime_, kUnregisterBound);  // for all together
  for (auto& [address, registration] : registrations_) {
    if (auto gone = fabric_.unregister_memory(*registration->region, wait.deadline()); !gone) {
      if (gone.error().code == Errc::forked) return;
      DTR_LOG_ERROR("push_pull: a tensor of ", registration->region->length(),
                    " bytes must not be freed yet: ", gone.error().to_string());
    }
  }
}

UserMemory::ByAddress::iterator UserMemory::first_touching(std::span<const std::byte> memory) {
  auto at = registrations_.upper_bound(memory.data());
  if (at != registrations_.begin()) {
    const Region& before = *std::prev(at)->second->region;
    if (before.data() + before.length() > memory.data()) --at;
  }
  return at;
}

Result<UserMemory::Place> UserMemory::locate(std::span<const std::byte> memory, Access access) {
  const auto first = first_touching(memory);
  const auto end = memory.data() + memory.size();
  if (first != registrations_.end() && first->first < end) {
    Registration& known = *first->second;
    const Region& region = *known.region;
    // A registration that nobody uses may be of memory that is no more, and this tensor of another one in its place:
    // only the very same range is taken for the same tensor.
    const bool same = region.data() == memory.data() && region.length() == memory.size();
    const bool alive = known.users.load(std::memory_order_acquire) > 0;
    if (!known.revoked && (same || (alive && contains(region, memory))) && allows(region.options().access, access)) {
      return Place{known.region, static_cast<std::uint64_t>(memory.data() - region.data()), &known};
    }
    if (same) access = both(access, region.options().access);
    if (auto cleared = forget(memory, kUnregisterBound); !cleared) return fail(std::move(cleared.error()));
  } else if (Region* other = fabric_.regions().covering(memory); other != nullptr) {
    if (!allows(other->options().access, access)) {
      return fail(Errc::permission_denied, "the memory is registered without the right to be written", kOperation);
    }
    return Place{other, static_cast<std::uint64_t>(memory.data() - other->data()), nullptr};
  }
  const std::span<std::byte> wanted(const_cast<std::byte*>(memory.data()), memory.size());
  auto region = fabric_.register_memory(wanted, {.access = access});
  if (!region) return fail(std::move(region.error()));
  auto registration = std::make_unique<Registration>();
  registration->region = *region;
  const Place place{*region, 0, registration.get()};
  registrations_.emplace(wanted.data(), std::move(registration));
  return place;
}

Result<void> UserMemory::forget(std::span<const std::byte> memory, Deadline deadline) {
  const auto end = memory.data() + memory.size();
  for (auto at = first_touching(memory); at != registrations_.end() && at->first < end;) {
    Registration& old = *at->second;
    if (old.users.load(std::memory_order_acquire) > 0) {
      return fail(Errc::busy,
                  "the memory overlaps a tensor of " + std::to_string(old.region->length()) +
                      " bytes that an open round uses; wait for that round first",
                  kOperation);
    }
    const RemoteKey key = old.region->key();
    old.revoked = true;
    if (auto gone = fabric_.unregister_memory(*old.region, deadline); !gone) return gone;
    at = registrations_.erase(at);
    if (gone_) gone_(key);
  }
  std::erase_if(taken_back_, [](const auto& old) { return old->users.load(std::memory_order_acquire) == 0; });
  return {};
}

Result<void> UserMemory::take_back(Registration& registration, Deadline deadline) {
  const auto at = registrations_.find(registration.region->data());
  if (at == registrations_.end() || at->second.get() != &registration) return {};  // taken back before
  const RemoteKey key = registration.region->key();
  taken_back_.reserve(taken_back_.size() + 1);
  registration.revoked = true;
  if (auto gone = fabric_.unregister_memory(*registration.region, deadline); !gone) return gone;
  taken_back_.push_back(std::move(at->second));
  registrations_.erase(at);
  if (gone_) gone_(key);
  return {};
}

}  // namespace pushpull
}  // namespace dtr::inline v0
