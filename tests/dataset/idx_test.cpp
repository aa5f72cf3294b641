#include "dtr/dataset/readers/idx.hpp"

#include <array>
#include <cstring>
#include <string>

#include <gtest/gtest.h>
#include <xxhash.h>

#include "dataset/files.hpp"
#include "dtr/dataset/readers/mnist.hpp"
#include "support/test_support.hpp"

namespace dtr {
namespace {

using testing::counting;
using testing::gzipped;
using testing::idx_header;
using testing::TemporaryFolder;
using testing::write_file;

constexpr unsigned char kU8 = 0x08;
constexpr unsigned char kI16 = 0x0b;
constexpr unsigned char kF32 = 0x0d;

std::string read_all(const SampleReader& reader, std::uint64_t first, std::uint64_t count) {
  std::string bytes(count * reader.sample_bytes(), '\xee');
  const auto done = reader.read(first, count, std::as_writable_bytes(std::span(bytes)));
  EXPECT_TRUE(done) << done.error().to_string();
  return bytes;
}

std::string error_of(const std::string& path) {
  const auto reader = open_idx(path);
  return reader ? "no error" : reader.error().to_string();
}

TEST(IdxTest, PlainAndGzippedFilesReadTheSame) {
  const TemporaryFolder folder;
  const std::string file = idx_header(kU8, {10, 3, 4}) + counting(120);
  write_file(folder / "plain", file);
  write_file(folder / "packed", gzipped(file));
  for (const std::string name : {"plain", "packed"}) {
    const auto reader = open_idx((folder / name).string()).value();
    EXPECT_EQ(reader->samples(), 10U);
    EXPECT_EQ(reader->type(), DType::u8);
    EXPECT_EQ(reader->sample_bytes(), 12U);
    EXPECT_EQ(std::vector(reader->sample_shape().begin(), reader->sample_shape().end()),
              (std::vector<std::uint64_t>{3, 4}));
    EXPECT_EQ(read_all(*reader, 0, 10), counting(120));
    EXPECT_EQ(read_all(*reader, 7, 2), counting(120).substr(84, 24));
    EXPECT_EQ(read_all(*reader, 10, 0), "");
  }
}

TEST(IdxTest, GzipFilesOfSeveralMembersAreOneFile) {
  const TemporaryFolder folder;
  const std::string file = idx_header(kU8, {100}) + counting(100);
  write_file(folder / "members", gzipped(file.substr(0, 30)) + gzipped(file.substr(30)));
  EXPECT_EQ(read_all(*open_idx((folder / "members").string()).value(), 0, 100), counting(100));
}

TEST(IdxTest, WideElementsComeInTheOrderOfThisMachine) {
  const TemporaryFolder folder;
  write_file(folder / "i16", idx_header(kI16, {3}) + std::string("\x01\x02\xff\xfe\x00\x05", 6));
  write_file(folder / "f32", gzipped(idx_header(kF32, {2}) + std::string("\x3f\x80\x00\x00\xc0\x20\x00\x00", 8)));
  std::array<std::int16_t, 2> shorts{};
  ASSERT_TRUE(open_idx((folder / "i16").string()).value()->read(0, 2, std::as_writable_bytes(std::span(shorts))));
  EXPECT_EQ(shorts, (std::array<std::int16_t, 2>{0x0102, -2}));
  std::array<float, 2> floats{};
  ASSERT_TRUE(open_idx((folder / "f32").string()).value()->read(0, 2, std::as_writable_bytes(std::span(floats))));
  EXPECT_EQ(floats, (std::array<float, 2>{1.0F, -2.5F}));
}

TEST(IdxTest, DamagedFilesAreRefusedWithTheirNameAndReason) {
  const TemporaryFolder folder;
  const std::string good = idx_header(kU8, {10, 2}) + counting(20);
  const auto error = [&](const std::string& bytes) {
    const std::string path = (folder / "f").string();
    write_file(path, bytes);
    std::string text = error_of(path);
    const auto at = text.find(path);
    return at == std::string::npos ? text : text.replace(at, path.size(), "F");
  };
  EXPECT_EQ(error(good), "no error");
  EXPECT_EQ(error(""), "open dataset: truncated: 'F' ends after 0 bytes, inside the idx header");
  EXPECT_EQ(error(good.substr(0, 11)), "open dataset: truncated: 'F' ends after 11 bytes, inside the idx header");
  EXPECT_EQ(error(good.substr(0, 31)), "open dataset: truncated: 'F' ends after 31 bytes, its header announces 32");
  EXPECT_EQ(error(good + "x"), "open dataset: corrupt: 'F' has 1 bytes behind its data");
  EXPECT_EQ(error("PK\x03\x04 no idx"), "open dataset: corrupt: 'F' is no idx file: it begins with 50 4b 03 04");
  EXPECT_EQ(error(idx_header(0x0a, {1}) + "x"),
            "open dataset: corrupt: 'F' is no idx file: it begins with 00 00 0a 01");
  EXPECT_EQ(error(idx_header(kU8, {})), "open dataset: corrupt: 'F' is no idx file: it begins with 00 00 08 00");
  EXPECT_EQ(error(idx_header(kU8, {5, 0})), "open dataset: corrupt: 'F' has a dimension of 0");
  EXPECT_EQ(error(idx_header(kU8, {1, ~0U, ~0U, ~0U})), "open dataset: corrupt: 'F' claims samples beyond 2^62 bytes");
  EXPECT_EQ(error(idx_header(kU8, {~0U, ~0U, 2})), "open dataset: corrupt: 'F' claims a size beyond 2^62 bytes");
  EXPECT_EQ(error(idx_header(kU8, {~0U, 2})),
            "open dataset: truncated: 'F' ends after 12 bytes, its header announces 8589934602");
}

TEST(IdxTest, AFileThatOpensHoldsWhatItsHeaderSays) {
  // Every byte of the header, every bit: either an Error, or a set that is read to its last byte.
  const TemporaryFolder folder;
  const std::string path = (folder / "f").string();
  const std::string good = idx_header(kU8, {6, 4}) + counting(24);
  int opened = 0;
  for (std::size_t bit = 0; bit < 12 * 8; ++bit) {
    std::string bad = good;
    bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ 1 << bit % 8);
    write_file(path, bad);
    const auto reader = open_idx(path);
    if (!reader) {
      EXPECT_NE(reader.error().message.find(path), std::string::npos);
      continue;
    }
    ++opened;
    EXPECT_EQ(4 + 4 * (1 + (*reader)->sample_shape().size()) + (*reader)->samples() * (*reader)->sample_bytes(), 36U);
    read_all(**reader, 0, (*reader)->samples());
  }
  EXPECT_GE(opened, 1) << "u8 and i8 differ by one bit";
}

TEST(IdxTest, DamagedGzipIsRefusedWithItsName) {
  const TemporaryFolder folder;
  const std::string good = gzipped(idx_header(kU8, {3000}) + counting(3000));
  const auto error = [&](const std::string& bytes) {
    const std::string path = (folder / "f").string();
    write_file(path, bytes);
    std::string text = error_of(path);
    const auto at = text.find(path);
    return at == std::string::npos ? text : text.replace(at, path.size(), "F");
  };
  EXPECT_EQ(error(good), "no error");
  EXPECT_EQ(error(good + "junk"), "open dataset: corrupt: 'F' has 4 bytes of garbage at its end");
  EXPECT_EQ(error(good.substr(0, good.size() - 1)), "open dataset: corrupt: 'F' is a damaged or truncated gzip file");
  EXPECT_EQ(error(good.substr(0, 12)), "open dataset: truncated: 'F' ends inside a gzip header");
  for (std::size_t at = 10; at < good.size(); at += 7) {
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ 0x10);
    const std::string text = error(bad);
    EXPECT_TRUE(text.starts_with("open dataset: ") && text.find('F') != std::string::npos) << at << ": " << text;
  }
}

