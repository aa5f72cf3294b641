#include "dtr/checkpoint/detail/manifest.hpp"

#include <algorithm>

#include "dtr/checkpoint/detail/geometry.hpp"
#include "dtr/checkpoint/detail/names.hpp"

namespace dtr::inline v0 {
namespace checkpoint {

std::string FileEntry::name() const { return rank_file_name(rank); }

const TensorEntry* Manifest::find(std::string_view name) const noexcept {
  const auto at =
      std::lower_bound(tensors.begin(), tensors.end(), name,
                       [](const TensorEntry& entry, std::string_view key) { return entry.info.name < key; });
  return at != tensors.end() && at->info.name == name ? &*at : nullptr;
}

std::uint64_t piece_count(std::uint64_t length, std::uint64_t piece_bytes) noexcept {
  return length / piece_bytes + (length % piece_bytes != 0 ? 1 : 0);
}

namespace {

Result<void> wrong(Errc code, std::string message) { return fail(code, std::move(message), "save"); }

/// Boxes that share no element, and together are the whole tensor.
Result<void> check_cover(const TensorEntry& tensor, const std::vector<FileEntry>& files) {
  std::vector<const ShardEntry*> shards;
  std::uint64_t covered = 0;
  for (const auto& shard : tensor.shards) {
    if (shard.length == 0) continue;
    covered += *volume(shard.box.extent);
    shards.push_back(&shard);
  }
  const auto first = [](const ShardEntry& shard) { return shard.box.offset.empty() ? 0 : shard.box.offset[0]; };
  std::sort(shards.begin(), shards.end(),
            [&](const ShardEntry* a, const ShardEntry* b) { return first(*a) < first(*b); });
  for (std::size_t i = 0; i < shards.size(); ++i) {
    const auto end = shards[i]->box.offset.empty() ? 1 : shards[i]->box.offset[0] + shards[i]->box.extent[0];
    for (std::size_t k = i + 1; k < shards.size() && first(*shards[k]) < end; ++k) {
      if (!intersect(shards[i]->box, shards[k]->box)) continue;
      return wrong(Errc::overlap, "tensor '" + tensor.info.name + "': box " + to_string(shards[i]->box) + " of rank " +
                                      std::to_string(files[shards[i]->file].rank) + " overlaps box " +
                                      to_string(shards[k]->box) + " of rank " +
                                      std::to_string(files[shards[k]->file].rank));
    }
  }
  const auto whole = volume(tensor.info.global_shape);
  if (!whole || covered != *whole) {
    return wrong(Errc::invalid_argument, "tensor '" + tensor.info.name + "' of shape " +
                                             shape_string(tensor.info.global_shape) + " is not whole: the ranks hold " +
                                             std::to_string(covered) + " of its elements");
  }
  return {};
}

}  // namespace

Result<Manifest> merge_manifests(std::vector<Manifest> parts) {
  Manifest whole;
  if (!parts.empty()) {
    whole.step = parts.front().step;
    whole.world = parts.front().world;
    whole.piece_bytes = parts.front().piece_bytes;
  }
  for (auto& part : parts) {
    if (part.step != whole.step || part.world != whole.world || part.piece_bytes != whole.piece_bytes) {
      return fail(Errc::invalid_argument, "the ranks save different steps or worlds", "save");
    }
    const std::size_t base = whole.files.size();
    whole.files.insert(whole.files.end(), part.files.begin(), part.files.end());
    for (auto& tensor : part.tensors) {
      for (auto& shard : tensor.shards) shard.file += base;
      whole.tensors.push_back(std::move(tensor));
    }
  }

  std::stable_sort(whole.tensors.begin(), whole.tensors.end(),
                   [](const TensorEntry& a, const TensorEntry& b) { return a.info.name < b.info.name; });
  std::vector<TensorEntry> merged;
  for (auto& tensor : whole.tensors) {
    if (merged.empty() || merged.back().info.name != tensor.info.name) {
      merged.push_back(std::move(tensor));
      continue;
    }
    auto& known = merged.back();
    if (known.info.dtype != tensor.info.dtype || known.info.global_shape != tensor.info.global_shape) {
      return fail(Errc::invalid_argument,
                  "tensor '" + tensor.info.name + "' is " + std::string(dtr::to_string(known.info.dtype)) +
                      shape_string(known.info.global_shape) + " on rank " +
                      std::to_string(whole.files[known.shards.front().file].rank) + " and " +
                      std::string(dtr::to_string(tensor.info.dtype)) + shape_string(tensor.info.global_shape) +
                      " on rank " + std::to_string(whole.files[tensor.shards.front().file].rank),
                  "save");
    }
    std::move(tensor.shards.begin(), tensor.shards.end(), std::back_inserter(known.shards));
  }
  whole.tensors = std::move(merged);

  for (std::size_t i = 0; i < whole.tensors.size(); ++i) {
    auto covered = check_cover(whole.tensors[i], whole.files);
    if (!covered) return fail(covered.error());
    // A group and a dataset of one name cannot both be in an HDF5 file.
    const std::string group = whole.tensors[i].info.name + "/";
    const auto below =
        std::lower_bound(whole.tensors.begin(), whole.tensors.end(), group,
                         [](const TensorEntry& entry, const std::string& key) { return entry.info.name < key; });
    if (below != whole.tensors.end() && below->info.name.starts_with(group)) {
      return fail(Errc::invalid_argument,
                  "'" + whole.tensors[i].info.name + "' is a tensor and also the folder of '" + below->info.name + "'",
                  "save");
    }
  }
  return whole;
}

}  // namespace checkpoint
}  // namespace dtr::inline v0
