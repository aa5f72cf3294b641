#include "dtr/checkpoint/detail/step_reader.hpp"

#include <algorithm>

#include <fcntl.h>

#include "dtr/checkpoint/detail/checksum.hpp"
#include "dtr/checkpoint/detail/geometry.hpp"
#include "dtr/checkpoint/detail/names.hpp"
#include "dtr/checkpoint/detail/rank_file.hpp"
#include "dtr/storage/local_file.hpp"

namespace dtr::inline v0 {
namespace checkpoint {

namespace {

/// 100 bytes a shard and piece: room for tens of millions, and a bound on what a broken file can make us allocate.
constexpr std::uint64_t kLargestManifest = std::uint64_t{4} << 30;

constexpr std::size_t kMostOpen = 64;  // a job of thousands of ranks has thousands of files

Result<void> in_time(Deadline deadline) {
  if (deadline.passed()) return fail(Errc::timed_out, "reading the checkpoint took too long", "load");
  return {};
}

}  // namespace

Result<Manifest> read_manifest(const std::string& folder, std::uint64_t step) {
  const std::string path = folder + "/" + std::string(kManifestName);
  const auto text = storage::read_small_file(path, kLargestManifest);
  if (!text) return fail(text.error());
  auto manifest = decode_manifest(*text);
  if (!manifest) return fail(manifest.error().code, path + ": " + manifest.error().message, "manifest");
  if (manifest->step != step) {
    return fail(Errc::corrupt, path + " is about step " + std::to_string(manifest->step), "manifest");
  }
  return manifest;
}

bool is_damage(Errc code) noexcept {
  return code == Errc::not_found || code == Errc::corrupt || code == Errc::truncated || code == Errc::io_error;
}

std::string StepReader::path(std::size_t file) const { return folder_ + "/" + manifest_.files[file].name(); }

Result<int> StepReader::open(std::size_t file) {
  if (const auto known = files_.find(file); known != files_.end()) return known->second.get();
  if (files_.size() >= kMostOpen) files_.clear();
  auto opened = storage::open_file(path(file), O_RDONLY);
  if (!opened) return fail(opened.error());
  const auto size = storage::file_size(opened->get(), path(file));
  if (!size) return fail(size.error());
  if (*size != manifest_.files[file].size) {
    return fail(Errc::truncated,
                path(file) + " has " + std::to_string(*size) + " bytes, the manifest says " +
                    std::to_string(manifest_.files[file].size),
                "load");
  }
  return files_.emplace(file, std::move(*opened)).first->second.get();
}

std::uint64_t StepReader::piece_bytes(const ShardEntry& shard, std::uint64_t piece) const {
  return std::min(manifest_.piece_bytes, shard.length - piece * manifest_.piece_bytes);
}

Result<void> StepReader::read_piece(const TensorEntry& tensor, const ShardEntry& shard, std::uint64_t piece,
                                    std::span<std::byte> target, Deadline deadline) {
  if (auto early = in_time(deadline); !early) return early;
  const auto fd = open(shard.file);
  if (!fd) return fail(fd.error());
  const auto position = shard.position + piece * manifest_.piece_bytes;
  if (auto done = storage::read_at(*fd, position, target, path(shard.file)); !done) return done;
  if (checksum(target) == shard.pieces[piece]) return {};
  return fail(Errc::corrupt,
              "tensor '" + tensor.info.name + "': checksum of bytes " + std::to_string(position) + " to " +
                  std::to_string(position + target.size()) + " of " + path(shard.file) + " does not match",
              "load");
}

Result<void> StepReader::read_from_shard(const TensorEntry& tensor, const ShardEntry& shard, const Box& common,
                                         const Box& box, std::span<std::byte> target, Deadline deadline) {
  const auto element = size_of(tensor.info.dtype);
  std::optional<std::uint64_t> in_scratch;
  // Runs come in the order of the file, so each piece is read once.
  return for_each_run(common, shard.box, box, element, [&](Run run) -> Result<void> {
    while (run.bytes > 0) {
      const auto piece = run.source / manifest_.piece_bytes;
      const auto within = run.source % manifest_.piece_bytes;
      const auto whole = piece_bytes(shard, piece);
      const auto bytes = std::min(run.bytes, whole - within);
      const auto to = target.subspan(run.target, bytes);
      if (bytes == whole) {
        if (auto done = read_piece(tensor, shard, piece, to, deadline); !done) return done;
      } else {
        if (in_scratch != piece) {
          in_scratch.reset();
          scratch_.resize(whole);
          auto done = read_piece(tensor, shard, piece, scratch_, deadline);
          if (!done) return done;
          in_scratch = piece;
        }
        std::copy_n(scratch_.begin() + static_cast<std::ptrdiff_t>(within), bytes, to.begin());
      }
      run.source += bytes;
      run.target += bytes;
      run.bytes -= bytes;
    }
    return {};
  });
}

Result<void> StepReader::read(const TensorEntry& tensor, const Box& box, std::span<std::byte> target,
                              Deadline deadline) {
  std::uint64_t found = 0;
  for (const auto& shard : tensor.shards) {
    if (shard.length == 0) continue;
    const auto common = intersect(shard.box, box);
    if (!common) continue;
    found += *volume(common->extent);
    auto done = read_from_shard(tensor, shard, *common, box, target, deadline);
    if (!done) return done;
  }
  // Whoever wrote the manifest saw that each tensor is whole; this is for those that were made otherwise.
  if (found != volume(box.extent)) {
    return fail(Errc::corrupt, "tensor '" + tensor.info.name + "': no shard has all of box " + to_string(box), "load");
  }
  return {};
}

Result<void> StepReader::check_sizes() {
  for (std::size_t file = 0; file < manifest_.files.size(); ++file) {
    const auto fd = open(file);
    if (!fd) return fail(fd.error());
    files_.erase(file);
  }
  return {};
}

Result<void> StepReader::verify_structure(std::size_t file, std::vector<Stretch> taken, Deadline deadline) {
  const auto fd = open(file);
  if (!fd) return fail(fd.error());
  const auto sum = checksum_of(gaps(std::move(taken), manifest_.files[file].size),
                               [&](std::uint64_t offset, std::span<std::byte> part) -> Result<void> {
                                 if (auto early = in_time(deadline); !early) return early;
                                 return storage::read_at(*fd, offset, part, path(file));
                               });
  if (!sum) return fail(sum.error());
  if (*sum == manifest_.files[file].structure) return {};
  return fail(Errc::corrupt, "checksum of the HDF5 metadata in " + path(file) + " does not match", "load");
}

Result<void> StepReader::verify_share(int share, int parts, Deadline deadline) {
  const auto index = static_cast<std::uint64_t>(share);
  const auto count = static_cast<std::uint64_t>(parts);
  std::vector<std::vector<Stretch>> taken(manifest_.files.size());
  for (const auto& tensor : manifest_.tensors) {
    for (const auto& shard : tensor.shards) {
      taken[shard.file].push_back({.begin = shard.position, .bytes = shard.length});
    }
  }
  for (std::uint64_t file = index; file < manifest_.files.size(); file += count) {
    if (auto done = verify_structure(file, std::move(taken[file]), deadline); !done) return done;
  }
  // Neighbouring pieces go to one rank: it opens few files and reads in long stretches.
  std::uint64_t total = 0;
  for (const auto& tensor : manifest_.tensors) {
    for (const auto& shard : tensor.shards) total += shard.pieces.size();
  }
  const std::uint64_t first = total / count * index + std::min(index, total % count);
  const std::uint64_t last = first + total / count + (index < total % count ? 1 : 0);
  std::uint64_t at = 0;
  for (const auto& tensor : manifest_.tensors) {
    for (const auto& shard : tensor.shards) {
      const auto begin = at;
      at += shard.pieces.size();
      if (at <= first || begin >= last) continue;
      for (std::uint64_t piece = std::max(first, begin) - begin; piece < std::min(last, at) - begin; ++piece) {
        scratch_.resize(piece_bytes(shard, piece));
        if (auto done = read_piece(tensor, shard, piece, scratch_, deadline); !done) return done;
      }
    }
  }
  return {};
}

}  // namespace checkpoint
}  // namespace dtr::inline v0
