#include "dtr/messaging/thresholds.hpp"

#include <algorithm>
#include <limits>

#include <toml++/toml.h>

namespace dtr::inline v0 {

namespace {

constexpr std::uint64_t kNoEnd = std::numeric_limits<std::int64_t>::max();
constexpr const char* kOperation = "read thresholds";
constexpr std::string_view kReadable = "shm";
constexpr std::string_view kWays[] = {"eager", "slots", "read"};

Thresholds make_built_in() {
  const auto table = [](const char* transport, std::uint64_t eager) {
    return Thresholds::Table{.transport = transport,
                             .rows = {{.up_to = eager, .way = MessageWay::eager, .piece = 65536},
                                      {.up_to = kNoEnd, .way = MessageWay::slots, .piece = 65536}}};
  };
  Thresholds made;
  // Very large messages leave the caches, and so the slots had better be few bytes of them.
  made.tables = {{.transport = "shm",
                  .rows = {{.up_to = 4096, .way = MessageWay::eager, .piece = 65536},
                           {.up_to = 8 << 20, .way = MessageWay::slots, .piece = 65536},
                           {.up_to = kNoEnd, .way = MessageWay::slots, .piece = 32768}}},
                 table("loopback", 4096),
                 table("tcp", 65536),  // a round trip more costs it 20 us
                 table("verbs", 4096)};
  return made;
}

Result<ThresholdRow> parse_row(const toml::table& source, const std::string& where, bool can_be_read) {
  const auto wrong = [&](const std::string& what) { return fail(Errc::config_error, where + ": " + what, kOperation); };
  ThresholdRow row{.up_to = kNoEnd, .way = MessageWay::slots, .piece = 65536};
  for (const auto& [key, value] : source) {
    const std::string_view name = key.str();
    if (name == "way" || name == "mapped") {
      const auto text = value.value<std::string>();
      const auto* const first = name == "way" ? std::begin(kWays) : std::begin(kWays) + 1;
      const auto* const way = text ? std::find(first, std::end(kWays), *text) : std::end(kWays);
      if (way == std::end(kWays)) {
        return wrong(name == "way" ? "way is eager, slots or read" : "mapped is slots or read");
      }
      const bool reads = *text == to_string(MessageWay::read) || name == "mapped";
      if (reads && !can_be_read) return wrong("only over shm can a receiver read the sender's memory");
      (name == "way" ? row.way : row.mapped) = static_cast<MessageWay>(way - std::begin(kWays));
    } else if (name == "up_to" || name == "piece") {
      const auto number = value.value<std::int64_t>();
      const bool good = number && *number > 0 && (name == "up_to" || *number <= (64 << 20));
      if (!good) return wrong(std::string(name) + " is no number of bytes that is possible");
      if (name == "up_to") {
        row.up_to = static_cast<std::uint64_t>(*number);
      } else {
        row.piece = static_cast<std::uint32_t>(*number);
      }
    } else {
      return wrong("\"" + std::string(name) + "\" is none of up_to, way, piece, mapped");
    }
  }
  return row;
}

Result<std::vector<ThresholdRow>> parse_rows(const toml::node& source, const std::string& where, bool can_be_read) {
  const toml::array* list = source.as_array();
  if (list == nullptr || list->empty()) {
    return fail(Errc::config_error, where + ": needs rows, as [[" + "shm" + "]]", kOperation);
  }
  std::vector<ThresholdRow> rows;
  for (const toml::node& node : *list) {
    const std::string at = where + ", line " + std::to_string(node.source().begin.line);
    const toml::table* table = node.as_table();
    if (table == nullptr) return fail(Errc::config_error, at + ": no row", kOperation);
    auto row = parse_row(*table, at, can_be_read);
    if (!row) return fail(std::move(row.error()));
    if (!rows.empty() && row->up_to <= rows.back().up_to) {
      return fail(Errc::config_error, at + ": up_to has to grow from row to row", kOperation);
    }
    if (row->way == MessageWay::eager && !rows.empty()) {
      return fail(Errc::config_error, at + ": only the first row can be eager", kOperation);
    }
    rows.push_back(*row);
  }
  if (rows.back().way == MessageWay::eager) {
    return fail(Errc::config_error, where + ": the last row has no end, so it cannot be eager", kOperation);
  }
  rows.back().up_to = kNoEnd;
  return rows;
}

}  // namespace

std::string_view to_string(MessageWay way) noexcept { return kWays[static_cast<std::size_t>(way)]; }

const ThresholdRow& row_for(const std::vector<ThresholdRow>& rows, std::uint64_t bytes) noexcept {
  const auto fit = std::find_if(rows.begin(), rows.end(), [&](const ThresholdRow& row) { return bytes <= row.up_to; });
  return fit == rows.end() ? rows.back() : *fit;
}

const Thresholds& Thresholds::built_in() {
  static const Thresholds made = make_built_in();
  return made;
}

const std::vector<ThresholdRow>& Thresholds::rows(std::string_view transport) const noexcept {
  const auto find = [&](const Thresholds& in) {
    return std::find_if(in.tables.begin(), in.tables.end(), [&](const Table& t) { return t.transport == transport; });
  };
  if (const auto mine = find(*this); mine != tables.end() && !mine->rows.empty()) return mine->rows;
  const Thresholds& all = built_in();
  const auto known = find(all);
  return known != all.tables.end() ? known->rows : all.tables.front().rows;
}

const ThresholdRow& Thresholds::row(std::string_view transport, std::uint64_t bytes) const noexcept {
  return row_for(rows(transport), bytes);
}

Result<Thresholds> Thresholds::from(const Config& config) {
  const std::string& path = config.text("messages.thresholds");
  return path.empty() ? Result<Thresholds>(built_in()) : load(path);
}

Result<Thresholds> Thresholds::load(const std::string& path) {
  Thresholds loaded;
  loaded.origin = path;
  try {
    const toml::table file = toml::parse_file(path);
    for (const auto& [key, value] : file) {
      const std::string transport(key.str());
      const auto& known = built_in().tables;
      if (std::none_of(known.begin(), known.end(), [&](const Table& t) { return t.transport == transport; })) {
        return fail(Errc::config_error, path + ": there is no transport \"" + transport + "\"", kOperation);
      }
      auto rows = parse_rows(value, path + ": " + transport, transport == kReadable);
      if (!rows) return fail(std::move(rows.error()));
      loaded.tables.push_back({.transport = transport, .rows = std::move(*rows)});
    }
  } catch (const toml::parse_error& e) {
    return fail(Errc::config_error,
                path + ":" + std::to_string(e.source().begin.line) + ": " + std::string(e.description()), kOperation);
  }
  return loaded;
}

std::string Thresholds::describe() const {
  std::string text;
  for (const Table& builtin : built_in().tables) {
    const bool own =
        std::any_of(tables.begin(), tables.end(), [&](const Table& t) { return t.transport == builtin.transport; });
    for (const ThresholdRow& row : rows(builtin.transport)) {
      text += "  " + builtin.transport +
              (row.up_to == kNoEnd ? "  larger" : "  up to " + std::to_string(row.up_to) + " bytes");
      text += ": " + std::string(to_string(row.way));
      if (row.way == MessageWay::slots) text += ", pieces of " + std::to_string(row.piece);
      if (row.way != MessageWay::eager && builtin.transport == kReadable) {
        text += ", from memory of the pool: " + std::string(to_string(row.mapped));
      }
      text += own ? "  (" + origin + ")\n" : "  (built in)\n";
    }
  }
  return text;
}

std::string Thresholds::toml() const {
  std::string text;
  for (const Table& table : tables) {
    for (const ThresholdRow& row : table.rows) {
      text += "[[" + table.transport + "]]\n";
      if (row.up_to != kNoEnd) text += "up_to = " + std::to_string(row.up_to) + "\n";
      text += "way = \"" + std::string(to_string(row.way)) + "\"\n";
      if (row.way != MessageWay::eager) {
        text += "piece = " + std::to_string(row.piece) + "\n";
        if (table.transport == kReadable) text += "mapped = \"" + std::string(to_string(row.mapped)) + "\"\n";
      }
      text += "\n";
    }
  }
  return text;
}

}  // namespace dtr::inline v0
