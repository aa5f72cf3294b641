#include "dtr/checkpoint/detail/hdf5_image.hpp"

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>

#include <hdf5.h>

namespace dtr::inline v0 {
namespace checkpoint {

void SparseImage::write(std::uint64_t offset, const std::byte* data, std::size_t bytes) {
  size_ = std::max(size_, offset + bytes);
  while (bytes > 0) {
    const auto within = offset % kPage;
    const auto part = std::min<std::size_t>(bytes, kPage - within);
    auto& page = pages_[offset - within];
    page.resize(kPage);
    std::memcpy(page.data() + within, data, part);
    offset += part;
    data += part;
    bytes -= part;
  }
}

void SparseImage::read(std::uint64_t offset, std::byte* data, std::size_t bytes) const {
  while (bytes > 0) {
    const auto within = offset % kPage;
    const auto part = std::min<std::size_t>(bytes, kPage - within);
    if (const auto page = pages_.find(offset - within); page != pages_.end()) {
      std::memcpy(data, page->second.data() + within, part);
    } else {
      std::memset(data, 0, part);
    }
    offset += part;
    data += part;
    bytes -= part;
  }
}

namespace {

constexpr hsize_t kAlignment = hsize_t{1} << 20;
constexpr hsize_t kMetadataBlock = hsize_t{64} << 10;

/// What HDF5 knows of an open file: its own part first, as its drivers do.
struct MemoryFile {
  H5FD_t base{};
  SparseImage* image = nullptr;
  haddr_t allotted = 0;
};

MemoryFile* of(H5FD_t* file) { return reinterpret_cast<MemoryFile*>(file); }
const MemoryFile* of(const H5FD_t* file) { return reinterpret_cast<const MemoryFile*>(file); }

/// The driver's configuration in a file access list; HDF5 copies it byte by byte.
struct MemoryConfig {
  SparseImage* image;
};

H5FD_t* open_memory(const char*, unsigned, hid_t access, haddr_t) {
  const auto* config = static_cast<const MemoryConfig*>(H5Pget_driver_info(access));
  if (config == nullptr) return nullptr;
  auto file = std::unique_ptr<MemoryFile>(new (std::nothrow) MemoryFile);
  if (!file) return nullptr;
  file->image = config->image;
  return &file.release()->base;
}

herr_t close_memory(H5FD_t* file) {
  const std::unique_ptr<MemoryFile> owned(of(file));
  return 0;
}

herr_t query_memory(const H5FD_t*, unsigned long* flags) {
  *flags = H5FD_FEAT_AGGREGATE_METADATA | H5FD_FEAT_ACCUMULATE_METADATA | H5FD_FEAT_AGGREGATE_SMALLDATA;
  return 0;
}

haddr_t get_allotted(const H5FD_t* file, H5FD_mem_t) { return of(file)->allotted; }

herr_t set_allotted(H5FD_t* file, H5FD_mem_t, haddr_t address) {
  of(file)->allotted = address;
  return 0;
}

haddr_t get_end(const H5FD_t* file, H5FD_mem_t) { return of(file)->image->size(); }

herr_t read_memory(H5FD_t* file, H5FD_mem_t, hid_t, haddr_t address, size_t bytes, void* data) {
  of(file)->image->read(address, static_cast<std::byte*>(data), bytes);
  return 0;
}

herr_t write_memory(H5FD_t* file, H5FD_mem_t, hid_t, haddr_t address, size_t bytes, const void* data) {
  try {
    of(file)->image->write(address, static_cast<const std::byte*>(data), bytes);
  } catch (const std::bad_alloc&) {
    return -1;  // no C++ exception may cross the C library
  }
  return 0;
}

herr_t truncate_memory(H5FD_t* file, hid_t, hbool_t) {
  of(file)->image->set_size(of(file)->allotted);
  return 0;
}

H5FD_class_t driver_table() {
  H5FD_class_t table{};
#if H5_VERSION_GE(1, 13, 2)
  table.version = H5FD_CLASS_VERSION;
  table.value = static_cast<H5FD_class_value_t>(512);  // in the range for drivers that are not registered anywhere
#endif
  table.name = "dtr_memory";
  table.maxaddr = HADDR_MAX - 1;
  table.fc_degree = H5F_CLOSE_STRONG;
  table.fapl_size = sizeof(MemoryConfig);
  table.open = open_memory;
  table.close = close_memory;
  table.query = query_memory;
  table.get_eoa = get_allotted;
  table.set_eoa = set_allotted;
  table.get_eof = get_end;
  table.read = read_memory;
  table.write = write_memory;
  table.truncate = truncate_memory;
  const H5FD_mem_t map[] = H5FD_FLMAP_DICHOTOMY;
  std::copy(std::begin(map), std::end(map), table.fl_map);
  return table;
}

}  // namespace

Result<Hid> create_in_memory(SparseImage& image) {
  // HDF5 keeps the pointer to the table, not a copy of all of it.
  static const H5FD_class_t table = driver_table();
  const Hid driver(H5FDregister(&table), H5FDunregister);
  const Hid access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
  const Hid creation(H5Pcreate(H5P_FILE_CREATE), H5Pclose);
  const MemoryConfig config{.image = &image};
  if (!driver || !access || !creation || H5Pset_driver(access.get(), driver.get(), &config) < 0 ||
      H5Pset_libver_bounds(access.get(), H5F_LIBVER_LATEST, H5F_LIBVER_LATEST) < 0 ||
      H5Pset_alignment(access.get(), kAlignment, kAlignment) < 0 ||
      H5Pset_meta_block_size(access.get(), kMetadataBlock) < 0 ||
      H5Pset_fclose_degree(access.get(), H5F_CLOSE_STRONG) < 0 || H5Pset_obj_track_times(creation.get(), 0) < 0) {
    return fail(hdf5_error("prepare a file in memory"));
  }
  Hid file(H5Fcreate("memory", H5F_ACC_TRUNC, creation.get(), access.get()), H5Fclose);
  if (!file) return fail(hdf5_error("create a file in memory"));
  return file;
}

}  // namespace checkpoint
}  // namespace dtr::inline v0
