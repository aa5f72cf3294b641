// Ranks as threads that save and load in one folder, and ways to break what they wrote.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <fstream>
#include <functional>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "dtr/checkpoint/checkpoint_manager.hpp"
#include "dtr/checkpoint/detail/names.hpp"
#include "support/test_support.hpp"
#include "support/thread_group.hpp"

namespace dtr::testing {

/// Runs `body` once for each rank, each on its own thread. A failed expectation or an exception fails the test.
inline void as_ranks(int size, const std::function<void(Group&)>& body) {
  auto groups = ThreadGroup::make(size);
  std::vector<std::thread> threads;
  threads.reserve(groups.size());
  for (auto& group : groups) {
    threads.emplace_back([&] {
      try {
        body(*group);
      } catch (const std::exception& error) {
        ADD_FAILURE() << "rank " << group->rank() << " threw: " << error.what();
      }
    });
  }
  for (auto& thread : threads) thread.join();
}

inline std::chrono::milliseconds patience() { return scaled(std::chrono::seconds(30)); }

/// Values that differ at every position and between steps.
inline std::vector<float> numbers(std::size_t count, std::uint64_t step) {
  std::vector<float> values(count);
  for (std::size_t i = 0; i < count; ++i) values[i] = static_cast<float>(i % 8191) + static_cast<float>(step) * 0.25F;
  return values;
}

/// Rows [first, last) of `rows` that belong to `rank` of `size`.
inline Box rows_of(int rank, int size, std::uint64_t rows, std::uint64_t columns) {
  const auto r = static_cast<std::uint64_t>(rank);
  const auto n = static_cast<std::uint64_t>(size);
  const std::uint64_t first = rows * r / n;
  return {.offset = {first, 0}, .extent = {rows * (r + 1) / n - first, columns}};
}

inline std::filesystem::path step_folder(const std::filesystem::path& store, std::uint64_t step) {
  return store / checkpoint::step_name(step);
}

/// Saves one tensor "w" of `count` floats from one rank.
inline Result<void> save_alone(const std::filesystem::path& store, std::uint64_t step, std::size_t count = 1000,
                               std::uint64_t keep = 0) {
  SoloGroup solo;
  CheckpointManager manager(solo, {.path = store.string(), .keep_last_n = keep, .writers = 1});
  const auto values = numbers(count, step);
  return manager.save(step, {TensorView::of("w", values)}, patience());
}

inline std::string read_all(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

inline void write_all(const std::filesystem::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

inline void flip_bit(const std::filesystem::path& path, std::uint64_t offset, unsigned bit = 0) {
  std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
  file.seekg(static_cast<std::streamoff>(offset));
  const char changed = static_cast<char>(file.get() ^ (1U << bit));
  file.seekp(static_cast<std::streamoff>(offset));
  file.put(changed);
  ASSERT_TRUE(file.good()) << path;
}

/// What is in the store besides complete steps and the lock.
inline std::vector<std::string> leftovers(const std::filesystem::path& store) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(store)) {
    const auto name = entry.path().filename().string();
    if (!checkpoint::parse_step_name(name) && name != checkpoint::kLockName) names.push_back(name);
  }
  return names;
}

}  // namespace dtr::testing
