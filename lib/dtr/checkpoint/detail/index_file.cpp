#include "dtr/checkpoint/detail/index_file.hpp"

#include <algorithm>

#include <hdf5.h>

#include "dtr/checkpoint/detail/geometry.hpp"
#include "dtr/checkpoint/detail/hdf5_image.hpp"
#include "dtr/storage/hdf5_lock.hpp"

namespace dtr::inline v0 {
namespace checkpoint {

namespace {

/// H5Pset_virtual reads '%' as the start of a block number.
std::string escaped(const std::string& name) {
  std::string text;
  for (const char c : name) text += c == '%' ? std::string("%%") : std::string(1, c);
  return text;
}

std::vector<hsize_t> sides(const Shape& shape) { return {shape.begin(), shape.end()}; }

Hid simple_space(const Shape& shape) {
  const auto dimensions = sides(shape);
  return {H5Screate_simple(static_cast<int>(dimensions.size()), dimensions.data(), nullptr), H5Sclose};
}

bool add_virtual(const Hid& file, const Hid& links, const Manifest& manifest, const TensorEntry& tensor) {
  const Hid whole = simple_space(tensor.info.global_shape);
  const Hid creation = dataset_creation();
  const Hid type = hdf5_type(tensor.info.dtype);
  if (!whole || !creation || !type) return false;
  for (const auto& shard : tensor.shards) {
    if (shard.length == 0) continue;
    const Hid source = simple_space(shard.box.extent);
    const auto offset = sides(shard.box.offset);
    const auto extent = sides(shard.box.extent);
    const std::string name = "/" + escaped(tensor.info.name);
    if (!source ||
        H5Sselect_hyperslab(whole.get(), H5S_SELECT_SET, offset.data(), nullptr, extent.data(), nullptr) < 0 ||
        H5Pset_virtual(creation.get(), whole.get(), manifest.files[shard.file].name().c_str(), name.c_str(),
                       source.get()) < 0) {
      return false;
    }
  }
  if (H5Sselect_all(whole.get()) < 0) return false;
  const Hid dataset(H5Dcreate2(file.get(), tensor.info.name.c_str(), type.get(), whole.get(), links.get(),
                               creation.get(), H5P_DEFAULT),
                    H5Dclose);
  return static_cast<bool>(dataset);
}

bool add_link(const Hid& file, const Hid& links, const Manifest& manifest, const TensorEntry& tensor) {
  const auto& shard = tensor.shards.front();
  return H5Lcreate_external(manifest.files[shard.file].name().c_str(), ("/" + tensor.info.name).c_str(), file.get(),
                            tensor.info.name.c_str(), links.get(), H5P_DEFAULT) >= 0;
}

}  // namespace

bool same_index(const Manifest& a, const Manifest& b) {
  const auto same_file = [](const FileEntry& x, const FileEntry& y) { return x.rank == y.rank; };
  const auto same_shard = [](const ShardEntry& x, const ShardEntry& y) { return x.file == y.file && x.box == y.box; };
  const auto same_tensor = [&](const TensorEntry& x, const TensorEntry& y) {
    return x.info.name == y.info.name && x.info.dtype == y.info.dtype && x.info.global_shape == y.info.global_shape &&
           std::equal(x.shards.begin(), x.shards.end(), y.shards.begin(), y.shards.end(), same_shard);
  };
  return std::equal(a.files.begin(), a.files.end(), b.files.begin(), b.files.end(), same_file) &&
         std::equal(a.tensors.begin(), a.tensors.end(), b.tensors.begin(), b.tensors.end(), same_tensor);
}

Result<FileLayout> lay_out_index(const Manifest& manifest) {
  SparseImage image;
  {
    const auto lock = storage::hdf5_lock();
    const QuietHdf5 quiet;
    auto file = create_in_memory(image);
    if (!file) return fail(file.error());
    const Hid links = link_creation();
    if (!links) return fail(hdf5_error("property lists"));
    for (const auto& tensor : manifest.tensors) {
      const bool is_virtual = !tensor.info.global_shape.empty() && volume(tensor.info.global_shape) != 0;
      const bool added =
          is_virtual ? add_virtual(*file, links, manifest, tensor) : add_link(*file, links, manifest, tensor);
      if (!added) return fail(hdf5_error("index of '" + tensor.info.name + "'"));
    }
    if (!file->close()) return fail(hdf5_error("close the index"));
  }
  FileLayout layout;
  layout.size = image.size();
  Segment all{.offset = 0, .bytes = std::vector<std::byte>(layout.size)};
  image.read(0, all.bytes.data(), all.bytes.size());
  layout.segments.push_back(std::move(all));
  return layout;
}

}  // namespace checkpoint
}  // namespace dtr::inline v0
