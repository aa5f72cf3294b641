#include "dtr/dataset/readers/gzip.hpp"

#include <algorithm>
#include <memory>
#include <new>

#include <libdeflate.h>

namespace dtr::inline v0 {
namespace dataset {

namespace {

// No deflate stream unpacks to more than 1032 times its size: what needs more room than that is damaged.
constexpr std::size_t kLargestRatio = 1032;

struct FreeDecompressor {
  void operator()(libdeflate_decompressor* decompressor) const noexcept { libdeflate_free_decompressor(decompressor); }
};

/// The last four bytes of a member are its unpacked size mod 2^32: a guess that spares trying, for files of one member.
std::size_t first_guess(std::span<const std::byte> packed, std::size_t most) {
  std::size_t size = 0;
  for (std::size_t i = 0; i < 4; ++i) size |= std::to_integer<std::size_t>(packed[packed.size() - 4 + i]) << (8 * i);
  return std::clamp<std::size_t>(size, std::min<std::size_t>(4096, most), most);
}

}  // namespace

bool looks_gzipped(std::span<const std::byte> bytes) noexcept {
  return bytes.size() >= 2 && bytes[0] == std::byte{0x1f} && bytes[1] == std::byte{0x8b};
}

Result<std::vector<std::byte>> gunzip(std::span<const std::byte> packed, const std::string& name) try {
  constexpr std::size_t kSmallestMember = 18;  // header and trailer
  const std::unique_ptr<libdeflate_decompressor, FreeDecompressor> decompressor(libdeflate_alloc_decompressor());
  if (!decompressor) return fail(Errc::resource_exhausted, "no memory to unpack '" + name + "'", "open dataset");

  std::vector<std::byte> unpacked;
  do {
    if (packed.size() < kSmallestMember) {
      return fail(Errc::truncated, "'" + name + "' ends inside a gzip header", "open dataset");
    }
    const std::size_t before = unpacked.size();
    const std::size_t most = packed.size() * kLargestRatio;
    std::size_t room = first_guess(packed, most);
    std::size_t used = 0;
    std::size_t made = 0;
    for (;;) {
      unpacked.resize(before + room);
      const auto result = libdeflate_gzip_decompress_ex(decompressor.get(), packed.data(), packed.size(),
                                                        unpacked.data() + before, room, &used, &made);
      if (result == LIBDEFLATE_SUCCESS) break;
      if (result != LIBDEFLATE_INSUFFICIENT_SPACE || room == most) {
        return fail(Errc::corrupt, "'" + name + "' is a damaged or truncated gzip file", "open dataset");
      }
      room = std::min(most, room * 2);
    }
    unpacked.resize(before + made);
    packed = packed.subspan(used);
  } while (looks_gzipped(packed));
  if (!packed.empty()) {
    return fail(Errc::corrupt, "'" + name + "' has " + std::to_string(packed.size()) + " bytes of garbage at its end",
                "open dataset");
  }
  return unpacked;
} catch (const std::bad_alloc&) {
  return fail(Errc::resource_exhausted, "no memory to unpack '" + name + "'", "open dataset");
}

}  // namespace dataset
}  // namespace dtr::inline v0
