#include "dtr/checkpoint/checkpoint.hpp"

#include "dtr/checkpoint/detail/geometry.hpp"
#include "dtr/checkpoint/detail/loaded_step.hpp"

namespace dtr::inline v0 {

namespace checkpoint {

namespace {

Result<const TensorEntry*> find_tensor(const Manifest& manifest, std::string_view name) {
  if (const auto* entry = manifest.find(name); entry != nullptr) return entry;
  return fail(Errc::not_found, "step " + std::to_string(manifest.step) + " has no tensor '" + std::string(name) + "'",
              "load");
}

Result<Box> box_within(const Box& asked, const TensorEntry& tensor) {
  Box box = whole_or(asked, tensor.info.global_shape);
  if (is_inside(box, tensor.info.global_shape)) return box;
  return fail(Errc::out_of_range,
              "tensor '" + tensor.info.name + "': box " + to_string(box) + " leaves the shape " +
                  shape_string(tensor.info.global_shape),
              "load");
}

}  // namespace

Result<BoxRead> LoadedStep::resolve(const TensorTarget& target) const {
  const auto tensor = find_tensor(manifest, target.name);
  if (!tensor) return fail(tensor.error());
  auto box = box_within(target.box, **tensor);
  if (!box) return fail(box.error());
  const auto bytes = *volume(box->extent) * size_of((*tensor)->info.dtype);
  if (target.data.size() != bytes) {
    return fail(Errc::invalid_argument,
                "tensor '" + target.name + "': the target has " + std::to_string(target.data.size()) + " bytes, box " +
                    to_string(*box) + " of " + std::string(dtr::to_string((*tensor)->info.dtype)) + " has " +
                    std::to_string(bytes),
                "load");
  }
  return BoxRead{.tensor = *tensor, .box = std::move(*box), .target = target.data};
}

Result<void> LoadedStep::check(std::span<const TensorTarget> targets) const {
  for (const auto& target : targets) {
    if (auto resolved = resolve(target); !resolved) return fail(resolved.error());
  }
  return {};
}

Result<void> LoadedStep::read(std::span<const TensorTarget> targets, Deadline deadline) const {
  std::vector<BoxRead> reads;
  for (const auto& target : targets) {
    auto read = resolve(target);
    if (!read) return fail(read.error());
    reads.push_back(std::move(*read));
  }
  return read_boxes(folder, manifest, reads, deadline);
}

}  // namespace checkpoint

std::uint64_t Checkpoint::step() const noexcept { return loaded_->manifest.step; }

int Checkpoint::world() const noexcept { return loaded_->manifest.world; }

std::vector<TensorInfo> Checkpoint::tensors() const {
  std::vector<TensorInfo> all;
  for (const auto& tensor : loaded_->manifest.tensors) all.push_back(tensor.info);
  return all;
}

Result<TensorInfo> Checkpoint::find(std::string_view name) const {
  const auto tensor = checkpoint::find_tensor(loaded_->manifest, name);
  if (!tensor) return fail(tensor.error());
  return (*tensor)->info;
}

const std::vector<std::string>& Checkpoint::skipped() const noexcept { return loaded_->skipped; }

Result<void> Checkpoint::read(const TensorTarget& target, Deadline deadline) const {
  return loaded_->read(std::span(&target, 1), deadline);
}

Result<void> Checkpoint::read(std::span<const TensorTarget> targets, Deadline deadline) const {
  return loaded_->read(targets, deadline);
}

Result<std::size_t> Checkpoint::count(const std::string& name, DType dtype, const Box& box) const {
  const auto tensor = checkpoint::find_tensor(loaded_->manifest, name);
  if (!tensor) return fail(tensor.error());
  if ((*tensor)->info.dtype != dtype) {
    return fail(Errc::invalid_argument,
                "tensor '" + name + "' holds " + std::string(to_string((*tensor)->info.dtype)) + ", not " +
                    std::string(to_string(dtype)),
                "load");
  }
  const auto inside = checkpoint::box_within(box, **tensor);
  if (!inside) return fail(inside.error());
  return *checkpoint::volume(inside->extent);
}

}  // namespace dtr::inline v0