TEST(IdxTest, MissingFilesAndFoldersAreNamed) {
  const TemporaryFolder folder;
  const auto missing = open_idx((folder / "none").string());
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().code, Errc::not_found);
  EXPECT_NE(missing.error().message.find((folder / "none").string()), std::string::npos);
  EXPECT_EQ(error_of(folder.path().string()),
            "open dataset: invalid_argument: '" + folder.path().string() + "' is no regular file");
}

TEST(IdxTest, ReadsOutsideAndIntoWrongBuffersAreRefused) {
  const TemporaryFolder folder;
  const std::string path = (folder / "f").string();
  write_file(path, idx_header(kU8, {10, 2}) + counting(20));
  const auto reader = open_idx(path).value();
  std::array<std::byte, 6> buffer{};
  EXPECT_EQ(reader->read(8, 3, buffer).error().to_string(),
            "read samples: out_of_range: samples 8 to 11 of '" + path + "', which has 10");
  EXPECT_EQ(reader->read(~std::uint64_t{0}, 3, buffer).error().code, Errc::out_of_range);
  EXPECT_EQ(reader->read(0, 2, buffer).error().to_string(),
            "read samples: invalid_argument: 2 samples of '" + path + "' need 4 bytes, the buffer has 6");
}

TEST(IdxTest, AFileCutWhileOpenIsAnError) {
  const TemporaryFolder folder;
  const std::string path = (folder / "f").string();
  write_file(path, idx_header(kU8, {10, 2}) + counting(20));
  const auto reader = open_idx(path).value();
  std::filesystem::resize_file(path, 20);
  std::array<std::byte, 20> buffer{};
  EXPECT_EQ(reader->read(0, 10, buffer).error().to_string(),
            "read samples: truncated: '" + path + "' became shorter while it was open");
}

