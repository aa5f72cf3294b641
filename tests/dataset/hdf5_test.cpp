#include "dtr/dataset/readers/hdf5.hpp"

#include <array>
#include <atomic>
#include <numeric>
#include <thread>

#include <gtest/gtest.h>

#include "dataset/files.hpp"
#include "support/test_support.hpp"

namespace dtr {
namespace {

using testing::TemporaryFolder;
using testing::write_file;
using testing::write_hdf5;

std::vector<float> ramp(std::size_t count) {
  std::vector<float> values(count);
  std::iota(values.begin(), values.end(), 0.0F);
  return values;
}

std::string error_of(const std::string& path, const std::string& dataset) {
  const auto reader = open_hdf5(path, dataset);
  return reader ? "no error" : reader.error().to_string();
}

TEST(Hdf5Test, HyperslabsAlongDimensionZero) {
  const TemporaryFolder folder;
  const auto values = ramp(50 * 6);
  for (const hsize_t chunk : {hsize_t{0}, hsize_t{7}}) {  // contiguous, and compressed in chunks
    const std::string path = (folder / ("f" + std::to_string(chunk) + ".h5")).string();
    write_hdf5(path, "/train/images", H5T_NATIVE_FLOAT, {50, 2, 3}, values.data(), chunk);
    const auto reader = open_hdf5(path, "/train/images").value();
    EXPECT_EQ(reader->samples(), 50U);
    EXPECT_EQ(reader->type(), DType::f32);
    EXPECT_EQ(reader->sample_bytes(), 24U);
    EXPECT_FALSE(reader->random_access());
    std::vector<float> part(4 * 6);
    ASSERT_TRUE(reader->read(13, 4, std::as_writable_bytes(std::span(part))));
    EXPECT_TRUE(std::equal(part.begin(), part.end(), values.begin() + 13 * 6));
  }
}

TEST(Hdf5Test, ForeignByteOrderIsConverted) {
  const TemporaryFolder folder;
  const std::string path = (folder / "f.h5").string();
  const std::array<unsigned char, 8> big_endian{0, 0, 1, 2, 0xff, 0xff, 0xff, 0xfe};
  write_hdf5(path, "x", H5T_STD_I32BE, {2}, big_endian.data());
  const auto reader = open_hdf5(path, "x").value();
  std::array<std::int32_t, 2> values{};
  ASSERT_TRUE(reader->read(0, 2, std::as_writable_bytes(std::span(values))));
  EXPECT_EQ(values, (std::array<std::int32_t, 2>{258, -2}));
}

TEST(Hdf5Test, TheOnlyDatasetNeedsNoName) {
  const TemporaryFolder folder;
  const std::string path = (folder / "f.h5").string();
  const auto values = ramp(4);
  write_hdf5(path, "labels", H5T_NATIVE_FLOAT, {4}, values.data());
  EXPECT_EQ(open_hdf5(path, "").value()->name(), path + ":labels");
  write_hdf5(path, "images", H5T_NATIVE_FLOAT, {4}, values.data(), 0, true);
  EXPECT_EQ(error_of(path, ""),
            "open dataset: not_found: '" + path + "': say which dataset; at the root there are: images, labels");
}

TEST(Hdf5Test, WrongFilesAndDatasetsAreNamedAndHdf5StaysSilent) {
  const TemporaryFolder folder;
  const std::string path = (folder / "f.h5").string();
  const std::string missing = (folder / "none").string();
  ::testing::internal::CaptureStderr();
  EXPECT_NE(error_of(missing, "x").find("not_found: open " + missing), std::string::npos);
  write_file(path, "no HDF5 at all");
  EXPECT_EQ(error_of(path, "x"), "open dataset: corrupt: '" + path + "' is no HDF5 file");
  const auto values = ramp(4);
  write_hdf5(path, "labels", H5T_NATIVE_FLOAT, {4}, values.data());
  const std::string text = error_of(path, "images");
  EXPECT_TRUE(text.starts_with("open dataset: not_found: '" + path + "': cannot open dataset 'images' (")) << text;
  EXPECT_TRUE(text.ends_with("; at the root there are: labels")) << text;
  write_hdf5(path, "scalar", H5T_NATIVE_FLOAT, {}, values.data(), 0, true);
  EXPECT_EQ(error_of(path, "scalar"),
            "open dataset: unsupported: '" + path + ":scalar' has no dimension to count samples by");
  const hid_t text_type = H5Tcopy(H5T_C_S1);
  write_hdf5(path, "text", text_type, {4}, "abc", 0, true);
  H5Tclose(text_type);
  EXPECT_EQ(error_of(path, "text"),
            "open dataset: unsupported: '" + path + ":text' holds neither integers nor f32 nor f64");
  std::filesystem::resize_file(path, 1000);
  EXPECT_TRUE(error_of(path, "labels").starts_with("open dataset: corrupt: '" + path + "': "));
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "");
}

TEST(Hdf5Test, ManyThreadsReadTheirOwnRows) {
  const TemporaryFolder folder;
  const std::string path = (folder / "f.h5").string();
  const auto values = ramp(1000 * 4);
  write_hdf5(path, "x", H5T_NATIVE_FLOAT, {1000, 4}, values.data(), 10);
  const auto reader = open_hdf5(path, "x").value();
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (std::uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::vector<float> row(4);
      for (std::uint64_t i = t; i < 1000; i += 4) {
        if (!reader->read(i, 1, std::as_writable_bytes(std::span(row))) || row[0] != static_cast<float>(i * 4)) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

TEST(Hdf5Test, NothingStaysOpen) {
  const TemporaryFolder folder;
  const std::string path = (folder / "f.h5").string();
  const auto values = ramp(4);
  write_hdf5(path, "x", H5T_NATIVE_FLOAT, {4}, values.data());
  const std::size_t descriptors = testing::open_descriptors();
  const auto objects = H5Fget_obj_count(H5F_OBJ_ALL, H5F_OBJ_ALL);
  for (int i = 0; i < 5; ++i) {
    EXPECT_TRUE(open_hdf5(path, "x"));
    EXPECT_FALSE(open_hdf5(path, "y"));
  }
  EXPECT_EQ(testing::open_descriptors(), descriptors);
  EXPECT_EQ(H5Fget_obj_count(H5F_OBJ_ALL, H5F_OBJ_ALL), objects);
}

}  // namespace
}  // namespace dtr
