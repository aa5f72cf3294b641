#include "dtr/dataset/gather.hpp"

#include <algorithm>
#include <cstring>

#include "dtr/dataset/shard_window.hpp"

namespace dtr::inline v0 {
namespace dataset {

namespace {

Result<void> read_runs(const SampleReader& reader, std::span<const std::uint64_t> indices, std::span<std::byte> out) {
  while (!indices.empty()) {
    std::size_t run = 1;
    while (run < indices.size() && indices[run] == indices[0] + run) ++run;
    const std::size_t bytes = run * reader.sample_bytes();
    if (auto done = reader.read(indices[0], run, out.first(bytes)); !done) return done;
    indices = indices.subspan(run);
    out = out.subspan(bytes);
  }
  return {};
}

}  // namespace

Gather::Gather(const std::vector<ReaderPtr>& readers, std::uint64_t shard_size, bool shuffled, std::size_t buffer_bytes,
               std::size_t ahead)
    : shard_size_(shard_size), readers_(readers) {
  std::vector<ReaderPtr> kept;
  for (std::size_t i = 0; i < readers_.size(); ++i) {
    const SampleReader& reader = *readers_[i];
    const std::size_t samples_that_fit = buffer_bytes / reader.sample_bytes();
    if (!shuffled || reader.random_access() || shard_size > samples_that_fit) {
      piecewise_.push_back(i);
      continue;
    }
    whole_.push_back(i);
    kept.push_back(readers_[i]);
    ahead = std::min<std::size_t>(ahead, samples_that_fit / shard_size - 1);
  }
  if (!kept.empty()) window_ = std::make_unique<ShardWindow>(std::move(kept), shard_size, ahead);
}

Gather::~Gather() = default;

void Gather::begin(const ShardPlan& plan, std::uint64_t row) {
  if (window_ != nullptr) window_->begin(plan, row);
}

Result<void> Gather::read(std::span<const std::uint64_t> indices, std::span<const std::span<std::byte>> out) {
  for (const std::size_t i : piecewise_) {
    if (auto done = read_runs(*readers_[i], indices, out[i]); !done) return done;
  }
  return window_ == nullptr ? Result<void>{} : pick(indices, out);
}

Result<void> Gather::pick(std::span<const std::uint64_t> indices, std::span<const std::span<std::byte>> out) {
  for (std::size_t row = 0; row < indices.size();) {
    const std::uint64_t shard = indices[row] / shard_size_;
    const auto loaded = window_->shard(shard);
    if (!loaded) return fail(loaded.error());
    for (; row < indices.size() && indices[row] / shard_size_ == shard; ++row) {
      const std::uint64_t place = indices[row] - shard * shard_size_;
      for (std::size_t w = 0; w < whole_.size(); ++w) {
        const std::size_t bytes = readers_[whole_[w]]->sample_bytes();
        std::memcpy(out[whole_[w]].data() + row * bytes, (**loaded).bytes[w].data() + place * bytes, bytes);
      }
    }
  }
  return {};
}

}  // namespace dataset
}  // namespace dtr::inline v0
