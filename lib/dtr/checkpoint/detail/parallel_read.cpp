#include "dtr/checkpoint/detail/parallel_read.hpp"

#include <algorithm>
#include <thread>

#include "dtr/checkpoint/detail/step_reader.hpp"
#include "dtr/checkpoint/detail/worker_pool.hpp"

namespace dtr::inline v0 {
namespace checkpoint {

namespace {

constexpr std::uint64_t kWorthAThread = std::uint64_t{16} << 20;
constexpr unsigned kMostThreads = 4;

Result<void> in_parallel(std::size_t count, const WorkerPool::Task& task) {
  if (count == 1) return task(0);
  const auto threads = std::min<std::size_t>(count, std::clamp(std::thread::hardware_concurrency(), 1U, kMostThreads));
  try {
    return WorkerPool(static_cast<int>(threads)).run(count, task);
  } catch (const Exception& error) {
    return fail(error.error());
  }
}

/// The read cut along its first dimension into pieces of about kWorthAThread, each contiguous in the target.
void cut(const BoxRead& read, std::vector<BoxRead>& parts) {
  const std::uint64_t rows = read.box.extent.empty() ? 1 : read.box.extent[0];
  const std::uint64_t count = std::min(rows, read.target.size() / kWorthAThread);
  if (count <= 1) {
    parts.push_back(read);
    return;
  }
  const std::uint64_t row_bytes = read.target.size() / rows;
  for (std::uint64_t i = 0; i < count; ++i) {
    const auto first = rows / count * i + std::min(i, rows % count);
    const auto last = rows / count * (i + 1) + std::min(i + 1, rows % count);
    BoxRead part = read;
    part.box.offset[0] += first;
    part.box.extent[0] = last - first;
    part.target = read.target.subspan(first * row_bytes, (last - first) * row_bytes);
    parts.push_back(std::move(part));
  }
}

/// Neighbours together until they are worth a thread; first indexes, and the end.
std::vector<std::size_t> group(const std::vector<BoxRead>& parts) {
  std::vector<std::size_t> bounds{0};
  std::uint64_t bytes = 0;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    bytes += parts[i].target.size();
    if (bytes < kWorthAThread && i + 1 < parts.size()) continue;
    bounds.push_back(i + 1);
    bytes = 0;
  }
  return bounds;
}

}  // namespace

Result<void> read_boxes(const std::string& folder, const Manifest& manifest, const std::vector<BoxRead>& reads,
                        Deadline deadline) {
  std::vector<BoxRead> parts;
  for (const auto& read : reads) cut(read, parts);
  if (parts.empty()) return {};
  const auto bounds = group(parts);
  return in_parallel(bounds.size() - 1, [&](std::size_t task) -> Result<void> {
    StepReader reader(folder, manifest);
    for (std::size_t i = bounds[task]; i < bounds[task + 1]; ++i) {
      auto done = reader.read(*parts[i].tensor, parts[i].box, parts[i].target, deadline);
      if (!done) return done;
    }
    return {};
  });
}

Result<void> verify_share(const std::string& folder, const Manifest& manifest, int share, int parts,
                          Deadline deadline) {
  std::uint64_t bytes = 0;
  for (const auto& file : manifest.files) bytes += file.size;
  bytes /= static_cast<std::uint64_t>(parts);
  const int cuts = static_cast<int>(std::clamp<std::uint64_t>(bytes / kWorthAThread, 1, kMostThreads));
  return in_parallel(static_cast<std::size_t>(cuts), [&](std::size_t cut_index) -> Result<void> {
    return StepReader(folder, manifest)
        .verify_share(share * cuts + static_cast<int>(cut_index), parts * cuts, deadline);
  });
}

Result<void> verify_step(const std::string& folder, std::uint64_t step, Deadline deadline) {
  const auto manifest = read_manifest(folder, step);
  if (!manifest) return fail(manifest.error());
  return verify_share(folder, *manifest, 0, 1, deadline);
}

}  // namespace checkpoint
}  // namespace dtr::inline v0
