#include "dtr/dataset/readers/csv.hpp"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <string_view>

#include "dtr/dataset/readers/file_at.hpp"

namespace dtr::inline v0 {

namespace {

constexpr std::uint64_t kLinesPerMark = 64;
constexpr std::size_t kPiece = std::size_t{1} << 20;
constexpr std::size_t kLongestLine = std::size_t{1} << 26;

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t' || text.back() == '\r')) text.remove_suffix(1);
  return text;
}

/// The lines of a file from an offset on, without their ends.
class Lines {
 public:
  Lines(const dataset::OpenFile& file, std::uint64_t offset, const std::string& path)
      : file_(file), path_(path), next_read_(offset), line_begin_(offset) {}

  /// False at the end of the file. The line lives until the next call.
  Result<bool> next(std::string_view& line) {
    line_begin_ = next_read_ - (held_.size() - at_);
    std::size_t searched = at_;
    std::size_t end = held_.find('\n', searched);
    while (end == std::string::npos && next_read_ < file_.size) {
      held_.erase(0, at_);
      searched = held_.size();
      at_ = 0;
      if (held_.size() > kLongestLine)
        return fail(Errc::corrupt, "'" + path_ + "' has a line beyond 64 MiB", "read samples");
      const std::size_t piece = std::min<std::uint64_t>(kPiece, file_.size - next_read_);
      held_.resize(searched + piece);
      const auto into = std::as_writable_bytes(std::span(held_)).subspan(searched);
      if (auto done = dataset::read_at(file_.fd.get(), into, next_read_, path_); !done) return fail(done.error());
      next_read_ += piece;
      end = held_.find('\n', searched);
    }
    if (end == std::string::npos) end = held_.size();
    if (at_ == held_.size()) return false;
    line = std::string_view(held_).substr(at_, end - at_);
    at_ = std::min(end + 1, held_.size());
    return true;
  }

  /// Offset of the line that next() gave last.
  [[nodiscard]] std::uint64_t line_begin() const { return line_begin_; }

 private:
  const dataset::OpenFile& file_;
  const std::string& path_;
  std::string held_;
  std::size_t at_ = 0;  // in held_: where the next line begins
  std::uint64_t next_read_;
  std::uint64_t line_begin_;
};

tl::unexpected<Error> bad_line(const std::string& path, std::uint64_t line, const std::string& what) {
  return fail(Errc::corrupt, "'" + path + "' line " + std::to_string(line + 1) + ": " + what, "read samples");
}

class CsvReader final : public SampleReader {
 public:
  CsvReader(Layout layout, CsvOptions options, dataset::OpenFile file, std::vector<std::uint64_t> marks)
      : SampleReader(std::move(layout)), options_(options), file_(std::move(file)), marks_(std::move(marks)) {}

 private:
  Result<void> do_read(std::uint64_t first, std::uint64_t count, std::span<std::byte> out) const override {
    Lines lines(file_, marks_[first / kLinesPerMark], name());
    std::string_view line;
    std::uint64_t sample = first / kLinesPerMark * kLinesPerMark;
    for (; sample < first + count; ++sample) {
      const auto more = lines.next(line);
      if (!more) return fail(more.error());
      if (!*more) return fail(Errc::truncated, "'" + name() + "' became shorter while it was open", "read samples");
      if (sample < first) continue;
      const auto place = out.subspan((sample - first) * sample_bytes(), sample_bytes());
      if (auto done = parse(line, sample, place); !done) return done;
    }
    return {};
  }

  Result<void> parse(std::string_view line, std::uint64_t sample, std::span<std::byte> out) const {
    return type() == DType::f32 ? parse_as<float>(line, sample, out) : parse_as<double>(line, sample, out);
  }

  template <class Real>
  Result<void> parse_as(std::string_view line, std::uint64_t sample, std::span<std::byte> out) const {
    const std::uint64_t line_number = sample + (options_.header ? 1 : 0);
    const std::uint64_t columns = sample_shape()[0];
    for (std::uint64_t column = 0; column < columns; ++column) {
      const auto delimiter = line.find(options_.delimiter);
      if ((delimiter == std::string_view::npos) != (column + 1 == columns)) {
        return bad_line(name(), line_number, "not " + std::to_string(columns) + " columns, as the first line has");
      }
      const std::string_view field = trimmed(line.substr(0, delimiter));
      Real value{};
      const auto [end, error] = std::from_chars(field.data(), field.data() + field.size(), value);
      if (error != std::errc{} || end != field.data() + field.size()) {
        return bad_line(name(), line_number, "'" + std::string(field.substr(0, 40)) + "' is no number");
      }
      std::memcpy(out.data() + column * sizeof(Real), &value, sizeof(Real));
      if (delimiter != std::string_view::npos) line.remove_prefix(delimiter + 1);
    }
    return {};
  }

  CsvOptions options_;
  dataset::OpenFile file_;
  std::vector<std::uint64_t> marks_;  // offset of every kLinesPerMark-th sample
};

}  // namespace

Result<ReaderPtr> open_csv(const std::string& path, const CsvOptions& options) {
  if (options.type != DType::f32 && options.type != DType::f64) {
    return fail(Errc::unsupported, "CSV numbers become f32 or f64, not " + std::string(to_string(options.type)),
                "open dataset");
  }
  auto file = dataset::open_file(path);
  if (!file) return fail(file.error());

  SampleReader::Layout layout{.name = path, .type = options.type, .random_access = false};
  std::vector<std::uint64_t> marks;
  Lines lines(*file, 0, path);
  std::string_view line;
  for (std::uint64_t number = 0;; ++number) {
    const auto more = lines.next(line);
    if (!more) return fail(more.error());
    if (!*more) break;
    if (trimmed(line).empty()) return bad_line(path, number, "is empty");
    if (number == 0 && options.header) continue;
    if (layout.samples == 0) {
      layout.shape = {1 + static_cast<std::uint64_t>(std::count(line.begin(), line.end(), options.delimiter))};
    }
    if (layout.samples++ % kLinesPerMark == 0) marks.push_back(lines.line_begin());
  }
  if (layout.samples == 0) layout.shape = {1};
  if (auto checked = check_layout(layout); !checked) return fail(checked.error());
  return std::make_shared<const CsvReader>(std::move(layout), options, std::move(*file), std::move(marks));
}

}  // namespace dtr::inline v0
