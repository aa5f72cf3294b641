#include "dtr/checkpoint/detail/loader.hpp"

#include <algorithm>
#include <cstring>

#include "dtr/base/log.hpp"
#include "dtr/checkpoint/detail/checksum.hpp"
#include "dtr/checkpoint/detail/names.hpp"
#include "dtr/checkpoint/detail/step_reader.hpp"

namespace dtr::inline v0 {
namespace checkpoint {

namespace {

constexpr std::string_view kFinal = "final";

/// Steps as text for the other ranks.
std::string join(const std::vector<std::uint64_t>& steps) {
  std::string text;
  for (const auto step : steps) text += step_name(step) + " ";
  return text;
}

std::vector<std::uint64_t> split(const std::string& text) {
  std::vector<std::uint64_t> steps;
  for (std::size_t at = 0; at < text.size();) {
    const auto end = std::min(text.find(' ', at), text.size());
    if (const auto step = parse_step_name(std::string_view(text).substr(at, end - at))) steps.push_back(*step);
    at = end + 1;
  }
  return steps;
}

}  // namespace

std::string Loader::topic(const std::string& round) const {
  return "checkpoint " + store_.path() + " load " + std::to_string(number_) + " " + round;
}

Result<std::vector<std::uint64_t>> Loader::agree_on_candidates() {
  // Rank 0's list is everybody's: another rank's file system may lag behind.
  Word mine{.number = number_};
  if (group_.rank() == 0) {
    const auto steps = store_.names();
    if (steps) {
      mine.text = join(*steps);
    } else {
      mine.error = steps.error();
    }
  }
  const auto words = exchange(group_, topic("candidates"), mine, deadline_);
  if (!words) return fail(words.error());
  if (auto error = first_error(*words)) return fail(*error);
  return split(words->front().text);
}

Loader::Verdict Loader::judge_together(std::uint64_t step, const Judge& judge) {
  LoadedStep loaded;
  loaded.folder = store_.step_path(step);
  Word mine{.number = number_, .step = step};
  auto manifest = read_manifest(loaded.folder, step);
  Judgement judged;
  if (manifest) {
    loaded.manifest = std::move(*manifest);
    mine.digest = checksum(encode_manifest(loaded.manifest));
    judged = judge(loaded);
  } else {
    judged.result = fail(manifest.error());
  }
  if (!judged.result) mine.error = judged.result.error();
  if (judged.final) mine.text = kFinal;

  const auto words = exchange(group_, topic(step_name(step)), mine, deadline_);
  if (!words) return {.step = fail(words.error()), .may_fall_back = false};
  const auto fatal = std::find_if(words->begin(), words->end(), [](const Word& word) {
    return word.error &&
           (word.text == kFinal || !(is_damage(word.error->code) || word.error->code == Errc::unsupported));
  });
  if (auto error = first_error(*words)) {
    if (fatal != words->end()) {
      Error worst = *fatal->error;
      if (worst.peer < 0 && words->size() > 1) worst.peer = static_cast<int>(fatal - words->begin());
      return {.step = fail(worst), .may_fall_back = false};
    }
    return {.step = fail(*error), .may_fall_back = true};
  }
  for (std::size_t rank = 1; rank < words->size(); ++rank) {
    if ((*words)[rank].digest == words->front().digest) continue;
    return {.step = fail(Errc::corrupt, "ranks 0 and " + std::to_string(rank) + " see different manifests", "load"),
            .may_fall_back = true};
  }
  return {.step = std::move(loaded), .may_fall_back = true};
}

Result<LoadedStep> Loader::newest(std::uint64_t number, const Judge& judge) {
  number_ = number;
  const auto candidates = agree_on_candidates();
  if (!candidates) return fail(candidates.error());
  std::vector<std::string> skipped;
  for (auto step = candidates->rbegin(); step != candidates->rend(); ++step) {
    auto verdict = judge_together(*step, judge);
    if (verdict.step) {
      verdict.step->skipped = std::move(skipped);
      return std::move(verdict.step);
    }
    if (!verdict.may_fall_back) return verdict.step;
    skipped.push_back("step " + std::to_string(*step) + ": " + verdict.step.error().message);
    DTR_LOG_WARN("checkpoint: passed over ", skipped.back());
  }
  if (candidates->empty()) return fail(Errc::not_found, "no checkpoint in " + store_.path(), "load");
  std::string reasons;
  for (const auto& reason : skipped) reasons += (reasons.empty() ? "" : "; ") + reason;
  return fail(Errc::corrupt, "no checkpoint in " + store_.path() + " is intact: " + reasons, "load");
}

Result<LoadedStep> Loader::exactly(std::uint64_t step, std::uint64_t number, const Judge& judge) {
  number_ = number;
  return judge_together(step, judge).step;
}

}  // namespace checkpoint
}  // namespace dtr::inline v0
