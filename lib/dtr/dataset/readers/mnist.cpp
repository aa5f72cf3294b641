#include "dtr/dataset/readers/mnist.hpp"

#include <filesystem>

#include "dtr/dataset/readers/idx.hpp"

namespace dtr::inline v0 {

namespace {

constexpr const char* kOperation = "open dataset";

Result<std::string> find(const std::string& folder, MnistPart part, const std::string& kind) {
  const std::string plain =
      (std::filesystem::path(folder) / ((part == MnistPart::train ? "train-" : "t10k-") + kind)).string();
  std::error_code ignored;
  for (const std::string& path : {plain, plain + ".gz"}) {
    if (std::filesystem::exists(path, ignored)) return path;
  }
  return fail(Errc::not_found, "there is neither '" + plain + "' nor the same with .gz", kOperation);
}

}  // namespace

Result<std::string> mnist_images_path(const std::string& folder, MnistPart part) {
  return find(folder, part, "images-idx3-ubyte");
}

Result<LabelledImages> open_mnist(const std::string& folder, MnistPart part) {
  const auto images_path = mnist_images_path(folder, part);
  if (!images_path) return fail(images_path.error());
  const auto labels_path = find(folder, part, "labels-idx1-ubyte");
  if (!labels_path) return fail(labels_path.error());
  const auto images = open_idx(*images_path);
  if (!images) return fail(images.error());
  const auto labels = open_idx(*labels_path);
  if (!labels) return fail(labels.error());

  if ((*images)->type() != DType::u8 || (*images)->sample_shape().size() != 2) {
    return fail(Errc::corrupt, "'" + *images_path + "' does not hold two-dimensional images of bytes", kOperation);
  }
  if ((*labels)->type() != DType::u8 || !(*labels)->sample_shape().empty()) {
    return fail(Errc::corrupt, "'" + *labels_path + "' does not hold one byte a sample", kOperation);
  }
  if ((*images)->samples() != (*labels)->samples()) {
    return fail(Errc::corrupt,
                "'" + *images_path + "' has " + std::to_string((*images)->samples()) + " images, but '" + *labels_path +
                    "' has " + std::to_string((*labels)->samples()) + " labels",
                kOperation);
  }
  return LabelledImages{*images, *labels};
}

}  // namespace dtr::inline v0
