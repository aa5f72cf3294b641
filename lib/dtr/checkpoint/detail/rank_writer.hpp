// Writes one rank's part of a step: its HDF5 file, durable, and the manifest's lines about it.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "dtr/base/deadline.hpp"
#include "dtr/checkpoint/detail/manifest.hpp"
#include "dtr/checkpoint/detail/plan.hpp"
#include "dtr/checkpoint/detail/rank_file.hpp"
#include "dtr/checkpoint/detail/worker_pool.hpp"

namespace dtr::inline v0 {
namespace checkpoint {

class RankWriter {
 public:
  RankWriter(WorkerPool& workers, bool direct_io) : workers_(workers), direct_io_(direct_io) {}

  struct Job {
    std::string folder{};  ///< exists
    std::uint64_t step = 0;
    int rank = 0;
    int world = 1;
    const RankPlan* plan = nullptr;
    std::span<const std::byte> staging{};
    std::function<Result<void>()> check{};                        ///< asked before each piece: go on?
    std::function<void(std::uint64_t bytes_written)> progress{};  ///< after each piece, on a worker
  };

  /// The file is synced, its folder is not. A rank without tensors writes no file.
  [[nodiscard]] Result<Manifest> write(const Job& job);

 private:
  struct Output;
  [[nodiscard]] Result<const FileLayout*> layout_of(const RankPlan& plan);
  [[nodiscard]] Result<Output> create(const std::string& path, const Job& job, const FileLayout& layout);
  [[nodiscard]] Result<void> write_pieces(const Output& output, const Job& job, Manifest& manifest);

  WorkerPool& workers_;
  bool direct_io_;
  // The layout depends on names, types and extents only, so the one of the last save nearly always fits again.
  std::vector<DatasetSpec> specs_;
  std::optional<FileLayout> layout_;
};

}  // namespace checkpoint
}  // namespace dtr::inline v0
