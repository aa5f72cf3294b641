#include "dtr/checkpoint/detail/word.hpp"

#include "dtr/base/bytes.hpp"

namespace dtr::inline v0 {
namespace checkpoint {

namespace {

constexpr std::uint32_t kMagic = 0x44545743;

}  // namespace

Bytes encode_word(const Word& word) {
  const Error error = word.error.value_or(Error{.code = Errc::ok});
  ByteWriter out;
  out.value(kMagic).value(word.number).value(word.step).value(word.digest);
  out.value(error.code).value(static_cast<std::int32_t>(error.peer)).text(error.message).text(error.operation);
  return out.text(word.text).take();
}

Result<Word> decode_word(std::span<const std::byte> bytes) {
  ByteReader in(bytes);
  const auto magic = in.value<std::uint32_t>();
  Word word;
  word.number = in.value<std::uint64_t>();
  word.step = in.value<std::uint64_t>();
  word.digest = in.value<std::uint64_t>();
  Error error;
  error.code = in.value<Errc>();
  error.peer = in.value<std::int32_t>();
  error.message = in.text();
  error.operation = in.text();
  word.text = in.text();
  if (!in.ok() || !in.at_end() || magic != kMagic || to_string(error.code) == "unknown") {
    return fail(Errc::protocol_error, "malformed checkpoint message", "checkpoint");
  }
  if (error.code != Errc::ok) word.error = std::move(error);
  return word;
}

Result<std::vector<Word>> exchange(Group& group, const std::string& topic, const Word& mine, Deadline deadline) {
  const auto all = group.allgather(topic, encode_word(mine), deadline);
  if (!all) return fail(all.error());
  std::vector<Word> words;
  for (const auto& bytes : *all) {
    auto word = decode_word(bytes);
    if (!word) return fail(word.error());
    const int rank = static_cast<int>(words.size());
    if (word->number != mine.number || word->step != mine.step) {
      return fail(Errc::invalid_argument,
                  "rank " + std::to_string(rank) + " is at step " + std::to_string(word->step) + " (call " +
                      std::to_string(word->number) + "), rank " + std::to_string(group.rank()) + " at step " +
                      std::to_string(mine.step) + " (call " + std::to_string(mine.number) + ")",
                  topic, rank);
    }
    words.push_back(std::move(*word));
  }
  return words;
}

std::optional<Error> first_error(const std::vector<Word>& words) {
  const auto only_waited = [](Errc code) { return code == Errc::timed_out || code == Errc::cancelled; };
  std::optional<Error> first;
  for (std::size_t rank = 0; rank < words.size(); ++rank) {
    const auto& error = words[rank].error;
    if (!error || (first && (!only_waited(first->code) || only_waited(error->code)))) continue;
    first = *error;
    if (first->peer < 0 && words.size() > 1) {
      first->peer = static_cast<int>(rank);
      first->message.insert(0, "rank " + std::to_string(rank) + ": ");
    }
  }
  return first;
}

}  // namespace checkpoint
}  // namespace dtr::inline v0
