#include "dtr/checkpoint/detail/rank_file.hpp"

#include <algorithm>

#include <hdf5.h>

#include "dtr/checkpoint/detail/checksum.hpp"
#include "dtr/checkpoint/detail/geometry.hpp"
#include "dtr/checkpoint/detail/hdf5_image.hpp"
#include "dtr/storage/hdf5_lock.hpp"

namespace dtr::inline v0 {
namespace checkpoint {

namespace {

/// Contiguous, allotted at once, never filled: HDF5 then writes nothing where the data goes.
Hid contiguous_creation() {
  Hid list = dataset_creation();
  const bool made = list && H5Pset_layout(list.get(), H5D_CONTIGUOUS) >= 0 &&
                    H5Pset_alloc_time(list.get(), H5D_ALLOC_TIME_EARLY) >= 0 &&
                    H5Pset_fill_time(list.get(), H5D_FILL_TIME_NEVER) >= 0;
  return made ? std::move(list) : Hid();
}

Result<std::vector<std::uint64_t>> create_datasets(const Hid& file, std::span<const DatasetSpec> datasets) {
  const Hid links = link_creation();
  const Hid creation = contiguous_creation();
  if (!links || !creation) return fail(hdf5_error("property lists"));
  std::vector<std::uint64_t> positions;
  for (const auto& spec : datasets) {
    const std::vector<hsize_t> sides(spec.extent.begin(), spec.extent.end());
    const Hid space(
        sides.empty() ? H5Screate(H5S_SCALAR) : H5Screate_simple(static_cast<int>(sides.size()), sides.data(), nullptr),
        H5Sclose);
    const Hid type = hdf5_type(spec.dtype);
    if (!space || !type) return fail(hdf5_error("type of '" + spec.name + "'"));
    const Hid dataset(
        H5Dcreate2(file.get(), spec.name.c_str(), type.get(), space.get(), links.get(), creation.get(), H5P_DEFAULT),
        H5Dclose);
    if (!dataset) return fail(hdf5_error("create dataset '" + spec.name + "'"));
    const bool empty = volume(spec.extent) == 0;
    const haddr_t position = empty ? 0 : H5Dget_offset(dataset.get());
    if (position == HADDR_UNDEF) return fail(hdf5_error("position of '" + spec.name + "'"));
    positions.push_back(position);
  }
  return positions;
}

constexpr std::uint64_t kPart = std::uint64_t{1} << 20;

}  // namespace

std::vector<Stretch> gaps(std::vector<Stretch> taken, std::uint64_t size) {
  std::sort(taken.begin(), taken.end(), [](const Stretch& a, const Stretch& b) { return a.begin < b.begin; });
  std::vector<Stretch> left;
  std::uint64_t at = 0;
  for (const auto& stretch : taken) {
    if (stretch.bytes == 0) continue;
    if (stretch.begin > at) left.push_back({.begin = at, .bytes = stretch.begin - at});
    at = std::max(at, stretch.begin + stretch.bytes);
  }
  if (size > at) left.push_back({.begin = at, .bytes = size - at});
  return left;
}

Result<std::uint64_t> checksum_of(std::span<const Stretch> stretches,
                                  const std::function<Result<void>(std::uint64_t, std::span<std::byte>)>& read) {
  Checksum sum;
  std::vector<std::byte> part;
  for (const auto& stretch : stretches) {
    for (std::uint64_t done = 0; done < stretch.bytes; done += part.size()) {
      part.resize(std::min(kPart, stretch.bytes - done));
      auto got = read(stretch.begin + done, part);
      if (!got) return fail(got.error());
      sum.update(part);
    }
  }
  return sum.value();
}

Result<FileLayout> lay_out_rank_file(std::span<const DatasetSpec> datasets) {
  SparseImage image;
  FileLayout layout;
  {
    const auto lock = storage::hdf5_lock();
    const QuietHdf5 quiet;
    auto file = create_in_memory(image);
    if (!file) return fail(file.error());
    auto positions = create_datasets(*file, datasets);
    if (!positions) return fail(positions.error());
    if (!file->close()) return fail(hdf5_error("close the file in memory"));
    layout.positions = std::move(*positions);
  }
  layout.size = image.size();

  std::vector<Stretch> taken;
  for (std::size_t i = 0; i < datasets.size(); ++i) {
    taken.push_back({.begin = layout.positions[i], .bytes = *volume(datasets[i].extent) * size_of(datasets[i].dtype)});
  }
  const auto around = gaps(std::move(taken), layout.size);
  auto structure = checksum_of(around, [&](std::uint64_t offset, std::span<std::byte> part) -> Result<void> {
    image.read(offset, part.data(), part.size());
    const bool zero = std::all_of(part.begin(), part.end(), [](std::byte b) { return b == std::byte{0}; });
    if (!zero) layout.segments.push_back({.offset = offset, .bytes = {part.begin(), part.end()}});
    return {};
  });
  if (!structure) return fail(structure.error());
  layout.structure = *structure;
  return layout;
}

}  // namespace checkpoint
}  // namespace dtr::inline v0
