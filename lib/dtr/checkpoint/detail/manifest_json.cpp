// The manifest as text. Everything in here distrusts its input: a manifest is read after crashes.
#include <algorithm>
#include <limits>

#include <nlohmann/json.hpp>

#include "dtr/checkpoint/detail/checksum.hpp"
#include "dtr/checkpoint/detail/geometry.hpp"
#include "dtr/checkpoint/detail/manifest.hpp"
#include "dtr/checkpoint/detail/names.hpp"

namespace dtr::inline v0 {
namespace checkpoint {

namespace {

using Json = nlohmann::ordered_json;

constexpr std::uint64_t kLargestPiece = std::uint64_t{1} << 30;  // readers hold one in memory
constexpr std::string_view kFormatName = "libdtr checkpoint";
// The whole file is one JSON object; its first line is fixed but for the 16 digits.
constexpr std::string_view kHead = "{\"checksum\": \"xxh3:";
constexpr std::string_view kHeadEnd = "\",\n";
constexpr std::size_t kHeadBytes = kHead.size() + 16 + kHeadEnd.size();

tl::unexpected<Error> corrupt(const std::string& message) { return fail(Errc::corrupt, message, "manifest"); }

// Thrown by the field readers and caught in decode_manifest: twenty fields with one way to be wrong.
struct Malformed {
  std::string what;
};

const Json& field(const Json& object, const char* key) {
  const auto at = object.find(key);
  if (at == object.end()) throw Malformed{std::string("'") + key + "' is missing"};
  return *at;
}

std::uint64_t number(const Json& object, const char* key) {
  const auto& value = field(object, key);
  if (!value.is_number_unsigned()) throw Malformed{std::string("'") + key + "' is no count"};
  return value.get<std::uint64_t>();
}

const std::string& text(const Json& object, const char* key) {
  const auto& value = field(object, key);
  if (!value.is_string()) throw Malformed{std::string("'") + key + "' is no text"};
  return value.get_ref<const std::string&>();
}

const Json& list(const Json& object, const char* key) {
  const auto& value = field(object, key);
  if (!value.is_array()) throw Malformed{std::string("'") + key + "' is no list"};
  return value;
}

std::uint64_t hex(const Json& value) {
  const auto parsed = value.is_string() ? parse_hex(value.get_ref<const std::string&>()) : std::nullopt;
  if (!parsed) throw Malformed{"a checksum is not 16 hexadecimal digits"};
  return *parsed;
}

Shape shape(const Json& object, const char* key) {
  Shape sides;
  for (const auto& side : list(object, key)) {
    if (!side.is_number_unsigned()) throw Malformed{std::string("'") + key + "' holds something else than counts"};
    sides.push_back(side.get<std::uint64_t>());
  }
  return sides;
}

FileEntry read_file_entry(const Json& json, int world) {
  FileEntry file;
  const auto rank = parse_rank_file_name(text(json, "name"));
  if (!rank || *rank >= world) throw Malformed{"file name '" + text(json, "name") + "'"};
  file.rank = *rank;
  file.size = number(json, "size");
  file.structure = hex(field(json, "structure"));
  return file;
}

ShardEntry read_shard(const Json& json, const TensorInfo& info, const Manifest& manifest) {
  ShardEntry shard;
  shard.file = number(json, "file");
  shard.box = Box{.offset = shape(json, "offset"), .extent = shape(json, "extent")};
  shard.position = number(json, "position");
  shard.length = number(json, "length");
  for (const auto& piece : list(json, "pieces")) shard.pieces.push_back(hex(piece));

  const std::string where = "tensor '" + info.name + "': ";
  if (shard.file >= manifest.files.size()) throw Malformed{where + "no such file"};
  if (!is_inside(shard.box, info.global_shape)) throw Malformed{where + "box outside of the tensor"};
  const auto elements = volume(shard.box.extent);
  std::uint64_t bytes = 0;
  if (!elements || __builtin_mul_overflow(*elements, size_of(info.dtype), &bytes) || bytes != shard.length) {
    throw Malformed{where + "length does not fit the box"};
  }
  const auto size = manifest.files[shard.file].size;
  if (shard.length > size || shard.position > size - shard.length) throw Malformed{where + "leaves its file"};
  if (shard.pieces.size() != piece_count(shard.length, manifest.piece_bytes)) {
    throw Malformed{where + "wrong number of checksums"};
  }
  return shard;
}

TensorEntry read_tensor(const Json& json, const Manifest& manifest) {
  TensorEntry tensor;
  tensor.info.name = text(json, "name");
  const auto dtype = parse_dtype(text(json, "dtype"));
  if (!dtype) throw Malformed{"unknown dtype '" + text(json, "dtype") + "'"};
  tensor.info.dtype = *dtype;
  tensor.info.global_shape = shape(json, "shape");
  for (const auto& shard : list(json, "shards")) tensor.shards.push_back(read_shard(shard, tensor.info, manifest));
  if (tensor.shards.empty()) throw Malformed{"tensor '" + tensor.info.name + "' has no shards"};
  return tensor;
}

Manifest read_manifest(const Json& json) {
  Manifest manifest;
  manifest.step = number(json, "step");
  const auto world = number(json, "world");
  if (world == 0 || world > std::numeric_limits<int>::max()) throw Malformed{"'world' out of range"};
  manifest.world = static_cast<int>(world);
  manifest.piece_bytes = number(json, "piece_bytes");
  if (manifest.piece_bytes == 0 || manifest.piece_bytes > kLargestPiece) throw Malformed{"'piece_bytes' out of range"};
  for (const auto& file : list(json, "files")) manifest.files.push_back(read_file_entry(file, manifest.world));
  for (std::size_t i = 1; i < manifest.files.size(); ++i) {
    if (manifest.files[i - 1].rank >= manifest.files[i].rank) throw Malformed{"files are not in rank order"};
  }
  for (const auto& tensor : list(json, "tensors")) manifest.tensors.push_back(read_tensor(tensor, manifest));
  for (std::size_t i = 1; i < manifest.tensors.size(); ++i) {
    if (manifest.tensors[i - 1].info.name >= manifest.tensors[i].info.name) {
      throw Malformed{"tensors are not in order of their names"};
    }
  }
  return manifest;
}

Json write_shard(const ShardEntry& shard) {
  Json pieces = Json::array();
  for (const auto piece : shard.pieces) pieces.push_back(to_hex(piece));
  return Json{{"file", shard.file},         {"offset", shard.box.offset}, {"extent", shard.box.extent},
              {"position", shard.position}, {"length", shard.length},     {"pieces", std::move(pieces)}};
}

}  // namespace

std::string encode_manifest(const Manifest& manifest) {
  Json files = Json::array();
  for (const auto& file : manifest.files) {
    files.push_back(Json{{"name", file.name()}, {"size", file.size}, {"structure", to_hex(file.structure)}});
  }
  Json tensors = Json::array();
  for (const auto& tensor : manifest.tensors) {
    Json shards = Json::array();
    for (const auto& shard : tensor.shards) shards.push_back(write_shard(shard));
    tensors.push_back(Json{{"name", tensor.info.name},
                           {"dtype", std::string(dtr::to_string(tensor.info.dtype))},
                           {"shape", tensor.info.global_shape},
                           {"shards", std::move(shards)}});
  }
  const Json body{{"format", std::string(kFormatName)},
                  {"version", kFormatVersion},
                  {"step", manifest.step},
                  {"world", manifest.world},
                  {"piece_bytes", manifest.piece_bytes},
                  {"files", std::move(files)},
                  {"tensors", std::move(tensors)}};
  // The body's own opening brace is the one before the checksum.
  const std::string rest = body.dump().substr(1) + "\n";
  return std::string(kHead) + to_hex(checksum(rest)) + std::string(kHeadEnd) + rest;
}

Result<Manifest> decode_manifest(std::string_view bytes) {
  if (bytes.size() < kHeadBytes || !bytes.starts_with(kHead) ||
      bytes.substr(kHeadBytes - kHeadEnd.size(), kHeadEnd.size()) != kHeadEnd) {
    return corrupt("does not begin like a manifest");
  }
  const auto stated = parse_hex(bytes.substr(kHead.size(), 16));
  const auto rest = bytes.substr(kHeadBytes);
  if (!stated || *stated != checksum(rest)) return corrupt("its checksum does not match");

  const Json json = Json::parse(bytes, nullptr, false);
  if (!json.is_object()) return corrupt("is no JSON object");
  try {
    if (text(json, "format") != kFormatName) return corrupt("is of another format");
    if (const auto version = number(json, "version"); version != kFormatVersion) {
      return fail(
          Errc::unsupported,
          "format version " + std::to_string(version) + ", this library reads " + std::to_string(kFormatVersion),
          "manifest");
    }
    return read_manifest(json);
  } catch (const Malformed& error) {
    return corrupt(error.what);
  }
}

}  // namespace checkpoint
}  // namespace dtr::inline v0
