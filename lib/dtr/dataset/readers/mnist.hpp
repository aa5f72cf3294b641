// The four files of MNIST and its kin (Fashion-MNIST, KMNIST, ...): images and labels, for training and for test.
#pragma once

#include <string>

#include "dtr/dataset/readers/reader.hpp"

namespace dtr::inline v0 {

enum class MnistPart { train, test };

struct LabelledImages {
  ReaderPtr images;  ///< u8 [rows, columns] a sample
  ReaderPtr labels;  ///< u8, one a sample
};

/// Opens train-images-idx3-ubyte and train-labels-idx1-ubyte (t10k-... for test) of a folder, with .gz or without.
/// Errors: not_found (naming both names tried), corrupt (different numbers of images and labels, other shapes than
/// these), and those of open_idx.
[[nodiscard]] Result<LabelledImages> open_mnist(const std::string& folder, MnistPart part);

/// The file of the images: the path to register.
[[nodiscard]] Result<std::string> mnist_images_path(const std::string& folder, MnistPart part);

}  // namespace dtr::inline v0
