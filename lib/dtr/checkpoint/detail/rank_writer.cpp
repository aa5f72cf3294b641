#include "dtr/checkpoint/detail/rank_writer.hpp"

#include <algorithm>
#include <atomic>
#include <cerrno>

#include <fcntl.h>
#include <unistd.h>

#include "dtr/base/log.hpp"
#include "dtr/checkpoint/detail/checksum.hpp"
#include "dtr/checkpoint/detail/names.hpp"
#include "dtr/storage/local_file.hpp"

namespace dtr::inline v0 {
namespace checkpoint {

namespace {

/// Alignment of memory, file offset and length that suits O_DIRECT on every device.
constexpr std::uint64_t kDirectAlignment = 4096;
/// From this size on, disk blocks are taken before the data comes, so that a full disk shows at once.
constexpr std::uint64_t kAllotFrom = std::uint64_t{1} << 20;

struct Piece {
  std::size_t tensor;
  std::size_t index;
};

std::vector<Piece> pieces_of(const Manifest& manifest) {
  std::vector<Piece> pieces;
  for (std::size_t tensor = 0; tensor < manifest.tensors.size(); ++tensor) {
    const auto count = manifest.tensors[tensor].shards.front().pieces.size();
    for (std::size_t index = 0; index < count; ++index) pieces.push_back({.tensor = tensor, .index = index});
  }
  return pieces;
}

Manifest empty_part(const RankWriter::Job& job) {
  Manifest part;
  part.step = job.step;
  part.world = job.world;
  return part;
}

}  // namespace

struct RankWriter::Output {
  std::string path;
  UniqueFd file;
  UniqueFd direct;  ///< the same file past the page cache; none where the file system cannot

  /// The aligned front part by O_DIRECT, the rest through the page cache.
  [[nodiscard]] Result<void> write(std::uint64_t position, std::span<const std::byte> data) const {
    const bool aligned =
        position % kDirectAlignment == 0 && reinterpret_cast<std::uintptr_t>(data.data()) % kDirectAlignment == 0;
    const std::size_t front = direct && aligned ? data.size() / kDirectAlignment * kDirectAlignment : 0;
    if (front > 0) {
      auto done = storage::write_at(direct.get(), position, data.first(front), path);
      if (!done) return done;
    }
    return storage::write_at(file.get(), position + front, data.subspan(front), path);
  }
};

Result<const FileLayout*> RankWriter::layout_of(const RankPlan& plan) {
  std::vector<DatasetSpec> specs;
  for (const auto& tensor : plan.tensors) {
    specs.push_back({.name = tensor.info.name, .dtype = tensor.info.dtype, .extent = tensor.box.extent});
  }
  if (layout_ && specs == specs_) return &*layout_;
  auto layout = lay_out_rank_file(specs);
  if (!layout) return fail(layout.error());
  specs_ = std::move(specs);
  layout_ = std::move(*layout);
  return &*layout_;
}

Result<RankWriter::Output> RankWriter::create(const std::string& path, const Job& job, const FileLayout& layout) {
  Output output{.path = path, .file = {}, .direct = {}};
  auto file = storage::open_file(path, O_RDWR | O_CREAT | O_EXCL);
  if (!file) return fail(file.error());
  output.file = std::move(*file);
  if (::ftruncate(output.file.get(), static_cast<off_t>(layout.size)) != 0) {
    return fail(errno_error(errno, "set the size of " + path, "save"));
  }
  for (std::size_t i = 0; i < job.plan->tensors.size(); ++i) {
    const auto bytes = job.plan->tensors[i].bytes;
    if (bytes < kAllotFrom) continue;
    const auto position = static_cast<off_t>(layout.positions[i]);
    if (::fallocate(output.file.get(), 0, position, static_cast<off_t>(bytes)) == 0) continue;
    if (errno == EOPNOTSUPP || errno == ENOSYS || errno == EINTR) break;  // only an optimisation
    return fail(errno_error(errno, "take " + std::to_string(bytes) + " bytes of disk for " + path, "save"));
  }
  for (const auto& segment : layout.segments) {
    auto done = storage::write_at(output.file.get(), segment.offset, segment.bytes, path);
    if (!done) return fail(done.error());
  }
  if (direct_io_ && job.plan->staging_bytes >= kAllotFrom) {
    auto direct = storage::open_file(path, O_WRONLY | O_DIRECT);
    if (direct) {
      output.direct = std::move(*direct);
    } else {
      DTR_LOG_DEBUG("checkpoint: no O_DIRECT, writing through the page cache: ", direct.error().message);
    }
  }
  return output;
}

Result<void> RankWriter::write_pieces(const Output& output, const Job& job, Manifest& manifest) {
  const auto pieces = pieces_of(manifest);
  std::atomic<std::uint64_t> written{0};
  return workers_.run(pieces.size(), [&](std::size_t i) -> Result<void> {
    if (auto go_on = job.check(); !go_on) return go_on;
    auto& shard = manifest.tensors[pieces[i].tensor].shards.front();
    const std::uint64_t begin = pieces[i].index * kPieceBytes;
    const std::uint64_t bytes = std::min(kPieceBytes, shard.length - begin);
    const auto data = job.staging.subspan(job.plan->tensors[pieces[i].tensor].staging + begin, bytes);
    shard.pieces[pieces[i].index] = checksum(data);
    auto done = output.write(shard.position + begin, data);
    if (done && job.progress) job.progress(written += bytes);
    return done;
  });
}

Result<Manifest> RankWriter::write(const Job& job) {
  Manifest part = empty_part(job);
  if (job.plan->tensors.empty()) return part;
  const auto layout = layout_of(*job.plan);
  if (!layout) return fail(layout.error());

  part.files.push_back({.rank = job.rank, .size = (*layout)->size, .structure = (*layout)->structure});
  for (std::size_t i = 0; i < job.plan->tensors.size(); ++i) {
    const auto& tensor = job.plan->tensors[i];
    ShardEntry shard{.file = 0,
                     .box = tensor.box,
                     .position = (*layout)->positions[i],
                     .length = tensor.bytes,
                     .pieces = std::vector<std::uint64_t>(piece_count(tensor.bytes, kPieceBytes))};
    part.tensors.push_back({.info = tensor.info, .shards = {std::move(shard)}});
  }

  if (auto go_on = job.check(); !go_on) return fail(go_on.error());
  const auto output = create(job.folder + "/" + rank_file_name(job.rank), job, **layout);
  if (!output) return fail(output.error());
  auto done = write_pieces(*output, job, part);
  if (done) done = storage::sync_file(output->file.get(), output->path);
  if (!done) return fail(done.error());
  return part;
}

}  // namespace checkpoint
}  // namespace dtr::inline v0
