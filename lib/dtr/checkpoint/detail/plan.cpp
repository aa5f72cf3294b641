#include "dtr/checkpoint/detail/plan.hpp"

#include <algorithm>
#include <string>

#include "dtr/checkpoint/detail/checksum.hpp"
#include "dtr/checkpoint/detail/geometry.hpp"

namespace dtr::inline v0 {
namespace checkpoint {

namespace {

constexpr std::size_t kMostDimensions = 32;  // HDF5's limit
constexpr std::size_t kLongestName = 1024;
// Large tensors start on a page, as O_DIRECT wants; small ones on a cache line.
constexpr std::uint64_t kLarge = std::uint64_t{64} << 10;
constexpr std::uint64_t kPage = 4096;
constexpr std::uint64_t kLine = 64;

/// Bytes of the UTF-8 sequence at the front; 0 if it is none.
std::size_t utf8_length(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const std::size_t length = byte(0) < 0x80                      ? 1
                             : byte(0) >= 0xc2 && byte(0) < 0xe0 ? 2
                             : (byte(0) & 0xf0U) == 0xe0         ? 3
                             : byte(0) >= 0xf0 && byte(0) < 0xf5 ? 4
                                                                 : 0;
  if (length == 0 || length > text.size()) return 0;
  for (std::size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xc0U) != 0x80) return 0;
  }
  // Overlong forms, surrogates, and what lies beyond the last code point.
  if (length == 3 && ((byte(0) == 0xe0 && byte(1) < 0xa0) || (byte(0) == 0xed && byte(1) >= 0xa0))) return 0;
  if (length == 4 && ((byte(0) == 0xf0 && byte(1) < 0x90) || (byte(0) == 0xf4 && byte(1) >= 0x90))) return 0;
  return length;
}

/// What is wrong with a name; empty if nothing.
std::string fault_of_name(std::string_view name) {
  if (name.empty()) return "is empty";
  if (name.size() > kLongestName) return "is longer than " + std::to_string(kLongestName) + " bytes";
  for (std::string_view rest = name; !rest.empty();) {
    const auto length = utf8_length(rest);
    if (length == 0) return "is not UTF-8";
    if (static_cast<unsigned char>(rest.front()) < 0x20 || rest.front() == 0x7f) return "has a control character";
    rest.remove_prefix(length);
  }
  for (std::size_t begin = 0; begin <= name.size();) {
    const auto end = std::min(name.find('/', begin), name.size());
    const auto part = name.substr(begin, end - begin);
    if (part.empty() || part == "." || part == "..") return "has the part '" + std::string(part) + "' between slashes";
    begin = end + 1;
  }
  return {};
}

Result<PlannedTensor> check(const TensorView& tensor, std::size_t source) {
  const std::string what = "tensor '" + tensor.name + "'";
  const auto invalid = [&](const std::string& why) { return fail(Errc::invalid_argument, what + " " + why, "save"); };
  if (const auto fault = fault_of_name(tensor.name); !fault.empty()) {
    // An unprintable name does not go into the message.
    return fail(Errc::invalid_argument, "the name of tensor number " + std::to_string(source) + " " + fault, "save");
  }
  if (size_of(tensor.dtype) == 0) return invalid("has no known dtype");
  if (tensor.global_shape.size() > kMostDimensions) {
    return invalid("has " + std::to_string(tensor.global_shape.size()) + " dimensions, at most " +
                   std::to_string(kMostDimensions) + " are possible");
  }
  PlannedTensor planned;
  planned.info = {.name = tensor.name, .dtype = tensor.dtype, .global_shape = tensor.global_shape};
  planned.box = whole_or(tensor.box, tensor.global_shape);
  planned.source = source;
  const auto whole = volume(tensor.global_shape);
  if (std::uint64_t bytes = 0;
      !whole || __builtin_mul_overflow(*whole, size_of(tensor.dtype), &bytes) || bytes >> 62U != 0) {
    return invalid("of shape " + shape_string(tensor.global_shape) + " is larger than a file can be");
  }
  if (!is_inside(planned.box, tensor.global_shape)) {
    return fail(Errc::out_of_range,
                what + ": box " + to_string(planned.box) + " leaves the shape " + shape_string(tensor.global_shape),
                "save");
  }
  planned.bytes = *volume(planned.box.extent) * size_of(tensor.dtype);
  if (tensor.replicated && planned.box.extent != tensor.global_shape) {
    return invalid("is replicated, but box " + to_string(planned.box) + " is only a part of it");
  }
  if (tensor.data.size() != planned.bytes) {
    return invalid("has " + std::to_string(tensor.data.size()) + " bytes of data, its box " + to_string(planned.box) +
                   " of " + std::string(dtr::to_string(tensor.dtype)) + " has " + std::to_string(planned.bytes));
  }
  return planned;
}

/// Takes out what other ranks write: largest first, each to the rank with the least so far. Every rank has the same
/// list, so every rank comes to the same answer.
std::uint64_t share_replicated(std::vector<PlannedTensor>& tensors, std::span<const TensorView> views, int rank,
                               int world) {
  std::vector<const PlannedTensor*> replicated;
  for (const auto& tensor : tensors) {
    if (views[tensor.source].replicated) replicated.push_back(&tensor);
  }
  std::stable_sort(replicated.begin(), replicated.end(),
                   [](const PlannedTensor* a, const PlannedTensor* b) { return a->bytes > b->bytes; });
  std::vector<std::uint64_t> load(static_cast<std::size_t>(world), 0);
  std::vector<bool> elsewhere(views.size(), false);
  Checksum digest;
  for (const auto* tensor : replicated) {
    const auto owner = std::min_element(load.begin(), load.end());
    *owner += std::max<std::uint64_t>(tensor->bytes, 1);
    if (owner - load.begin() != rank) elsewhere[tensor->source] = true;
    const std::string line = tensor->info.name + '\0' + std::string(dtr::to_string(tensor->info.dtype)) +
                             shape_string(tensor->info.global_shape) + '\n';
    digest.update(std::as_bytes(std::span(line)));
  }
  std::erase_if(tensors, [&](const PlannedTensor& tensor) { return elsewhere[tensor.source]; });
  return digest.value();
}

}  // namespace