TEST(IdxTest, DescriptorsDoNotLeak) {
  const TemporaryFolder folder;
  write_file(folder / "good", idx_header(kU8, {10, 2}) + counting(20));
  write_file(folder / "bad", idx_header(kU8, {10, 2}) + counting(19));
  const std::size_t before = testing::open_descriptors();
  for (int i = 0; i < 10; ++i) {
    EXPECT_TRUE(open_idx((folder / "good").string()));
    EXPECT_FALSE(open_idx((folder / "bad").string()));
  }
  EXPECT_EQ(testing::open_descriptors(), before);
}

TEST(MnistTest, ImagesAndLabelsHaveToFit) {
  const TemporaryFolder folder;
  const std::string path = folder.path().string();
  EXPECT_EQ(open_mnist(path, MnistPart::train).error().to_string(),
            "open dataset: not_found: there is neither '" + path + "/train-images-idx3-ubyte' nor the same with .gz");
  write_file(folder / "train-images-idx3-ubyte", idx_header(kU8, {2, 3, 3}) + counting(18));
  write_file(folder / "train-labels-idx1-ubyte.gz", gzipped(idx_header(kU8, {3}) + counting(3)));
  EXPECT_EQ(open_mnist(path, MnistPart::train).error().to_string(),
            "open dataset: corrupt: '" + path + "/train-images-idx3-ubyte' has 2 images, but '" + path +
                "/train-labels-idx1-ubyte.gz' has 3 labels");
  write_file(folder / "train-labels-idx1-ubyte.gz", gzipped(idx_header(kU8, {2, 1}) + counting(2)));
  EXPECT_EQ(open_mnist(path, MnistPart::train).error().code, Errc::corrupt);
}

// The real set, from the Debian package.
constexpr const char* kFashionMnist = "/usr/share/datasets/fashion-mnist";

struct Expected {
  MnistPart part;
  std::uint64_t samples;
  std::uint64_t images_hash;
  std::uint64_t labels_hash;
};

TEST(FashionMnistTest, CountsShapesHistogramsAndChecksumsAreThoseOfTheSet) {
  ASSERT_TRUE(std::filesystem::exists(kFashionMnist)) << "package dataset-fashion-mnist is not installed";
  for (const Expected& expected : {Expected{MnistPart::train, 60'000, 0xc11b6543ae1530f3U, 0x46e784b61aa2b893U},
                                   Expected{MnistPart::test, 10'000, 0xacf1cd2c87a40a9bU, 0xf3627f35e9cae75fU}}) {
    const LabelledImages set = open_mnist(kFashionMnist, expected.part).value();
    ASSERT_EQ(set.images->samples(), expected.samples);
    ASSERT_EQ(set.labels->samples(), expected.samples);
    EXPECT_EQ(std::vector(set.images->sample_shape().begin(), set.images->sample_shape().end()),
              (std::vector<std::uint64_t>{28, 28}));
    const std::string images = read_all(*set.images, 0, expected.samples);
    const std::string labels = read_all(*set.labels, 0, expected.samples);
    std::array<std::uint64_t, 256> histogram{};
    for (const char label : labels) ++histogram[static_cast<unsigned char>(label)];
    for (std::size_t label = 0; label < 256; ++label) {
      EXPECT_EQ(histogram[label], label < 10 ? expected.samples / 10 : 0) << label;
    }
    EXPECT_EQ(XXH3_64bits(images.data(), images.size()), expected.images_hash);
    EXPECT_EQ(XXH3_64bits(labels.data(), labels.size()), expected.labels_hash);
  }
}

}  // namespace
}  // namespace dtr
