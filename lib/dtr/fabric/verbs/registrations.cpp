#include "dtr/fabric/verbs/registrations.hpp"

#include <algorithm>
#include <cerrno>
#include <functional>
#include <thread>
#include <utility>

#include <sys/mman.h>
#include <unistd.h>

#include "dtr/base/thread.hpp"
#include "dtr/fabric/verbs/limits.hpp"
#include "dtr/fabric/verbs/nodes.hpp"

namespace dtr::inline v0 {
namespace fabric::verbs {

namespace {

constexpr const char* kOperation = "register memory";
constexpr std::uint64_t kLarge = 256ULL << 20;  ///< pinning takes about 0.1 s a GiB: in parallel from here on
constexpr std::uint64_t kMostHelpers = 8;

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

/// Runs the work on a thread of its own, or at once where there is none to be had.
void in_parallel(std::vector<Thread>& helpers, const std::function<void()>& work) {
  try {
    helpers.emplace_back([work](const std::stop_token&) { work(); }, ThreadOptions{.name = "dtr-register"});
  } catch (const Exception&) {
    work();
  }
}

/// Has the kernel make the pages that are not there yet, by several threads: reg_mr would do it with one. What cannot
/// be made is not told here: reg_mr meets it again.
void make_pages(std::span<std::byte> memory) {
  const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  const std::size_t before = reinterpret_cast<std::uintptr_t>(memory.data()) % page;
  std::byte* const first = memory.data() - before;
  const std::size_t bytes = (before + memory.size() + page - 1) / page * page;
  const std::size_t count = std::clamp<std::size_t>(std::thread::hardware_concurrency(), 1, kMostHelpers);
  const std::size_t share = (bytes / count + page - 1) / page * page;
  std::vector<Thread> helpers;
  for (std::size_t at = 0; at < bytes; at += share) {
    const std::span part(first + at, std::min(share, bytes - at));
    in_parallel(helpers, [part] { ::madvise(part.data(), part.size(), MADV_POPULATE_WRITE); });
  }
}

/// A piece of the region, cut as the key says; empty behind the end.
std::span<std::byte> cut_out(const Region& region, const RemoteKey& cut, std::uint32_t piece) noexcept {
  std::uint64_t begin = 0;
  while (piece-- > 0) begin += std::min(cut.left_of_piece(begin), region.length() - begin);
  return region.span().subspan(begin, std::min(cut.left_of_piece(begin), region.length() - begin));
}

}  // namespace

std::uint32_t Registrations::find_near(const Region& region) const {
  const int node = region.options().numa_node >= 0 ? region.options().numa_node : node_of_memory(region.data());
  std::vector<int> distances;
  for (const auto& nic : nics_) distances.push_back(node_distance(node, nic->numa_node()));
  const int least = *std::min_element(distances.begin(), distances.end());
  std::uint32_t near = 0;
  for (std::size_t i = 0; i < distances.size(); ++i) {
    if (distances[i] == least) near |= 1U << i;
  }
  return near;
}

Result<std::uint8_t> Registrations::count_pieces(const Region& region) const {
  const auto strictest = std::min_element(nics_.begin(), nics_.end(), [](const auto& a, const auto& b) {
    return a->attributes().max_mr_size < b->attributes().max_mr_size;
  });
  const std::uint64_t most = (*strictest)->attributes().max_mr_size;
  if (region.length() <= most) return 1;
  RemoteKey cut = region.key();
  for (cut.pieces = 2; cut.pieces * nics_.size() <= RemoteKey::kMaxRails; ++cut.pieces) {
    if (cut.piece_bytes() <= most) return cut.pieces;
  }
  return fail(Errc::resource_exhausted,
              std::to_string(region.length()) + " bytes of memory: " + (*strictest)->name() + " registers " +
                  std::to_string(most) + " bytes at once (max_mr_size), and a region's key names " +
                  std::to_string(RemoteKey::kMaxRails / nics_.size()) +
                  " such pieces of each device; register it in parts",
              kOperation);
}

Result<MemoryRegion> Registrations::register_with(Nic& nic, const Region& region, std::span<std::byte> piece) {
  const RegionOptions& options = region.options();
  const std::string what = std::to_string(piece.size()) + " bytes of memory";
  if (options.kind == MemoryKind::cuda && options.dmabuf_fd < 0) {
    return fail(Errc::unsupported, "GPU memory without a dmabuf descriptor is staged through host memory", kOperation);
  }
  unsigned access = access_of(options);
  ibv_mr* mr = nullptr;
  for (int attempt = 0; attempt < 2 && mr == nullptr; ++attempt) {
    if (options.dmabuf_fd >= 0) {
      mr = nic.api().reg_dmabuf_mr(nic.protection_domain(), static_cast<std::uint64_t>(piece.data() - region.data()),
                                   piece.size(), reinterpret_cast<std::uintptr_t>(piece.data()), options.dmabuf_fd,
                                   access);
    } else {
      mr = nic.api().reg_mr(nic.protection_domain(), piece.data(), piece.size(), access);
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
  const auto pieces = count_pieces(region);
  if (!pieces) return fail(pieces.error());
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
  if (region.length() >= kLarge && region.options().kind == MemoryKind::host && region.options().dmabuf_fd < 0) {
    make_pages(region.span());
  }
  RemoteKey cut = region.key();
  cut.pieces = *pieces;
  const std::size_t count = nics_.size() * cut.pieces;
  std::vector<Result<MemoryRegion>> made;
  for (std::size_t i = 0; i < count; ++i) made.emplace_back(MemoryRegion());
  const auto register_one = [&](std::size_t i) {
    const std::span<std::byte> piece = cut_out(region, cut, static_cast<std::uint32_t>(i % cut.pieces));
    if (!piece.empty() || cut.pieces == 1) made[i] = register_with(*nics_[i / cut.pieces], region, piece);
  };
  std::vector<Thread> helpers;
  for (std::size_t i = 1; i < count; ++i) {
    if (region.length() < kLarge) {
      register_one(i);
    } else {
      in_parallel(helpers, [&register_one, i] { register_one(i); });
    }
  }
  register_one(0);
  helpers.clear();  // joins

  std::array<std::uint32_t, RemoteKey::kMaxRails> rkeys{};
  for (std::size_t i = 0; i < count; ++i) {
    if (made[i] && !*made[i]) continue;  // rounding up to pages has left nothing for the last piece
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
  entry->near = nics_.size() > 1 ? find_near(region) : ~0U;
  region.set_device_keys(cut.pieces, rkeys);
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
