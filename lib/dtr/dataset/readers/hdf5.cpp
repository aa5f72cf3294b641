#include "dtr/dataset/readers/hdf5.hpp"

#include <cerrno>
#include <mutex>
#include <optional>
#include <utility>

#include <hdf5.h>
#include <unistd.h>

#include "dtr/storage/hdf5_lock.hpp"

namespace dtr::inline v0 {

namespace {

constexpr const char* kOpen = "open dataset";

/// An HDF5 identifier that closes itself. Made and destroyed under hdf5_lock().
class Handle {
 public:
  using Closer = herr_t (*)(hid_t);
  Handle() noexcept = default;
  Handle(hid_t id, Closer closer) noexcept : id_(id), closer_(closer) {}
  ~Handle() { reset(); }
  Handle(Handle&& other) noexcept : id_(std::exchange(other.id_, H5I_INVALID_HID)), closer_(other.closer_) {}
  Handle& operator=(Handle&& other) noexcept {
    if (this != &other) {
      reset();
      id_ = std::exchange(other.id_, H5I_INVALID_HID);
      closer_ = other.closer_;
    }
    return *this;
  }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;

  void reset() noexcept {
    if (id_ >= 0) closer_(std::exchange(id_, H5I_INVALID_HID));
  }
  [[nodiscard]] hid_t get() const noexcept { return id_; }
  [[nodiscard]] explicit operator bool() const noexcept { return id_ >= 0; }

 private:
  hid_t id_ = H5I_INVALID_HID;
  Closer closer_ = nullptr;
};

/// Inside HDF5: alone, and without its error stack on stderr.
class Session {
 public:
  Session() : lock_(storage::hdf5_lock()) {
    H5Eget_auto2(H5E_DEFAULT, &function_, &data_);
    H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
  }
  ~Session() { H5Eset_auto2(H5E_DEFAULT, function_, data_); }
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  /// The innermost reason of the last failed call.
  [[nodiscard]] static std::string reason() {
    std::string words;
    H5Ewalk2(
        H5E_DEFAULT, H5E_WALK_UPWARD,
        [](unsigned, const H5E_error2_t* entry, void* out) -> herr_t {
          if (entry->desc != nullptr) *static_cast<std::string*>(out) = entry->desc;
          return 1;  // the first is enough
        },
        &words);
    return words.empty() ? "no reason given" : words;
  }

 private:
  std::unique_lock<std::mutex> lock_;
  H5E_auto2_t function_ = nullptr;
  void* data_ = nullptr;
};

std::optional<DType> element_type(hid_t stored) {
  const std::size_t size = H5Tget_size(stored);
  switch (H5Tget_class(stored)) {
    case H5T_INTEGER: {
      const bool is_signed = H5Tget_sign(stored) == H5T_SGN_2;
      if (size == 1) return is_signed ? DType::i8 : DType::u8;
      if (size == 2) return is_signed ? DType::i16 : DType::u16;
      if (size == 4) return is_signed ? DType::i32 : DType::u32;
      if (size == 8) return is_signed ? DType::i64 : DType::u64;
      return std::nullopt;
    }
    case H5T_FLOAT:
      if (size == 4) return DType::f32;
      if (size == 8) return DType::f64;
      return std::nullopt;
    default:
      return std::nullopt;
  }
}

hid_t memory_type(DType type) {
  switch (type) {
    case DType::u8:
      return H5T_NATIVE_UINT8;
    case DType::i8:
      return H5T_NATIVE_INT8;
    case DType::u16:
      return H5T_NATIVE_UINT16;
    case DType::i16:
      return H5T_NATIVE_INT16;
    case DType::u32:
      return H5T_NATIVE_UINT32;
    case DType::i32:
      return H5T_NATIVE_INT32;
    case DType::u64:
      return H5T_NATIVE_UINT64;
    case DType::i64:
      return H5T_NATIVE_INT64;
    case DType::f32:
      return H5T_NATIVE_FLOAT;
    case DType::f64:
      return H5T_NATIVE_DOUBLE;
    case DType::f16:
    case DType::bf16:  // element_type gives neither
      break;
  }
  return H5I_INVALID_HID;
}

class Hdf5Reader final : public SampleReader {
 public:
  Hdf5Reader(Layout layout, Handle file, Handle dataset)
      : SampleReader(std::move(layout)), file_(std::move(file)), dataset_(std::move(dataset)) {}

  ~Hdf5Reader() override {
    const Session session;
    dataset_.reset();
    file_.reset();
  }