Result<RankPlan> make_plan(std::span<const TensorView> tensors, int rank, int world) {
  RankPlan plan;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    auto planned = check(tensors[i], i);
    if (!planned) return fail(planned.error());
    plan.tensors.push_back(std::move(*planned));
  }
  std::sort(plan.tensors.begin(), plan.tensors.end(),
            [](const PlannedTensor& a, const PlannedTensor& b) { return a.info.name < b.info.name; });
  for (std::size_t i = 1; i < plan.tensors.size(); ++i) {
    if (plan.tensors[i].info.name == plan.tensors[i - 1].info.name) {
      return fail(Errc::already_exists, "tensor '" + plan.tensors[i].info.name + "' is given twice", "save");
    }
  }
  for (const auto& tensor : plan.tensors) {
    for (auto slash = tensor.info.name.find('/'); slash != std::string::npos;
         slash = tensor.info.name.find('/', slash + 1)) {
      const auto above = tensor.info.name.substr(0, slash);
      const auto at =
          std::lower_bound(plan.tensors.begin(), plan.tensors.end(), above,
                           [](const PlannedTensor& a, const std::string& name) { return a.info.name < name; });
      if (at == plan.tensors.end() || at->info.name != above) continue;
      return fail(Errc::invalid_argument,
                  "'" + above + "' is a tensor and also the folder of '" + tensor.info.name + "'", "save");
    }
  }

  plan.replicated = share_replicated(plan.tensors, tensors, rank, world);
  for (auto& tensor : plan.tensors) {
    const auto alignment = tensor.bytes >= kLarge ? kPage : kLine;
    tensor.staging = (plan.staging_bytes + alignment - 1) / alignment * alignment;
    plan.staging_bytes = tensor.staging + tensor.bytes;
  }
  return plan;
}

}  // namespace checkpoint
}  // namespace dtr::inline v0
