#include "dtr/dataset/readers/reader.hpp"

namespace dtr::inline v0 {

namespace {

std::size_t bytes_of_sample(const SampleReader::Layout& layout) {
  std::size_t bytes = size_of(layout.type);
  for (const std::uint64_t dimension : layout.shape) bytes *= dimension;
  return bytes;
}

}  // namespace

SampleReader::SampleReader(Layout layout) : layout_(std::move(layout)), sample_bytes_(bytes_of_sample(layout_)) {
  value_or_throw(check_layout(layout_));
}

Result<void> SampleReader::read(std::uint64_t first, std::uint64_t count, std::span<std::byte> out) const {
  if (count > samples() || first > samples() - count) {
    return fail(Errc::out_of_range,
                "samples " + std::to_string(first) + " to " + std::to_string(first + count) + " of '" + name() +
                    "', which has " + std::to_string(samples()),
                "read samples");
  }
  if (out.size() != count * sample_bytes_) {
    return fail(Errc::invalid_argument,
                std::to_string(count) + " samples of '" + name() + "' need " + std::to_string(count * sample_bytes_) +
                    " bytes, the buffer has " + std::to_string(out.size()),
                "read samples");
  }
  if (count == 0) return {};
  return do_read(first, count, out);
}

Result<std::uint64_t> check_layout(const SampleReader::Layout& layout) {
  std::uint64_t bytes = size_of(layout.type);
  const auto times = [&bytes](std::uint64_t factor) {
    return !__builtin_mul_overflow(bytes, factor, &bytes) && bytes <= std::uint64_t{1} << 62;
  };
  for (const std::uint64_t dimension : layout.shape) {
    if (dimension == 0) return fail(Errc::corrupt, "'" + layout.name + "' has a dimension of 0", "open dataset");
    if (!times(dimension))
      return fail(Errc::corrupt, "'" + layout.name + "' claims samples beyond 2^62 bytes", "open dataset");
  }
  if (!times(layout.samples))
    return fail(Errc::corrupt, "'" + layout.name + "' claims a size beyond 2^62 bytes", "open dataset");
  return bytes;
}

}  // namespace dtr::inline v0
