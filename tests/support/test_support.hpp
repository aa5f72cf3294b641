// What every test may use: scaled time bounds, temporary folders.
#pragma once

#include <chrono>
#include <filesystem>
#include <string>

namespace dtr::testing {

/// A bound on a hang or a detection, stretched by DTR_TEST_TIME_SCALE (sanitizers, slow machines) and by crowding().
[[nodiscard]] std::chrono::milliseconds scaled(std::chrono::milliseconds bound);

/// How many times longer than alone a process may take here now: the machine's load for each core, of the last minute
/// or of this moment, from 1 to 4.
[[nodiscard]] double crowding();

/// A fresh folder, removed with everything in it when the object goes.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  [[nodiscard]] const std::filesystem::path& path() const noexcept { return path_; }
  [[nodiscard]] std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

/// Number of open descriptors of this process: equal before and after means that none leaked.
[[nodiscard]] std::size_t open_descriptors();

}  // namespace dtr::testing
