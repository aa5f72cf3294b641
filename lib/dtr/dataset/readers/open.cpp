#include "dtr/dataset/readers/open.hpp"

#include <algorithm>
#include <filesystem>
#include <list>
#include <mutex>
#include <numeric>

#include "dtr/dataset/readers/csv.hpp"
#include "dtr/dataset/readers/hdf5.hpp"
#include "dtr/dataset/readers/idx.hpp"

namespace dtr::inline v0 {

namespace {

constexpr const char* kOperation = "open dataset";
constexpr std::size_t kMostOpenFiles = 64;

std::string metadata_of(const DatasetInfo& info, const std::string& key, const std::string& otherwise) {
  const auto at = info.metadata.find(key);
  return at == info.metadata.end() ? otherwise : at->second;
}

tl::unexpected<Error> bad_metadata(const std::string& key, const std::string& value, const std::string& allowed) {
  return fail(Errc::invalid_argument, "metadata '" + key + "' is '" + value + "', not " + allowed, kOperation);
}

Result<CsvOptions> csv_options(const DatasetInfo& info) {
  CsvOptions options;
  const std::string delimiter = metadata_of(info, "delimiter", ",");
  if (delimiter.size() != 1) return bad_metadata("delimiter", delimiter, "a single character");
  options.delimiter = delimiter[0];
  const std::string header = metadata_of(info, "header", "false");
  if (header != "true" && header != "false") return bad_metadata("header", header, "true or false");
  options.header = header == "true";
  const std::string type = metadata_of(info, "type", "f32");
  if (type != "f32" && type != "f64") return bad_metadata("type", type, "f32 or f64");
  options.type = type == "f32" ? DType::f32 : DType::f64;
  return options;
}

/// Files in a row. Those used last stay open.
class ManyFiles final : public SampleReader {
 public:
  ManyFiles(Layout layout, DatasetInfo info, std::vector<std::string> files, std::vector<std::uint64_t> ends)
      : SampleReader(std::move(layout)), info_(std::move(info)), files_(std::move(files)), ends_(std::move(ends)) {}

 private:
  Result<void> do_read(std::uint64_t first, std::uint64_t count, std::span<std::byte> out) const override {
    auto file = static_cast<std::size_t>(std::upper_bound(ends_.begin(), ends_.end(), first) - ends_.begin());
    for (; count > 0; ++file) {
      const std::uint64_t begin = file == 0 ? 0 : ends_[file - 1];
      const std::uint64_t part = std::min(count, ends_[file] - first);
      if (part == 0) continue;  // an empty file
      const auto reader = opened(file);
      if (!reader) return fail(reader.error());
      const std::size_t bytes = part * sample_bytes();
      if (auto done = (*reader)->read(first - begin, part, out.first(bytes)); !done) return done;
      out = out.subspan(bytes);
      first += part;
      count -= part;
    }
    return {};
  }

  Result<ReaderPtr> opened(std::size_t file) const {
    const std::unique_lock lock(mutex_);
    const auto held = std::find_if(open_.begin(), open_.end(), [file](const Open& open) { return open.file == file; });
    if (held != open_.end()) {
      open_.splice(open_.begin(), open_, held);
      return held->reader;
    }
    auto reader = open_dataset_file(info_, files_[file]);
    if (!reader) return reader;
    const std::uint64_t samples = ends_[file] - (file == 0 ? 0 : ends_[file - 1]);
    if ((*reader)->samples() != samples || (*reader)->sample_bytes() != sample_bytes()) {
      return fail(Errc::corrupt,
                  "'" + files_[file] + "' is not the file any more that it was when the dataset was opened",
                  "read samples");
    }
    if (open_.size() == kMostOpenFiles) open_.pop_back();
    open_.push_front({file, *reader});
    return reader;
  }

  struct Open {
    std::size_t file;
    ReaderPtr reader;
  };

