// The folder that holds the steps, as rank 0 keeps it: who may write, what is complete, what goes.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "dtr/base/deadline.hpp"
#include "dtr/base/error.hpp"
#include "dtr/base/fd.hpp"
#include "dtr/checkpoint/detail/manifest.hpp"

namespace dtr::inline v0 {
namespace checkpoint {

class Store {
 public:
  explicit Store(std::string path);

  [[nodiscard]] const std::string& path() const noexcept { return path_; }
  [[nodiscard]] std::string step_path(std::uint64_t step) const;

  /// Steps by folder name, complete or not, ascending. A store that does not exist is empty.
  [[nodiscard]] Result<std::vector<std::uint64_t>> names() const;

  /// Steps with a valid manifest and files of the right sizes, ascending.
  [[nodiscard]] Result<std::vector<std::uint64_t>> complete() const;

  /// Makes the store, and becomes its only writer, waiting for another one to end.
  /// Errors: busy (another job writes here), permission_denied, no_space...
  [[nodiscard]] Result<void> open_for_writing(Deadline deadline);

  /// A new temporary folder for `step`; its name. Error: already_exists if the step is there and verifies.
  [[nodiscard]] Result<std::string> begin(std::uint64_t step, Deadline deadline);

  /// Makes the temporary folder the step: synced, renamed, parent synced. What it takes the place of was broken.
  [[nodiscard]] Result<void> commit(const std::string& temporary, std::uint64_t step);

  /// Renames all but the newest `keep` complete steps (and `saved`) to trash. Incomplete ones older than these go too.
  [[nodiscard]] Result<void> retire(std::uint64_t keep, std::uint64_t saved);

  /// Deletes trash and temporary folders: what dead runs left, and failed saves. Only after open_for_writing.
  [[nodiscard]] Result<void> clean();

 private:
  [[nodiscard]] std::string next_tag();
  [[nodiscard]] Result<void> lock(Deadline deadline);

  std::string path_;
  std::string run_tag_;  ///< random: no two runs make the same temporary name
  std::uint64_t tags_ = 0;
  UniqueFd lock_;
};

}  // namespace checkpoint
}  // namespace dtr::inline v0
