#include "dtr/fabric/shm/imports.hpp"

#include <bit>
#include <optional>
#include <utility>

#include "dtr/base/log.hpp"
#include "dtr/fabric/shm/socket.hpp"

namespace dtr::inline v0 {
namespace fabric::shm {

namespace {

constexpr std::size_t kMaxAsked = 32;  ///< so that neither side's socket ever fills up

}  // namespace

Result<const Imported*> Imports::get(const RemoteKey& key) {
  if (key.kind == MemoryKind::cuda) return fail(Errc::unsupported, "GPU memory has to be staged", "import");
  const std::lock_guard lock(mutex_);
  auto& entry = regions_[std::bit_cast<KeyBytes>(key)];
  if (entry != nullptr) return entry.get();
  entry = std::make_unique<Imported>();
  entry->key = key;
  if (validity_ != nullptr) judge(*entry);
  return entry.get();
}

void Imports::open(std::shared_ptr<Segment> validity) {
  const std::lock_guard lock(mutex_);
  validity_ = std::move(validity);
  for (auto& [key, region] : regions_) judge(*region);
}

void Imports::judge(Imported& region) {
  const Errc verdict = RegionTable::check_key(*validity_, region.key);
  if (verdict == Errc::ok) {
    region.validity.store(RegionTable::validity_word(*validity_, region.key.slot), std::memory_order_release);
    if (region.key.segment != 0) want(region);
  }
  region.verdict.store(verdict, std::memory_order_release);
}

void Imports::want(Imported& region) {
  auto [segment, is_new] = segments_.try_emplace(region.key.segment);
  switch (segment->second.stage) {
    case Stage::wanted:
    case Stage::asked:
      region.mapping_expected.store(true, std::memory_order_relaxed);
      if (is_new) has_questions_.store(true, std::memory_order_release);
      break;
    case Stage::mapped:
      attach(region, *segment->second.mapping);
      break;
    case Stage::refused:
      break;
  }
}

void Imports::attach(Imported& region, const Segment& mapping) noexcept {
  const RemoteKey& key = region.key;
  if (key.segment_offset > mapping.length() || key.length > mapping.length() - key.segment_offset) return;
  region.mapped.store(mapping.data() + key.segment_offset, std::memory_order_release);
}

bool Imports::ask(int socket) {
  const std::lock_guard lock(mutex_);
  bool left_over = false;
  for (auto& [id, segment] : segments_) {
    if (segment.stage != Stage::wanted) continue;
    if (asked_ == kMaxAsked) {
      left_over = true;
      break;
    }
    if (!send_value(socket, Message{.type = MessageType::ask, .segment = id})) return false;
    segment.stage = Stage::asked;
    ++asked_;
  }
  // What is left over is asked for when an answer has come.
  has_questions_.store(left_over && asked_ < kMaxAsked, std::memory_order_release);
  return true;
}

Result<void> Imports::answer(const Message& message, std::vector<UniqueFd>& fds) {
  // Takes long for a large one: callers that only look up a key shall not wait for it.
  std::optional<Result<std::shared_ptr<Segment>>> mapping;
  if (!fds.empty()) mapping = Segment::map(message.segment, std::move(fds.front()));
  const std::lock_guard lock(mutex_);
  const auto segment = segments_.find(message.segment);
  if (segment == segments_.end() || segment->second.stage != Stage::asked) {
    return fail(Errc::protocol_error, "an answer to no question", "import");
  }
  --asked_;
  has_questions_.store(true, std::memory_order_release);
  segment->second.stage = Stage::refused;
  if (mapping && *mapping) {
    segment->second = {.stage = Stage::mapped, .mapping = std::move(**mapping)};
  } else if (mapping) {
    DTR_LOG_WARN("shm: a peer's memory is not mapped, and reached more slowly: ", mapping->error().to_string());
  }
  for (auto& [key, region] : regions_) {
    if (region->key.segment != message.segment || region->verdict.load(std::memory_order_relaxed) != Errc::ok) continue;
    if (segment->second.mapping != nullptr) attach(*region, *segment->second.mapping);
    region->mapping_expected.store(false, std::memory_order_release);
  }
  if (segment->second.stage == Stage::refused && message.code != 0) segments_.erase(segment);  // gone at the peer
  return {};
}

void Imports::unmap(std::uint64_t id) {
  const std::lock_guard lock(mutex_);
  const auto segment = segments_.find(id);
  if (segment == segments_.end() || segment->second.stage != Stage::mapped) return;
  for (auto& [key, region] : regions_) {
    if (region->key.segment == id) region->mapped.store(nullptr, std::memory_order_release);
  }
  // The owner waited for the flags of what it had registered before. Who copies here just now does so for what it has
  // registered since, so the mapping goes later.
  dying_.push_back(std::move(segment->second.mapping));
  dying_are_unseen_ = false;
  segments_.erase(segment);
  for (auto& [key, region] : regions_) {
    // Registered since then: the segment lives on at the peer, so it is asked for again.
    if (region->key.segment == id && RegionTable::check_key(*validity_, region->key) == Errc::ok) want(*region);
  }
}

void Imports::release_unmapped(const FlagLines& lines, PeerId peer) noexcept {
  if (dying_.empty()) return;
  if (!std::exchange(dying_are_unseen_, true)) heavy_barrier();
  if (!lines.inside(peer)) dying_.clear();
}

}  // namespace fabric::shm
}  // namespace dtr::inline v0