  DatasetInfo info_;
  std::vector<std::string> files_;
  std::vector<std::uint64_t> ends_;  // of each file, in samples
  mutable std::mutex mutex_;
  mutable std::list<Open> open_;  // last used first
};

}  // namespace

Result<std::vector<std::string>> dataset_files(const std::string& path) {
  namespace fs = std::filesystem;
  if (path.starts_with("s3://")) {
    return fail(Errc::unsupported, "'" + path + "': datasets are read from files; copy it to a local or shared folder",
                kOperation);
  }
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (status.type() == fs::file_type::not_found) {
    return fail(Errc::not_found, "there is no file or folder '" + path + "'", kOperation);
  }
  if (error) return fail(errno_error(error.value(), "stat " + path, kOperation));
  if (status.type() != fs::file_type::directory) return std::vector<std::string>{path};

  std::vector<std::string> files;
  fs::directory_iterator entry(path, error);
  for (; !error && entry != fs::directory_iterator(); entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    std::error_code ignored;
    if (!name.starts_with('.') && !name.starts_with('_') && !entry->is_directory(ignored)) {
      files.push_back(entry->path().string());
    }
  }
  if (error) return fail(errno_error(error.value(), "list " + path, kOperation));
  if (files.empty()) return fail(Errc::not_found, "folder '" + path + "' has no files", kOperation);
  std::sort(files.begin(), files.end());
  return files;
}

Result<ReaderPtr> open_dataset_file(const DatasetInfo& info, const std::string& file) {
  if (info.format == "idx") return open_idx(file);
  if (info.format == "hdf5") return open_hdf5(file, metadata_of(info, "dataset", ""));
  if (info.format == "csv") {
    const auto options = csv_options(info);
    if (!options) return fail(options.error());
    return open_csv(file, *options);
  }
  return fail(Errc::unsupported, "format '" + info.format + "' of dataset '" + info.id + "'; there are: idx, hdf5, csv",
              kOperation);
}

Result<std::vector<std::uint64_t>> count_samples(const DatasetInfo& info, const std::vector<std::string>& files) {
  std::vector<std::uint64_t> counts;
  for (const std::string& file : files) {
    const auto reader = open_dataset_file(info, file);
    if (!reader) return fail(reader.error());
    counts.push_back((*reader)->samples());
  }
  return counts;
}

Result<ReaderPtr> open_dataset(const DatasetInfo& info) {
  auto files = dataset_files(info.path);
  if (!files) return fail(files.error());

  SampleReader::Layout layout;
  std::vector<std::uint64_t> ends;
  ReaderPtr only;
  for (const std::string& file : *files) {
    auto reader = open_dataset_file(info, file);
    if (!reader) return reader;
    only = *reader;
    const std::vector<std::uint64_t> shape(only->sample_shape().begin(), only->sample_shape().end());
    if (ends.empty()) {
      layout = {.name = info.path, .shape = shape, .type = only->type(), .random_access = only->random_access()};
    } else if (shape != layout.shape || only->type() != layout.type) {
      return fail(Errc::corrupt, "'" + file + "' has samples of another shape or type than '" + files->front() + "'",
                  kOperation);
    }
    layout.random_access = layout.random_access && only->random_access();
    layout.samples += only->samples();
    ends.push_back(layout.samples);
  }
  if (info.total_samples != 0 && layout.samples != info.total_samples) {
    return fail(Errc::corrupt,
                "'" + info.path + "' has " + std::to_string(layout.samples) + " samples, dataset '" + info.id +
                    "' is registered with " + std::to_string(info.total_samples),
                kOperation);
  }
  if (files->size() == 1) return only;
  if (files->size() > kMostOpenFiles) layout.random_access = false;  // jumping about would reopen files all the time
  return std::make_shared<const ManyFiles>(std::move(layout), info, std::move(*files), std::move(ends));
}

}  // namespace dtr::inline v0
