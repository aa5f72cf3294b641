#include "dtr/checkpoint/detail/word.hpp"

#include <cstring>

namespace dtr::inline v0 {
namespace checkpoint {

namespace {

constexpr std::uint32_t kMagic = 0x44545743;

struct Head {
  std::uint32_t magic;
  std::int16_t code;
  std::int16_t unused;
  std::int32_t peer;
  std::uint32_t unused_too;
  std::uint64_t number;
  std::uint64_t step;
  std::uint64_t digest;
  std::uint64_t message_bytes;
  std::uint64_t operation_bytes;
  std::uint64_t text_bytes;
};
static_assert(sizeof(Head) == 64, "no padding: the bytes travel");

void append(Bytes& bytes, const void* data, std::size_t size) {
  const auto* from = static_cast<const std::byte*>(data);
  bytes.insert(bytes.end(), from, from + size);
}

}  // namespace

Bytes encode_word(const Word& word) {
  const Error error = word.error.value_or(Error{.code = Errc::ok});
  const Head head{.magic = kMagic,
                  .code = static_cast<std::int16_t>(error.code),
                  .unused = 0,
                  .peer = error.peer,
                  .unused_too = 0,
                  .number = word.number,
                  .step = word.step,
                  .digest = word.digest,
                  .message_bytes = error.message.size(),
                  .operation_bytes = error.operation.size(),
                  .text_bytes = word.text.size()};
  Bytes bytes;
  append(bytes, &head, sizeof(head));
  append(bytes, error.message.data(), error.message.size());
  append(bytes, error.operation.data(), error.operation.size());
  append(bytes, word.text.data(), word.text.size());
  return bytes;
}

Result<Word> decode_word(std::span<const std::byte> bytes) {
  const auto malformed = [] { return fail(Errc::protocol_error, "malformed checkpoint message", "checkpoint"); };
  Head head{};
  if (bytes.size() < sizeof(head)) return malformed();
  std::memcpy(&head, bytes.data(), sizeof(head));
  bytes = bytes.subspan(sizeof(head));
  if (head.magic != kMagic || head.code > 0 || head.code < static_cast<std::int16_t>(Errc::stale_handle)) {
    return malformed();
  }
  const auto take = [&](std::uint64_t size) -> std::optional<std::string> {
    if (size > bytes.size()) return std::nullopt;
    std::string text(reinterpret_cast<const char*>(bytes.data()), size);
    bytes = bytes.subspan(size);
    return text;
  };
  auto message = take(head.message_bytes);
  auto operation = message ? take(head.operation_bytes) : std::nullopt;
  auto text = operation ? take(head.text_bytes) : std::nullopt;
  if (!text || !bytes.empty()) return malformed();

  Word word{.number = head.number, .step = head.step, .error = {}, .digest = head.digest, .text = std::move(*text)};
  if (head.code != 0) {
    word.error = Error{.code = static_cast<Errc>(head.code),
                       .message = std::move(*message),
                       .operation = std::move(*operation),

                       .peer = head.peer,
                       .path = {}};
  }
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
