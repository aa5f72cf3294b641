#include "dtr/dataset/gather.hpp"

#include <algorithm>
#include <cstring>
#include <limits>

namespace dtr::inline v0 {
namespace dataset {

namespace {

constexpr std::uint64_t kNone = std::numeric_limits<std::uint64_t>::max();

}  // namespace

Gather::Gather(ReaderPtr reader, std::uint64_t shard_size, bool shuffled, std::size_t buffer_bytes)
    : reader_(std::move(reader)),
      shard_size_(shard_size),
      buffered_(shuffled && !reader_->random_access() && shard_size <= buffer_bytes / reader_->sample_bytes()),
      shard_(kNone) {}

Result<void> Gather::read(std::span<const std::uint64_t> indices, std::span<std::byte> out) {
  if (!buffered_) return read_runs(indices, out);
  const std::size_t bytes = reader_->sample_bytes();
  for (const std::uint64_t index : indices) {
    const std::uint64_t shard = index / shard_size_;
    if (shard != shard_) {
      if (auto done = load_shard(shard); !done) return done;
    }
    std::memcpy(out.data(), shard_bytes_.data() + (index - shard * shard_size_) * bytes, bytes);
    out = out.subspan(bytes);
  }
  return {};
}

Result<void> Gather::read_runs(std::span<const std::uint64_t> indices, std::span<std::byte> out) const {
  while (!indices.empty()) {
    std::size_t run = 1;
    while (run < indices.size() && indices[run] == indices[0] + run) ++run;
    const std::size_t bytes = run * reader_->sample_bytes();
    if (auto done = reader_->read(indices[0], run, out.first(bytes)); !done) return done;
    indices = indices.subspan(run);
    out = out.subspan(bytes);
  }
  return {};
}

Result<void> Gather::load_shard(std::uint64_t shard) {
  const std::uint64_t first = shard * shard_size_;
  const std::uint64_t count = std::min(shard_size_, reader_->samples() - first);
  shard_ = kNone;  // until all of it is there
  shard_bytes_.resize(count * reader_->sample_bytes());
  auto done = reader_->read(first, count, shard_bytes_);
  if (done) shard_ = shard;
  return done;
}

}  // namespace dataset
}  // namespace dtr::inline v0
