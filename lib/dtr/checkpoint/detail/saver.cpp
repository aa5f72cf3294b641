#include "dtr/checkpoint/detail/saver.hpp"

#include <exception>
#include <utility>

#include <fcntl.h>

#include "dtr/base/log.hpp"
#include "dtr/checkpoint/detail/index_file.hpp"
#include "dtr/checkpoint/detail/names.hpp"
#include "dtr/checkpoint/detail/step_reader.hpp"
#include "dtr/storage/local_file.hpp"

namespace dtr::inline v0 {
namespace checkpoint {

Saver::Saver(Group& group, std::string path, WorkerPool& workers, SaverOptions options)
    : group_(group), store_(std::move(path)), writer_(workers, options.direct_io), options_(std::move(options)) {}

void Saver::report(const SaveJob& job, std::string_view stage, std::uint64_t written) const {
  if (!options_.progress) return;
  std::uint64_t total = 0;
  for (const auto& tensor : job.plan.tensors) total += tensor.bytes;
  try {
    options_.progress(job.step, stage, written, total);
  } catch (const std::exception& error) {
    DTR_LOG_ERROR("checkpoint: the progress callback threw: ", error.what());
  }
}

Word Saver::word(const SaveJob& job) const { return Word{.number = number_, .step = job.step}; }

Result<std::vector<Word>> Saver::meet(std::string_view round, const Word& mine) {
  return exchange(group_, "checkpoint " + store_.path() + " save " + std::string(round), mine, options_.deadline());
}

Word Saver::begin(const SaveJob& job) {
  Word mine = word(job);
  mine.error = job.error;
  mine.digest = job.plan.replicated;
  if (group_.rank() != 0 || mine.error) return mine;
  auto opened = store_.open_for_writing(options_.deadline());
  if (opened) opened = store_.clean();
  if (!opened) {
    mine.error = opened.error();
    return mine;
  }
  auto temporary = store_.begin(job.step, options_.deadline());
  if (temporary) {
    mine.text = std::move(*temporary);
  } else {
    mine.error = temporary.error();
  }
  return mine;
}

Word Saver::write(const SaveJob& job, const std::string& temporary) {
  Word mine = word(job);
  report(job, "write");
  const auto check = [&]() -> Result<void> {
    if (!options_.deadline().passed()) return {};
    return fail(Errc::timed_out, "writing took too long", "save");
  };
  const RankWriter::Job writing{.folder = store_.path() + "/" + temporary,
                                .step = job.step,
                                .rank = group_.rank(),
                                .world = group_.size(),
                                .plan = &job.plan,
                                .staging = job.staging.span(),
                                .check = check,
                                .progress = [&](std::uint64_t written) { report(job, "write", written); }};
  // Rank 0 made the folder; on a network file system this rank may not see it yet, and making it again tells.
  auto done = storage::make_folders(writing.folder);
  auto part = done ? writer_.write(writing) : Result<Manifest>(fail(done.error()));
  if (part) {
    if (group_.rank() != 0) done = storage::sync_folder(writing.folder);  // rank 0 does so at the commit
    if (done) {
      mine.text = encode_manifest(*part);
      return mine;
    }
  }
  mine.error = part ? done.error() : part.error();
  return mine;
}

Result<void> Saver::write_index(const std::string& folder, const Manifest& manifest) {
  if (!index_ || !same_index(indexed_, manifest)) {
    auto index = lay_out_index(manifest);
    if (!index) return fail(index.error());
    index_ = std::move(*index);
    indexed_ = manifest;
  }
  const std::string path = folder + "/" + std::string(kIndexName);
  const auto fd = storage::open_file(path, O_WRONLY | O_CREAT | O_EXCL);
  if (!fd) return fail(fd.error());
  for (const auto& segment : index_->segments) {
    auto done = storage::write_at(fd->get(), segment.offset, segment.bytes, path);
    if (!done) return done;
  }
  return storage::sync_file(fd->get(), path);
}

Result<void> Saver::commit(const SaveJob& job, const std::string& temporary, const std::vector<Word>& ready) {
  std::vector<Manifest> parts;
  for (const auto& word : ready) {
    auto part = decode_manifest(word.text);
    if (!part) return fail(part.error());
    parts.push_back(std::move(*part));
  }
  const auto manifest = merge_manifests(std::move(parts));
  if (!manifest) return fail(manifest.error());

  const std::string folder = store_.path() + "/" + temporary;
  if (auto seen = StepReader(folder, *manifest).check_sizes(); !seen) {
    return fail(seen.error().code,
                "rank 0 does not see what was written; is " + store_.path() + " a folder that all ranks share? " +
                    seen.error().message,
                "save");
  }
  report(job, "manifest");
  auto done = write_index(folder, *manifest);
  if (done) done = storage::write_new_file(folder + "/" + std::string(kManifestName), encode_manifest(*manifest));
  if (!done) return done;
  report(job, "commit");
  return store_.commit(temporary, job.step);
}

Result<void> Saver::save(SaveJob& job) {
  ++number_;
  report(job, "begin");
  const Word opening = begin(job);
  const auto begun = meet("begin", opening);
  std::optional<Error> error = begun ? first_error(*begun) : std::optional(begun.error());
  std::string temporary = opening.text;
  if (!error) {
    temporary = begun->front().text;
    if (!is_temporary_name(temporary)) {
      error = Error{.code = Errc::protocol_error, .message = "rank 0 named no folder", .operation = "save"};
    }
    for (std::size_t rank = 1; rank < begun->size() && !error; ++rank) {
      if ((*begun)[rank].digest == begun->front().digest) continue;
      error = Error{.code = Errc::invalid_argument,
                    .message = "ranks 0 and " + std::to_string(rank) + " name different replicated tensors",
                    .operation = "save"};
    }
  }

  Word report_of_mine = error ? word(job) : write(job, temporary);
  if (error) report_of_mine.error = error;
  job.staging.give_back();
  report(job, "ready");
  const auto ready = meet("ready", report_of_mine);
  if (!error) error = ready ? first_error(*ready) : std::optional(ready.error());

  Word outcome = word(job);
  if (group_.rank() == 0) {
    if (!error) {
      if (auto committed = commit(job, temporary, *ready); !committed) error = committed.error();
    }
    outcome.error = error;
    if (error && !temporary.empty()) {
      // If even this fails, the name says that it is garbage, and the next save tries again.
      auto gone = storage::remove_tree(store_.path() + "/" + temporary);
      if (!gone) DTR_LOG_WARN("checkpoint: ", gone.error().message);
    }
    if (!error) {
      report(job, "retire");
      auto retired = store_.retire(options_.keep_last_n, job.step);
      if (!retired) DTR_LOG_WARN("checkpoint: old steps stay: ", retired.error().message);
    }
  }
  const auto done = meet("done", outcome);
  if (group_.rank() == 0) {
    untidy_ = !error;
  } else if (done) {
    error = done->front().error;  // rank 0 knows, whatever it looked like from here
  } else {
    Error unknown = error.value_or(done.error());
    unknown.message += "; whether step " + std::to_string(job.step) + " was committed is not known on this rank";
    error = unknown;
  }
  report(job, "done");
  if (error) return fail(*error);
  return {};
}

void Saver::tidy() {
  if (!std::exchange(untidy_, false)) return;
  if (auto gone = store_.clean(); !gone) DTR_LOG_WARN("checkpoint: ", gone.error().message);
}

}  // namespace checkpoint
}  // namespace dtr::inline v0