 private:
  Result<void> do_read(std::uint64_t first, std::uint64_t count, std::span<std::byte> out) const override {
    std::vector<hsize_t> start(1 + sample_shape().size(), 0);
    std::vector<hsize_t> extent{count};
    extent.insert(extent.end(), sample_shape().begin(), sample_shape().end());
    start[0] = first;

    const Session session;
    const Handle in_file(H5Dget_space(dataset_.get()), H5Sclose);
    const Handle in_memory(H5Screate_simple(static_cast<int>(extent.size()), extent.data(), nullptr), H5Sclose);
    if (!in_file || !in_memory ||
        H5Sselect_hyperslab(in_file.get(), H5S_SELECT_SET, start.data(), nullptr, extent.data(), nullptr) < 0 ||
        H5Dread(dataset_.get(), memory_type(type()), in_memory.get(), in_file.get(), H5P_DEFAULT, out.data()) < 0) {
      return fail(Errc::corrupt,
                  "samples " + std::to_string(first) + " to " + std::to_string(first + count) + " of '" + name() +
                      "': " + Session::reason(),
                  "read samples");
    }
    return {};
  }

  Handle file_;
  Handle dataset_;
};

/// Names of the datasets at the root, at most 20.
std::vector<std::string> datasets_at_root(hid_t file) {
  std::vector<std::string> names;
  hsize_t index = 0;
  H5Literate(
      file, H5_INDEX_NAME, H5_ITER_INC, &index,
      [](hid_t group, const char* name, const H5L_info_t*, void* out) noexcept -> herr_t {
        auto& found = *static_cast<std::vector<std::string>*>(out);
        H5O_info_t object;
        if (H5Oget_info_by_name2(group, name, &object, H5O_INFO_BASIC, H5P_DEFAULT) >= 0 &&
            object.type == H5O_TYPE_DATASET) {
          found.emplace_back(name);
        }
        return found.size() < 20 ? 0 : 1;
      },
      &names);
  return names;
}

std::string listed(const std::vector<std::string>& names) {
  std::string words;
  for (const std::string& name : names) words += (words.empty() ? "" : ", ") + name;
  return words.empty() ? "none" : words;
}

Result<Handle> open_file(const std::string& path) {
  if (::access(path.c_str(), R_OK) != 0) return fail(errno_error(errno, "open " + path, kOpen));
  if (H5Fis_hdf5(path.c_str()) <= 0) return fail(Errc::corrupt, "'" + path + "' is no HDF5 file", kOpen);
  // Read-only and shared by all ranks: locks would only get in the way, and NFS and Lustre often refuse them.
  const Handle access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
  H5Pset_file_locking(access.get(), 0, 1);
  Handle file(H5Fopen(path.c_str(), H5F_ACC_RDONLY, access.get()), H5Fclose);
  if (!file) return fail(Errc::corrupt, "'" + path + "': " + Session::reason(), kOpen);
  return file;
}

Result<std::string> pick_dataset(hid_t file, const std::string& path, const std::string& wanted) {
  const auto names = datasets_at_root(file);
  if (wanted.empty()) {
    if (names.size() == 1) return names.front();
    return fail(Errc::not_found, "'" + path + "': say which dataset; at the root there are: " + listed(names), kOpen);
  }
  return wanted;
}

}  // namespace

Result<ReaderPtr> open_hdf5(const std::string& path, const std::string& dataset) {
  const Session session;
  auto file = open_file(path);
  if (!file) return fail(file.error());
  const auto picked = pick_dataset(file->get(), path, dataset);
  if (!picked) return fail(picked.error());
  Handle opened(H5Dopen2(file->get(), picked->c_str(), H5P_DEFAULT), H5Dclose);
  if (!opened) {
    const std::string reason = Session::reason();
    return fail(Errc::not_found,
                "'" + path + "': cannot open dataset '" + *picked + "' (" + reason +
                    "); at the root there are: " + listed(datasets_at_root(file->get())),
                kOpen);
  }
  SampleReader::Layout layout{.name = path + ":" + *picked, .random_access = false};

  const Handle type(H5Dget_type(opened.get()), H5Tclose);
  const auto element = element_type(type.get());
  if (!element) {
    return fail(Errc::unsupported, "'" + layout.name + "' holds neither integers nor f32 nor f64", kOpen);
  }
  layout.type = *element;

  const Handle space(H5Dget_space(opened.get()), H5Sclose);
  const int rank = H5Sget_simple_extent_ndims(space.get());
  if (rank < 1) return fail(Errc::unsupported, "'" + layout.name + "' has no dimension to count samples by", kOpen);
  std::vector<hsize_t> extent(static_cast<std::size_t>(rank));
  H5Sget_simple_extent_dims(space.get(), extent.data(), nullptr);
  layout.samples = extent.front();
  layout.shape.assign(extent.begin() + 1, extent.end());
  if (auto checked = check_layout(layout); !checked) return fail(checked.error());
  return std::make_shared<const Hdf5Reader>(std::move(layout), std::move(*file), std::move(opened));
}

}  // namespace dtr::inline v0
