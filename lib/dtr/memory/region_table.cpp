#include "dtr/memory/region_table.hpp"

#include <cstdio>
#include <new>
#include <string>

#include <sodium.h>

namespace dtr::inline v0 {

namespace {

std::string range_text(std::span<const std::byte> memory) {
  char text[64];
  std::snprintf(text, sizeof text, "[%p, +%zu)", static_cast<const void*>(memory.data()), memory.size());
  return text;
}

/// Differs whenever anything differs that an access by a peer on this host depends on. The secret makes it unguessable.
std::uint64_t digest(const RemoteKey& key) noexcept {
  std::uint64_t sum = key.secret;
  const std::uint64_t kinds = static_cast<std::uint64_t>(key.kind) | static_cast<std::uint64_t>(key.access) << 8 |
                              static_cast<std::uint64_t>(key.atomic_home) << 16;
  for (const std::uint64_t part : {key.length, key.address, key.segment, key.segment_offset, kinds}) {
    sum = (sum ^ part) * 0x9E37'79B9'7F4A'7C15ULL;
    sum ^= sum >> 32;
  }
  return sum;
}

std::atomic<std::uint64_t>* digest_word(const Segment& validity, std::uint32_t slot) noexcept {
  std::byte* words = validity.data() + RegionTable::kMaxRegions * sizeof(std::uint32_t);
  return std::launder(reinterpret_cast<std::atomic<std::uint64_t>*>(words + slot * sizeof(std::uint64_t)));
}

}  // namespace

Result<std::unique_ptr<RegionTable>> RegionTable::create() {
  if (sodium_init() < 0) return fail(Errc::unsupported, "no source of random numbers", "create region table");
  auto validity = Segment::create(0, kValidityBytes);
  if (!validity) return fail(validity.error());
  return std::unique_ptr<RegionTable>(new RegionTable(std::move(*validity)));
}

RegionTable::RegionTable(std::shared_ptr<Segment> validity) : validity_(std::move(validity)) {
  for (std::uint32_t slot = 0; slot < kMaxRegions; ++slot) {
    new (validity_->data() + slot * sizeof(std::uint32_t)) std::atomic<std::uint32_t>(0);
    new (digest_word(*validity_, slot)) std::atomic<std::uint64_t>(0);
  }
}

RegionTable::~RegionTable() {
  for (std::uint32_t slot = 0; slot < kMaxRegions; ++slot) {
    auto* word = validity_word(*validity_, slot);
    if ((word->load(std::memory_order_relaxed) & 1U) != 0) word->fetch_add(1, std::memory_order_seq_cst);
  }
}

std::atomic<std::uint32_t>* RegionTable::validity_word(const Segment& validity, std::uint32_t slot) noexcept {
  return std::launder(reinterpret_cast<std::atomic<std::uint32_t>*>(validity.data() + slot * sizeof(std::uint32_t)));
}

Result<Region*> RegionTable::add(std::span<std::byte> memory, const RegionOptions& options,
                                 std::shared_ptr<Segment> segment) {
  constexpr const char* kOperation = "register memory";
  if (memory.data() == nullptr || memory.empty()) {
    return fail(Errc::invalid_argument, "the memory is " + std::string(memory.empty() ? "empty" : "null"), kOperation);
  }
  if (reinterpret_cast<std::uintptr_t>(memory.data()) + memory.size() < memory.size()) {
    return fail(Errc::invalid_argument, range_text(memory) + " wraps around the address space", kOperation);
  }
  const std::lock_guard lock(mutex_);
  const auto after = by_address_.lower_bound(memory.data());
  const auto refuse = [&](const Region& other) {
    return fail(Errc::overlap, range_text(memory) + " overlaps the registered " + range_text(other.span()), kOperation);
  };
  if (after != by_address_.end() && after->first < memory.data() + memory.size()) return refuse(*after->second);
  if (after != by_address_.begin()) {
    const Region& before = *std::prev(after)->second;
    if (before.data() + before.length() > memory.data()) return refuse(before);
  }

  Region* region = nullptr;
  if (!free_.empty()) {
    region = slots_[free_.back()].load(std::memory_order_relaxed);
    free_.pop_back();
  } else {
    if (storage_.size() == kMaxRegions) {
      return fail(Errc::resource_exhausted,
                  std::to_string(kMaxRegions) + " regions are registered; register fewer, larger ones", kOperation);
    }
    region = storage_.emplace_back(std::make_unique<Region>()).get();
    region->key_.slot = static_cast<std::uint32_t>(storage_.size() - 1);
  }
  region->base_ = memory.data();
  region->length_ = memory.size();
  region->options_ = options;
  region->segment_ = std::move(segment);

  auto* word = validity_word(*validity_, region->key_.slot);
  RemoteKey key{.slot = region->key_.slot, .generation = word->load(std::memory_order_relaxed) + 1};
  randombytes_buf(&key.secret, sizeof key.secret);
  key.length = memory.size();
  key.address = reinterpret_cast<std::uintptr_t>(memory.data());
  if (region->segment_ != nullptr) {
    key.segment = region->segment_->id();
    key.segment_offset = static_cast<std::uint64_t>(memory.data() - region->segment_->data());
  }
  key.kind = options.kind;
  key.access = options.access;
  key.atomic_home = options.atomic_home;
  key.polled = options.polled ? 1 : 0;
  region->key_ = key;

  by_address_.emplace(memory.data(), region);
  slots_[key.slot].store(region, std::memory_order_release);
  digest_word(*validity_, key.slot)->store(digest(key), std::memory_order_relaxed);
  word->store(key.generation, std::memory_order_seq_cst);
  return region;
}

Errc RegionTable::check_key(const Segment& validity, const RemoteKey& key) noexcept {
  if (key.slot >= kMaxRegions) return Errc::not_registered;
  const auto* word = validity_word(validity, key.slot);
  if ((key.generation & 1U) == 0 || word->load(std::memory_order_acquire) != key.generation) return Errc::revoked;
  const bool same = digest_word(validity, key.slot)->load(std::memory_order_acquire) == digest(key);
  if (word->load(std::memory_order_relaxed) != key.generation) return Errc::revoked;  // another region's digest by now
  return same ? Errc::ok : Errc::not_registered;
}

void RegionTable::revoke(Region& region) noexcept {
  auto* word = validity_word(*validity_, region.key_.slot);
  std::uint32_t valid = region.key_.generation;
  word->compare_exchange_strong(valid, valid + 1, std::memory_order_seq_cst);
}

void RegionTable::remove(Region& region) noexcept {
  const std::lock_guard lock(mutex_);
  by_address_.erase(region.base_);
  region.segment_.reset();
  free_.push_back(region.key_.slot);
}

Region* RegionTable::covering(std::span<const std::byte> memory) const {
  const std::lock_guard lock(mutex_);
  auto it = by_address_.upper_bound(memory.data());
  if (it == by_address_.begin()) return nullptr;
  Region* region = std::prev(it)->second;
  const auto offset = static_cast<std::uint64_t>(memory.data() - region->data());
  return region->contains(offset, memory.size()) ? region : nullptr;
}

std::size_t RegionTable::size() const {
  const std::lock_guard lock(mutex_);
  return by_address_.size();
}

Errc RegionTable::acquire(const Request& request, Use& use) noexcept {
  if (request.slot >= kMaxRegions) return Errc::not_registered;
  Region* region = slots_[request.slot].load(std::memory_order_acquire);
  if (region == nullptr) return Errc::not_registered;
  // First hold, then look: whoever revokes looks at the holders after it has changed the word.
  region->uses_.fetch_add(1, std::memory_order_seq_cst);
  Use held(region, nullptr);
  const std::uint32_t valid = validity_word(*validity_, request.slot)->load(std::memory_order_seq_cst);
  if (valid != request.generation || (valid & 1U) == 0) return Errc::revoked;
  if (region->key_.secret != request.secret) return Errc::not_registered;
  if (!region->contains(request.offset, request.length)) return Errc::out_of_range;
  if (!allows(region->key_.access, request.access)) return Errc::permission_denied;
  held.data_ = region->base_ + request.offset;
  use = std::move(held);
  return Errc::ok;
}

}  // namespace dtr::inline v0
