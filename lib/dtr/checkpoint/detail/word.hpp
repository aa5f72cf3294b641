// What the ranks tell each other during a save or a load: one small message a rank and round.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "dtr/base/error.hpp"
#include "dtr/runtime/group.hpp"

namespace dtr::inline v0 {
namespace checkpoint {

struct Word {
  std::uint64_t number = 0;  ///< which save or load of this manager
  std::uint64_t step = 0;
  std::optional<Error> error{};
  std::uint64_t digest = 0;  ///< what has to be equal on all ranks
  std::string text{};        ///< depends on the round
};

[[nodiscard]] Bytes encode_word(const Word& word);
[[nodiscard]] Result<Word> decode_word(std::span<const std::byte> bytes);

/// All ranks' words by rank, all about the same number and step. Errors: those of allgather; invalid_argument naming
/// a rank that saves or loads something else; protocol_error.
[[nodiscard]] Result<std::vector<Word>> exchange(Group& group, const std::string& topic, const Word& mine,
                                                 Deadline deadline);

/// The error that explains the others: of the lowest rank, but a rank that only waited in vain comes last.
/// It names its rank. Nothing if no rank has one.
[[nodiscard]] std::optional<Error> first_error(const std::vector<Word>& words);

}  // namespace checkpoint
}  // namespace dtr::inline v0
