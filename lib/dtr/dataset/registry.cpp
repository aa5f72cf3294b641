#include "dtr/dataset/registry.hpp"

#include <algorithm>

#include "dtr/base/bytes.hpp"
#include "dtr/base/config.hpp"
#include "dtr/dataset/agreement.hpp"
#include "dtr/dataset/readers/open.hpp"
#include "dtr/runtime/runtime.hpp"

namespace dtr::inline v0 {

struct DatasetRegistry::Entry {
  DatasetInfo info;
  DatasetInfo given;  // before total_samples was filled in
  std::vector<std::string> files;
  std::vector<std::uint64_t> file_ends;  // in samples; as many as files

  /// The files that hold samples [begin, end).
  [[nodiscard]] std::vector<std::string> files_of(std::uint64_t begin, std::uint64_t end) const {
    std::vector<std::string> paths;
    auto file =
        static_cast<std::size_t>(std::upper_bound(file_ends.begin(), file_ends.end(), begin) - file_ends.begin());
    for (std::uint64_t at = begin; at < end && file < files.size(); ++file) {
      if (file_ends[file] == at) continue;  // an empty file
      paths.push_back(files[file]);
      at = file_ends[file];
    }
    return paths;
  }
};

namespace {

dataset::Fields fields_of(const DatasetInfo& info, const std::vector<std::string>& files) {
  std::string metadata;
  for (const auto& [key, value] : info.metadata) {
    metadata.append(metadata.empty() ? "" : ", ").append(key).append("=").append(value);
  }
  std::string names;
  for (const std::string& file : files) names.append(names.empty() ? "" : ", ").append(file);
  return {{"id", info.id},
          {"path", info.path},
          {"format", info.format},
          {"total_samples", std::to_string(info.total_samples)},
          {"shard_size", std::to_string(info.shard_size.value_or(kDefaultShardSize))},
          {"shuffle", info.shuffle ? "true" : "false"},
          {"seed", std::to_string(info.seed)},
          {"unit", to_string(info.unit)},
          {"tail", to_string(info.tail)},
          {"metadata", metadata},
          {"files", names}};
}

/// The sum of the counts, checked against what the description says.
Result<std::uint64_t> total_of(const DatasetInfo& info, const std::vector<std::uint64_t>& counts) {
  std::uint64_t total = 0;
  for (const std::uint64_t count : counts) {
    if (count > kMaxSamples || total > kMaxSamples - count) {
      return fail(Errc::invalid_argument, "'" + info.path + "' has more than 2^62 samples");
    }
    total += count;
  }
  if (total == 0) return fail(Errc::invalid_argument, "'" + info.path + "' has no samples");
  if (info.total_samples != 0 && info.total_samples != total) {
    return fail(Errc::corrupt, "'" + info.path + "' has " + std::to_string(total) + " samples, total_samples says " +
                                   std::to_string(info.total_samples));
  }
  return total;
}

/// The samples of each file, as rank 0 tells the others. A single file with a known total need not be opened.
Result<Bytes> counted(const DatasetInfo& info, const std::vector<std::string>& files) {
  Result<std::vector<std::uint64_t>> counts = std::vector<std::uint64_t>{info.total_samples};
  if (files.size() != 1 || info.total_samples == 0) counts = count_samples(info, files);
  if (!counts) return fail(counts.error());
  if (const auto total = total_of(info, *counts); !total) return fail(total.error());
  ByteWriter out;
  for (const std::uint64_t count : *counts) out.value(count);
  return out.take();
}

}  // namespace

RegistryOptions RegistryOptions::from(const Config& config) {
  return {.default_shard_size = static_cast<std::uint64_t>(config.integer("dataset.default_shard_size"))};
}

DatasetRegistry::DatasetRegistry(Runtime& runtime)
    : DatasetRegistry(runtime, RegistryOptions::from(runtime.config())) {}

Result<void> DatasetRegistry::register_dataset(DatasetInfo info, Deadline deadline) {
  const std::string operation = "register dataset '" + info.id + "'";
  if (!info.shard_size) info.shard_size = options_.default_shard_size;  // ranks of unlike configuration find out below
  Result<std::vector<std::string>> files = dataset_files(info.path);
  if (info.id.empty()) files = fail(Errc::invalid_argument, "the dataset has no id");
  const Result<dataset::Fields> fields = files.map([&](const auto& names) { return fields_of(info, names); });
  if (auto agreed = dataset::agree(group_, fields, operation, deadline); !agreed) return agreed;

  const Result<Bytes> mine = group_.rank() == 0 ? counted(info, *files) : Bytes{};
  const auto all = dataset::exchange(group_, "dataset/counts", mine, operation, deadline);
  if (!all) return fail(all.error());

  Entry entry{.info = info, .given = info, .files = *files, .file_ends = {}};
  entry.info.total_samples = 0;
  for (ByteReader counts(all->front()); counts.ok() && !counts.at_end();) {
    entry.file_ends.push_back(entry.info.total_samples += counts.value<std::uint64_t>());
  }
  if (entry.file_ends.size() != files->size()) {
    return fail(Errc::protocol_error, "rank 0 counted other files than there are here", operation, 0);
  }
  const std::unique_lock lock(mutex_);
  const auto known = entries_.find(info.id);
  if (known != entries_.end() && fields_of(known->second->given, known->second->files) != *fields &&
      fields_of(known->second->info, known->second->files) != *fields) {
    return fail(Errc::already_exists, "the id is registered with another description", operation);
  }
  entries_.insert_or_assign(info.id, std::make_shared<const Entry>(std::move(entry)));
  return {};
}

Result<std::shared_ptr<const DatasetRegistry::Entry>> DatasetRegistry::find(const std::string& id) const {
  const std::unique_lock lock(mutex_);
  const auto at = entries_.find(id);
  if (at != entries_.end()) return at->second;
  std::string known;
  for (const auto& [name, entry] : entries_) known += (known.empty() ? "" : ", ") + name;
  return fail(Errc::not_found, "no dataset '" + id + "'; registered: " + (known.empty() ? "none" : known),
              "look up dataset");
}

Result<std::vector<ShardAssignment>> DatasetRegistry::shard(const std::string& id, int rank,
                                                            std::uint64_t epoch) const {
  const auto entry = find(id);
  if (!entry) return fail(entry.error());
  const auto made = plan(id, rank, epoch);
  if (!made) return fail(made.error());
  std::vector<ShardAssignment> assignments;
  for (const ShardRange& range : made->ranges()) {
    const std::uint64_t begin = range.shard_id * made->shard_size();
    const std::uint64_t end = std::min(begin + made->shard_size(), (*entry)->info.total_samples);
    assignments.push_back({.shard_id = range.shard_id,
                           .file_paths = (*entry)->files_of(begin, end),
                           .start_sample = range.start_sample,
                           .end_sample = range.end_sample,
                           .stride = range.stride});
  }
  return assignments;
}

Result<ShardPlan> DatasetRegistry::plan(const std::string& id, int rank, std::uint64_t epoch) const {
  return plan(id, rank, EpochCursor{.epoch = epoch});
}

Result<ShardPlan> DatasetRegistry::plan(const std::string& id, int rank, const EpochCursor& cursor) const {
  const auto entry = find(id);
  if (!entry) return fail(entry.error());
  return ShardPlan::make((*entry)->info, group_.size(), rank, cursor);
}

Result<DatasetInfo> DatasetRegistry::info(const std::string& id) const {
  const auto entry = find(id);
  if (!entry) return fail(entry.error());
  return (*entry)->info;
}

Result<ReaderPtr> DatasetRegistry::open(const std::string& id) const {
  const auto entry = find(id);
  if (!entry) return fail(entry.error());
  return open_dataset((*entry)->info);
}

std::vector<std::string> DatasetRegistry::ids() const {
  const std::unique_lock lock(mutex_);
  std::vector<std::string> names;
  for (const auto& [name, entry] : entries_) names.push_back(name);
  return names;
}

}  // namespace dtr::inline v0
