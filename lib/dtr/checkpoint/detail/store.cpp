#include "dtr/checkpoint/detail/store.hpp"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <random>
#include <thread>

#include <fcntl.h>
#include <sys/file.h>

#include "dtr/base/log.hpp"
#include "dtr/checkpoint/detail/names.hpp"
#include "dtr/checkpoint/detail/parallel_read.hpp"
#include "dtr/checkpoint/detail/step_reader.hpp"
#include "dtr/storage/local_file.hpp"

namespace dtr::inline v0 {
namespace checkpoint {

namespace {

constexpr auto kLockRetry = std::chrono::milliseconds(20);

bool is_complete(const std::string& folder, std::uint64_t step) {
  const auto manifest = read_manifest(folder, step);
  if (!manifest) return false;
  return StepReader(folder, *manifest).check_sizes().has_value();
}

}  // namespace

Store::Store(std::string path) : path_(std::move(path)) {
  while (path_.size() > 1 && path_.ends_with('/')) path_.pop_back();
  std::random_device random;
  run_tag_ = to_hex((std::uint64_t{random()} << 32U) | random());
}

std::string Store::step_path(std::uint64_t step) const { return path_ + "/" + step_name(step); }

std::string Store::next_tag() { return run_tag_ + "-" + std::to_string(++tags_); }

Result<std::vector<std::uint64_t>> Store::names() const {
  const auto entries = storage::list_folder(path_);
  std::vector<std::uint64_t> steps;
  if (!entries) {
    if (entries.error().code == Errc::not_found) return steps;
    return fail(entries.error());
  }
  for (const auto& entry : *entries) {
    if (const auto step = parse_step_name(entry)) steps.push_back(*step);
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

Result<std::vector<std::uint64_t>> Store::complete() const {
  auto steps = names();
  if (!steps) return steps;
  std::erase_if(*steps, [&](std::uint64_t step) { return !is_complete(step_path(step), step); });
  return steps;
}

Result<void> Store::lock(Deadline deadline) {
  const std::string file = path_ + "/" + std::string(kLockName);
  auto fd = storage::open_file(file, O_RDWR | O_CREAT);
  if (!fd) return fail(fd.error());
  while (::flock(fd->get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno == EINTR) continue;
    if (errno != EWOULDBLOCK) {
      // Some network file systems have no locks. Then one writer at a time is up to the user.
      DTR_LOG_WARN("checkpoint: cannot lock ", file, ": ", errno_error(errno, "flock").message,
                   "; a second job that writes there will not be noticed");
      break;
    }
    if (deadline.passed()) {
      return fail(Errc::busy, "another process writes checkpoints to " + path_ + " (it holds " + file + ")", "save");
    }
    std::this_thread::sleep_for(kLockRetry);  // flock has no wait with a bound
  }
  lock_ = std::move(*fd);
  return {};
}

Result<void> Store::open_for_writing(Deadline deadline) {
  if (lock_) return {};
  if (auto made = storage::make_folders(path_); !made) return made;
  return lock(deadline);
}

Result<void> Store::clean() {
  const auto entries = storage::list_folder(path_);
  if (!entries) return fail(entries.error());
  for (const auto& entry : *entries) {
    if (!is_temporary_name(entry) && !is_trash_name(entry)) continue;
    if (auto gone = storage::remove_tree(path_ + "/" + entry); !gone) return gone;
  }
  return {};
}

Result<std::string> Store::begin(std::uint64_t step, Deadline deadline) {
  // The name alone proves nothing: after a fall-back the same step is saved again over the broken one.
  const auto existing = verify_step(step_path(step), step, deadline);
  if (existing) return fail(Errc::already_exists, "step " + std::to_string(step) + " is in " + path_, "save");
  if (!is_damage(existing.error().code)) return fail(existing.error());
  if (existing.error().code != Errc::not_found) {
    DTR_LOG_WARN("checkpoint: step ", step, " is broken and will be replaced: ", existing.error().message);
  }
  const std::string name = temporary_name(step, next_tag());
  if (auto made = storage::make_folders(path_ + "/" + name); !made) return fail(made.error());
  return name;
}

Result<void> Store::commit(const std::string& temporary, std::uint64_t step) {
  const std::string from = path_ + "/" + temporary;
  const std::string to = step_path(step);
  if (auto synced = storage::sync_folder(from); !synced) return synced;
  auto renamed = storage::rename_path(to, path_ + "/" + trash_name(step, next_tag()));
  if (!renamed && renamed.error().code != Errc::not_found) return renamed;
  renamed = storage::rename_path(from, to);
  return renamed ? storage::sync_folder(path_) : renamed;
}

Result<void> Store::retire(std::uint64_t keep, std::uint64_t saved) {
  if (keep == 0) return {};
  const auto whole = complete();
  const auto all = names();
  if (!whole) return fail(whole.error());
  if (!all) return fail(all.error());
  if (whole->size() <= keep) return {};
  const auto oldest_kept = (*whole)[whole->size() - keep];
  for (const auto step : *all) {
    if (step >= oldest_kept || step == saved) continue;
    auto gone = storage::rename_path(step_path(step), path_ + "/" + trash_name(step, next_tag()));
    if (!gone) return gone;
  }
  return {};
}

}  // namespace checkpoint
}  // namespace dtr::inline v0
