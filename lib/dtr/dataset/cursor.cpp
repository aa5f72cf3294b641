#include "dtr/dataset/cursor.hpp"

#include <charconv>
#include <utility>

namespace dtr::inline v0 {

namespace {

/// Reads a text piece by piece; each step says whether the piece was there.
class Scanner {
 public:
  explicit Scanner(std::string_view text) : rest_(text) {}

  bool word(std::string_view expected) {
    if (!rest_.starts_with(expected)) return false;
    rest_.remove_prefix(expected.size());
    return true;
  }

  template <class Integer>
  bool number(Integer& value) {
    const auto [end, error] = std::from_chars(rest_.data(), rest_.data() + rest_.size(), value);
    if (error != std::errc{}) return false;
    rest_.remove_prefix(static_cast<std::size_t>(end - rest_.data()));
    return true;
  }

  [[nodiscard]] bool done() const { return rest_.empty(); }

 private:
  std::string_view rest_;
};

bool scan_stage(Scanner& scanner, EpochCursor::Stage& stage) {
  if (!scanner.number(stage.world) || !scanner.word("x")) return false;
  do {
    std::uint64_t count = 0;
    if (!scanner.number(count)) return false;
    stage.consumed.push_back(count);
  } while (scanner.word("/"));
  return stage.world >= 1 && (stage.consumed.size() == 1 || std::cmp_equal(stage.consumed.size(), stage.world));
}

bool scan_cursor(Scanner& scanner, EpochCursor& cursor) {
  if (!scanner.word("epoch ") || !scanner.number(cursor.epoch)) return false;
  for (bool more = scanner.word(": "); more; more = scanner.word(", ")) {
    if (!scan_stage(scanner, cursor.stages.emplace_back())) return false;
  }
  return scanner.done();
}

}  // namespace

std::string EpochCursor::to_string() const {
  std::string text = "epoch " + std::to_string(epoch);
  const char* separator = ": ";
  for (const Stage& stage : stages) {
    text += separator + std::to_string(stage.world) + 'x';
    for (std::size_t i = 0; i < stage.consumed.size(); ++i) {
      text += (i == 0 ? "" : "/") + std::to_string(stage.consumed[i]);
    }
    separator = ", ";
  }
  return text;
}

Result<EpochCursor> EpochCursor::parse(std::string_view text) {
  Scanner scanner(text);
  EpochCursor cursor;
  if (!scan_cursor(scanner, cursor)) {
    return fail(Errc::invalid_argument,
                "'" + std::string(text) + "' is no epoch cursor; one looks like 'epoch 3: 4x1200, 2x30'",
                "parse epoch cursor");
  }
  return cursor;
}

}  // namespace dtr::inline v0
