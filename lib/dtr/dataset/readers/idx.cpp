#include "dtr/dataset/readers/idx.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <optional>

#include "dtr/base/file.hpp"
#include "dtr/dataset/readers/file_at.hpp"
#include "dtr/dataset/readers/gzip.hpp"

namespace dtr::inline v0 {

namespace {

constexpr std::size_t kLargestHeader = 4 + 255 * 4;
constexpr const char* kOperation = "open dataset";

std::optional<DType> type_of_code(std::byte code) {
  switch (std::to_integer<int>(code)) {
    case 0x08:
      return DType::u8;
    case 0x09:
      return DType::i8;
    case 0x0b:
      return DType::i16;
    case 0x0c:
      return DType::i32;
    case 0x0d:
      return DType::f32;
    case 0x0e:
      return DType::f64;
    default:
      return std::nullopt;
  }
}

std::string hex(std::span<const std::byte> bytes) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string text;
  for (const std::byte byte : bytes) {
    if (!text.empty()) text += ' ';
    text += kDigits[std::to_integer<std::size_t>(byte >> 4)];
    text += kDigits[std::to_integer<std::size_t>(byte & std::byte{15})];
  }
  return text;
}

struct Header {
  SampleReader::Layout layout;
  std::size_t bytes = 0;  // of the header itself
};

/// `begin` is the beginning of the file, up to kLargestHeader; `size` the file's whole (unpacked) size.
Result<Header> parse_header(std::span<const std::byte> begin, std::uint64_t size, const std::string& path) {
  if (begin.size() < 4) {
    return fail(Errc::truncated, "'" + path + "' ends after " + std::to_string(size) + " bytes, inside the idx header",
                kOperation);
  }
  const auto type = type_of_code(begin[2]);
  const auto dimensions = std::to_integer<std::size_t>(begin[3]);
  if (begin[0] != std::byte{0} || begin[1] != std::byte{0} || !type || dimensions == 0) {
    return fail(Errc::corrupt, "'" + path + "' is no idx file: it begins with " + hex(begin.first(4)), kOperation);
  }
  Header header;
  header.bytes = 4 + 4 * dimensions;
  if (begin.size() < header.bytes) {
    return fail(Errc::truncated, "'" + path + "' ends after " + std::to_string(size) + " bytes, inside the idx header",
                kOperation);
  }
  header.layout.name = path;
  header.layout.type = *type;
  for (std::size_t d = 0; d < dimensions; ++d) {
    std::uint64_t length = 0;
    for (std::size_t i = 0; i < 4; ++i) length = length << 8 | std::to_integer<std::uint64_t>(begin[4 + 4 * d + i]);
    if (d == 0) {
      header.layout.samples = length;
    } else {
      header.layout.shape.push_back(length);
    }
  }
  const auto data = check_layout(header.layout);
  if (!data) return fail(data.error());
  const std::uint64_t expected = header.bytes + *data;
  if (size < expected) {
    return fail(Errc::truncated,
                "'" + path + "' ends after " + std::to_string(size) + " bytes, its header announces " +
                    std::to_string(expected),
                kOperation);
  }
  if (size > expected) {
    return fail(Errc::corrupt, "'" + path + "' has " + std::to_string(size - expected) + " bytes behind its data",
                kOperation);
  }
  return header;
}

/// Big-endian elements, in place, to the order of this machine.
void to_native(std::span<std::byte> data, std::size_t element) {
  if constexpr (std::endian::native == std::endian::little) {
    if (element == 1) return;
    for (std::size_t at = 0; at < data.size(); at += element) {
      std::reverse(data.begin() + static_cast<std::ptrdiff_t>(at),
                   data.begin() + static_cast<std::ptrdiff_t>(at + element));
    }
  }
}

class IdxInMemory final : public SampleReader {
 public:
  IdxInMemory(Header header, std::vector<std::byte> file)
      : SampleReader(std::move(header.layout)), file_(std::move(file)), header_bytes_(header.bytes) {
    to_native(std::span(file_).subspan(header_bytes_), size_of(type()));
  }

 private:
  Result<void> do_read(std::uint64_t first, std::uint64_t, std::span<std::byte> out) const override {
    std::memcpy(out.data(), file_.data() + header_bytes_ + first * sample_bytes(), out.size());
    return {};
  }

  std::vector<std::byte> file_;
  std::size_t header_bytes_;
};

class IdxInFile final : public SampleReader {
 public:
  IdxInFile(Header header, UniqueFd fd)
      : SampleReader(std::move(header.layout)), fd_(std::move(fd)), header_bytes_(header.bytes) {}

 private:
  Result<void> do_read(std::uint64_t first, std::uint64_t, std::span<std::byte> out) const override {
    auto done = dataset::read_at(fd_.get(), out, header_bytes_ + first * sample_bytes(), name());
    if (done) to_native(out, size_of(type()));
    return done;
  }

  UniqueFd fd_;
  std::size_t header_bytes_;
};

Result<ReaderPtr> open_packed(const std::string& path) {
  const auto packed = read_file(path);
  if (!packed) return fail(packed.error());
  auto file = dataset::gunzip(std::as_bytes(std::span(*packed)), path);
  if (!file) return fail(file.error());
  auto header = parse_header(std::span(*file).first(std::min(file->size(), kLargestHeader)), file->size(), path);
  if (!header) return fail(header.error());
  return std::make_shared<const IdxInMemory>(std::move(*header), std::move(*file));
}

}  // namespace

Result<ReaderPtr> open_idx(const std::string& path) {
  auto file = dataset::open_file(path);
  if (!file) return fail(file.error());
  auto& [fd, size] = *file;

  std::array<std::byte, kLargestHeader> buffer{};
  const auto begin = std::span(buffer).first(std::min<std::uint64_t>(size, kLargestHeader));
  if (auto done = dataset::read_at(fd.get(), begin, 0, path); !done) return fail(done.error());
  if (dataset::looks_gzipped(begin)) return open_packed(path);

  auto header = parse_header(begin, size, path);
  if (!header) return fail(header.error());
  return std::make_shared<const IdxInFile>(std::move(*header), std::move(fd));
}

}  // namespace dtr::inline v0
