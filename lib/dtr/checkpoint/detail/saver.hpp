// One save, from staged bytes to a committed step, on the background thread of every rank at once:
//   begin  everybody's input is right, and rank 0 has made the temporary folder
//   ready  everybody's file is written and synced
//   done   rank 0 has written the manifest and renamed the folder, or says why not
// All three rounds take place whatever happens, so that the next save starts level.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "dtr/base/deadline.hpp"
#include "dtr/checkpoint/detail/plan.hpp"
#include "dtr/checkpoint/detail/rank_writer.hpp"
#include "dtr/checkpoint/detail/staging_pool.hpp"
#include "dtr/checkpoint/detail/store.hpp"
#include "dtr/checkpoint/detail/word.hpp"
#include "dtr/runtime/group.hpp"

namespace dtr::inline v0 {
namespace checkpoint {

struct SaveJob {
  std::uint64_t step = 0;
  RankPlan plan{};
  StagingPool::Lease staging{};
  std::optional<Error> error{};  ///< what was wrong on this rank before it began; the others have to learn it
};

struct SaverOptions {
  std::uint64_t keep_last_n = 5;
  bool direct_io = true;
  /// What the save has reached: "begin", "write", "ready", "manifest", "commit", "retire", "done".
  std::function<void(std::uint64_t step, std::string_view stage, std::uint64_t written, std::uint64_t total)>
      progress{};
  std::function<Deadline()> deadline{};  ///< asked whenever one is needed: closing shortens it
};

class Saver {
 public:
  Saver(Group& group, std::string path, WorkerPool& workers, SaverOptions options);

  /// Collective. The same outcome on every rank that could reach rank 0 until the end.
  [[nodiscard]] Result<void> save(SaveJob& job);

  /// After a save: deletes what it put into the trash.
  void tidy();

 private:
  [[nodiscard]] Word begin(const SaveJob& job);
  [[nodiscard]] Word write(const SaveJob& job, const std::string& temporary);
  [[nodiscard]] Result<void> commit(const SaveJob& job, const std::string& temporary, const std::vector<Word>& ready);
  [[nodiscard]] Result<void> write_index(const std::string& folder, const Manifest& manifest);
  void report(const SaveJob& job, std::string_view stage, std::uint64_t written = 0) const;
  [[nodiscard]] Word word(const SaveJob& job) const;
  [[nodiscard]] Result<std::vector<Word>> meet(std::string_view round, const Word& mine);

  Group& group_;
  Store store_;
  bool untidy_ = false;
  RankWriter writer_;
  SaverOptions options_;
  std::uint64_t number_ = 0;
  // Rank 0: the index of the last step, nearly always that of the next one too.
  Manifest indexed_{};
  std::optional<FileLayout> index_{};
};

}  // namespace checkpoint
}  // namespace dtr::inline v0
