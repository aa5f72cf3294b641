#include "dtr/fabric/verbs/registrations.hpp"

#include <cerrno>
#include <utility>

#include "dtr/base/thread.hpp"
#include "dtr/fabric/verbs/limits.hpp"

namespace dtr::inline v0 {
namespace fabric::verbs {

namespace {

constexpr const char* kOperation = "register memory";
constexpr std::uint64_t kLarge = 256ULL << 20;  ///< pinning takes about 0.1 s a GiB: NICs side by side from here on

unsigned access_of(const RegionOptions& options) noexcept {
  // The target's CPU reads and writes its own memory anyway, and a get lands by local write.
  unsigned access = IBV_ACCESS_LOCAL_WRITE;
  if (allows(options.access, Access::read)) access |= IBV_ACCESS_REMOTE_READ;
  if (allows(options.access, Access::write)) access |= IBV_ACCESS_REMOTE_WRITE;
  if (allows(options.access, Access::atomic) && options.atomic_home == AtomicHome::device) {
    access |= IBV_ACCESS_REMOTE_ATOMIC;
  }
  // What is polled must become visible in order.
  if (!options.polled) access |= IBV_ACCESS_RELAXED_ORDERING;
  return access;
}

}  // namespace

Result<MemoryRegion> Registrations::register_with(Nic& nic, const Region& region) {
  const RegionOptions& options = region.options();
  const std::string what = std::to_string(region.length()) + " bytes of memory";
  if (region.length() > nic.attributes().max_mr_size) {
    return fail(Errc::resource_exhausted,
                what + ": " + nic.name() + " registers " + std::to_string(nic.attributes().max_mr_size) +
                    " bytes at once (max_mr_size); register it in parts",
                kOperation);
  }
  if (options.kind == MemoryKind::cuda && options.dmabuf_fd < 0) {
    return fail(Errc::unsupported, "GPU memory without a dmabuf descriptor is staged through host memory", kOperation);
  }
  unsigned access = access_of(options);
  ibv_mr* mr = nullptr;
  for (int attempt = 0; attempt < 2 && mr == nullptr; ++attempt) {
    if (options.dmabuf_fd >= 0) {
      mr = nic.api().reg_dmabuf_mr(nic.protection_domain(), 0, region.length(),
                                   reinterpret_cast<std::uintptr_t>(region.data()), options.dmabuf_fd, access);
    } else {
      mr = nic.api().reg_mr(nic.protection_domain(), region.data(), region.length(), access);
    }
    // Relaxed ordering is a wish that old kernels do not know.
    if (mr == nullptr && errno == EINVAL) access &= ~static_cast<unsigned>(IBV_ACCESS_RELAXED_ORDERING);
  }
  if (mr == nullptr) {
    return fail(
        device_refusal(errno, what, "max_mr " + std::to_string(nic.attributes().max_mr), nic.name(), kOperation));
  }
  return MemoryRegion(nic.api(), mr);
}

Result<void> Registrations::add(Region& region) {
  Entry* entry = nullptr;
  {
    const std::lock_guard lock(mutex_);
    if (free_.empty()) {
      storage_.push_back(std::make_unique<Entry>());
      free_.reserve(storage_.size());  // remove() must not fail
      free_.push_back(storage_.back().get());
    }
    entry = free_.back();
    free_.pop_back();
  }
  std::vector<Result<MemoryRegion>> made;
  for (std::size_t i = 0; i < nics_.size(); ++i) made.emplace_back(MemoryRegion());
  const auto register_one = [&](std::size_t i) { made[i] = register_with(*nics_[i], region); };
  std::vector<Thread> helpers;
  for (std::size_t i = 1; i < nics_.size(); ++i) {
    if (region.length() < kLarge) {
      register_one(i);
    } else {
      helpers.emplace_back([&register_one, i](const std::stop_token&) { register_one(i); },
                           ThreadOptions{.name = "dtr-register"});
    }
  }
  register_one(0);
  helpers.clear();  // joins

  std::array<std::uint32_t, RemoteKey::kMaxRails> rkeys{};
  for (std::size_t i = 0; i < nics_.size(); ++i) {
    if (made[i]) {
      rkeys[i] = (*made[i])->rkey;
      entry->lkeys[i] = (*made[i])->lkey;
      entry->mrs[i] = std::move(*made[i]);
      continue;
    }
    for (MemoryRegion& mr : entry->mrs) mr.reset();
    const std::lock_guard lock(mutex_);
    free_.push_back(entry);
    return fail(std::move(made[i].error()));
  }
  entry->generation = region.key().generation;
  region.set_device_keys(rkeys);
  entries_[region.key().slot].store(entry, std::memory_order_release);
  return {};
}

void Registrations::remove(const Region& region) noexcept {
  auto& place = entries_[region.key().slot];
  Entry* entry = place.load(std::memory_order_acquire);
  if (entry == nullptr || entry->generation != region.key().generation) return;
  place.store(nullptr, std::memory_order_release);
  for (MemoryRegion& mr : entry->mrs) mr.reset();
  const std::lock_guard lock(mutex_);
  free_.push_back(entry);
}

}  // namespace fabric::verbs
}  // namespace dtr::inline v0
