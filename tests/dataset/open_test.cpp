// CSV files, folders of files, and what DatasetInfo says about both.
#include "dtr/dataset/readers/open.hpp"

#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "dataset/files.hpp"
#include "dtr/dataset/readers/csv.hpp"
#include "support/test_support.hpp"

namespace dtr {
namespace {

using testing::counting;
using testing::idx_header;
using testing::TemporaryFolder;
using testing::write_file;

std::vector<float> floats(const SampleReader& reader, std::uint64_t first, std::uint64_t count) {
  std::vector<float> values(count * reader.sample_bytes() / sizeof(float));
  const auto done = reader.read(first, count, std::as_writable_bytes(std::span(values)));
  EXPECT_TRUE(done) << done.error().to_string();
  return values;
}

TEST(CsvTest, NumbersInLinesAreSamples) {
  const TemporaryFolder folder;
  const std::string path = (folder / "f.csv").string();
  write_file(path, "a,b,c\r\n1,2.5,-3e2\r\n 4 , 5,6\n7,8,9");
  const auto reader = open_csv(path, {.header = true}).value();
  EXPECT_EQ(reader->samples(), 3U);
  EXPECT_EQ(reader->sample_bytes(), 12U);
  EXPECT_EQ(floats(*reader, 0, 3), (std::vector<float>{1, 2.5, -300, 4, 5, 6, 7, 8, 9}));
  EXPECT_EQ(floats(*reader, 2, 1), (std::vector<float>{7, 8, 9}));
}

TEST(CsvTest, AnyLineOfALongFileIsFound) {
  const TemporaryFolder folder;
  const std::string path = (folder / "f.csv").string();
  std::string text;
  for (int i = 0; i < 100'000; ++i) text += std::to_string(i) + ';' + std::to_string(i * 2) + '\n';
  write_file(path, text);
  const auto reader = open_csv(path, {.delimiter = ';'}).value();
  ASSERT_EQ(reader->samples(), 100'000U);
  for (const std::uint64_t i : {0U, 1U, 63U, 64U, 65U, 70'001U, 99'999U}) {
    EXPECT_EQ(floats(*reader, i, 1), (std::vector<float>{static_cast<float>(i), static_cast<float>(i * 2)}));
  }
  const auto run = floats(*reader, 50'000, 1000);
  EXPECT_EQ(run.back(), 2 * 50'999.0F);
}

TEST(CsvTest, BadLinesAreNamedWithFileAndNumber) {
  const TemporaryFolder folder;
  const std::string path = (folder / "f.csv").string();
  const auto read_error = [&](const std::string& text) {
    write_file(path, text);
    const auto reader = open_csv(path);
    if (!reader) return reader.error().to_string();
    std::vector<std::byte> bytes((*reader)->samples() * (*reader)->sample_bytes());
    const auto done = (*reader)->read(0, (*reader)->samples(), bytes);
    return done ? std::string("no error") : done.error().to_string();
  };
  const std::string start = "read samples: corrupt: '" + path + "' line 2: ";
  EXPECT_EQ(read_error("1,2\n3,4\n"), "no error");
  EXPECT_EQ(read_error("1,2\n3\n"), start + "not 2 columns, as the first line has");
  EXPECT_EQ(read_error("1,2\n3,4,5\n"), start + "not 2 columns, as the first line has");
  EXPECT_EQ(read_error("1,2\n3,\"4\"\n"), start + "'\"4\"' is no number");
  EXPECT_EQ(read_error("1,2\n3,\n"), start + "'' is no number");
  EXPECT_EQ(read_error("1,2\n\n3,4\n"), start + "is empty");
}

TEST(OpenTest, AFolderIsOneRowOfSamplesInTheOrderOfItsNames) {
  const TemporaryFolder folder;
  write_file(folder / "b", idx_header(0x08, {3, 2}) + counting(20).substr(8, 6));
  write_file(folder / "a", idx_header(0x08, {4, 2}) + counting(8));
  write_file(folder / "b0", idx_header(0x08, {0, 2}));
  write_file(folder / "c", idx_header(0x08, {3, 2}) + counting(20).substr(14, 6));
  write_file(folder / ".hidden", "x");
  write_file(folder / "_SUCCESS", "");
  const auto reader = open_dataset({.id = "d", .path = folder.path().string(), .format = "idx"}).value();
  ASSERT_EQ(reader->samples(), 10U);
  std::string bytes(20, ' ');
  ASSERT_TRUE(reader->read(0, 10, std::as_writable_bytes(std::span(bytes))));
  EXPECT_EQ(bytes, counting(20));
  ASSERT_TRUE(reader->read(6, 2, std::as_writable_bytes(std::span(bytes).first(4))));
  EXPECT_EQ(bytes.substr(0, 4), counting(20).substr(12, 4));
}

TEST(OpenTest, MoreFilesThanStayOpen) {
  const TemporaryFolder folder;
  for (int i = 0; i < 100; ++i) {
    write_file(folder / std::to_string(1000 + i), idx_header(0x08, {1}) + static_cast<char>(i));
  }
  const std::size_t before = testing::open_descriptors();
  const auto reader = open_dataset({.id = "d", .path = folder.path().string(), .format = "idx"}).value();
  EXPECT_FALSE(reader->random_access());
  for (int round = 0; round < 2; ++round) {
    std::string bytes(100, ' ');
    ASSERT_TRUE(reader->read(0, 100, std::as_writable_bytes(std::span(bytes))));
    EXPECT_EQ(bytes, counting(100));
  }
  EXPECT_LE(testing::open_descriptors(), before + 64);
}

TEST(OpenTest, WhatCannotBeOpenedIsSaid) {
  const TemporaryFolder folder;
  const std::string path = folder.path().string();
  const auto error_of = [](const DatasetInfo& info) {
    const auto reader = open_dataset(info);
    return reader ? "no error" : reader.error().to_string();
  };
  EXPECT_EQ(error_of({.id = "d", .path = path + "/x"}),
            "open dataset: not_found: there is no file or folder '" + path + "/x'");
  EXPECT_EQ(error_of({.id = "d", .path = path}), "open dataset: not_found: folder '" + path + "' has no files");
  EXPECT_EQ(error_of({.id = "d", .path = "s3://bucket/set"}),
            "open dataset: unsupported: 's3://bucket/set': datasets are read from files; copy it to a local or shared "
            "folder");
  write_file(folder / "a", idx_header(0x08, {4, 2}) + counting(8));
  EXPECT_EQ(error_of({.id = "d", .path = path, .format = "parquet"}),
            "open dataset: unsupported: format 'parquet' of dataset 'd'; there are: idx, hdf5, csv");
  EXPECT_EQ(error_of({.id = "d", .path = path, .format = "idx", .total_samples = 5}),
            "open dataset: corrupt: '" + path + "' has 4 samples, dataset 'd' is registered with 5");
  EXPECT_EQ(error_of({.id = "d", .path = path, .format = "csv", .metadata = {{"header", "maybe"}}}),
            "open dataset: invalid_argument: metadata 'header' is 'maybe', not true or false");
  write_file(folder / "b", idx_header(0x08, {4, 3}) + counting(12));
  EXPECT_EQ(error_of({.id = "d", .path = path, .format = "idx"}),
            "open dataset: corrupt: '" + path + "/b' has samples of another shape or type than '" + path + "/a'");
}

}  // namespace
}  // namespace dtr
