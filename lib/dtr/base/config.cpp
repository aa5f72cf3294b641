#include "dtr/base/config.hpp"

#include <algorithm>
#include <array>
#include <map>

#include <unistd.h>

#include "dtr/base/detail/config_text.hpp"
#include "dtr/base/detail/config_toml.hpp"

namespace dtr::inline v0 {

namespace {

constexpr const char* kOperation = "config";
constexpr std::string_view kDefault = "default";

/// Variables that start with DTR_ and are no settings: the file's own name, the tests' and the build's.
constexpr std::array<std::string_view, 5> kOtherVariables{"DTR_TEST_", "DTR_WITH_", "DTR_BUILD_", "DTR_SANITIZE",
                                                          "DTR_WERROR"};

/// Pairs of rows of which the first may not exceed the second, or its half.
struct Ordered {
  std::string_view low;
  std::string_view high;
  std::int64_t times = 1;
};
constexpr std::array<Ordered, 2> kOrdered{
    {{.low = "memory.pool_bytes", .high = "memory.pool_max_bytes", .times = 1},
     {.low = "runtime.heartbeat_interval_ms", .high = "runtime.heartbeat_timeout_ms", .times = 2}}};

constexpr std::size_t kNoRow = static_cast<std::size_t>(-1);

std::size_t row_of_key(std::string_view key) {
  const auto table = settings();
  for (std::size_t row = 0; row < table.size(); ++row) {
    if (table[row].key == key) return row;
    for (const auto& alias : config::words(table[row].key_aliases)) {
      if (alias == key) return row;
    }
  }
  return kNoRow;
}

std::vector<std::string> known_keys() {
  std::vector<std::string> known;
  for (const auto& setting : settings()) {
    known.emplace_back(setting.key);
    for (auto& alias : config::words(setting.key_aliases)) known.push_back(std::move(alias));
  }
  return known;
}

std::vector<std::string> known_sections() {
  std::vector<std::string> known;
  for (const auto& key : known_keys()) known.push_back(key.substr(0, key.find('.')));
  return known;
}

tl::unexpected<Error> unknown_key(const std::string& place, const std::string& key) {
  return fail(Errc::config_error,
              place + ": unknown key '" + key + "'; the nearest is '" + config::nearest(key, known_keys()) + "'",
              kOperation);
}

tl::unexpected<Error> unknown_variable(const std::string& name) {
  std::vector<std::string> known{"DTR_CONFIG"};
  std::string best;
  for (const auto& setting : settings()) {
    known.push_back(environment_name(setting));
    // The key's long form, where the variable has a short one: DTR_LOG_LEVEL for DTR_LOG.
    Setting plain = setting;
    plain.environment = {};
    if (environment_name(plain) == name) best = known.back();
  }
  if (best.empty()) best = config::nearest(name, known);
  return fail(Errc::config_error, "environment: unknown variable " + name + "; the nearest is " + best, kOperation);
}

ConfigPairs process_environment() {
  ConfigPairs pairs;
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    const std::string_view text(*entry);
    const auto equals = text.find('=');
    if (equals == std::string_view::npos) continue;
    pairs.emplace_back(text.substr(0, equals), text.substr(equals + 1));
  }
  return pairs;
}

/// "file x.toml:3" -> "x.toml:3": in an Error the place stands first and needs no word before it.
std::string place_of(const std::string& origin) {
  constexpr std::string_view kFile = "file ";
  return origin.starts_with(kFile) ? origin.substr(kFile.size()) : origin;
}

}  // namespace

Config::Config() : values_(settings().size()) {
  for (std::size_t row = 0; row < values_.size(); ++row) {
    value_or_throw(set(row, settings()[row].initial, std::string(kDefault)));
  }
}

Result<Config> Config::load(const ConfigOptions& options) {
  Config config;
  const ConfigPairs environment = options.environment ? *options.environment : process_environment();
  std::string file = options.file;
  if (file.empty()) {
    for (const auto& [name, value] : environment) {
      if (name == "DTR_CONFIG") file = value;
    }
  }
  if (!file.empty()) {
    if (auto done = config.set_from_file(file); !done) return fail(done.error());
  }
  if (auto done = config.set_from_environment(environment); !done) return fail(done.error());
  if (auto done = config.set_from_code(options.overrides); !done) return fail(done.error());
  if (auto done = config.check_pairs(); !done) return fail(done.error());
  return config;
}

Result<void> Config::set(std::size_t row, std::string_view text, const std::string& origin) {
  const Setting& setting = settings()[row];
  auto parsed = config::parse_value(setting, text);
  if (!parsed.complaint.empty()) {
    return fail(
        Errc::config_error,
        place_of(origin) + ": " + std::string(setting.key) + " = '" + std::string(text) + "'" + parsed.complaint,
        kOperation);
  }
  values_[row] = {.text = std::move(parsed.text),
                  .integer = parsed.integer,
                  .real = parsed.real,
                  .list = std::move(parsed.list),
                  .origin = origin};
  return {};
}

Result<void> Config::set_from_file(const std::string& path) {
  const auto entries = config::read_toml(path);
  if (!entries) return fail(entries.error());
  std::map<std::size_t, const config::TomlEntry*> seen;
  for (const auto& entry : *entries) {
    const std::string place = path + ":" + std::to_string(entry.line);
    const std::size_t row = row_of_key(entry.key);
    if (row == kNoRow && entry.is_empty_section) {
      const auto known = known_sections();
      if (std::find(known.begin(), known.end(), entry.key) != known.end()) continue;
      return fail(
          Errc::config_error,
          place + ": unknown section [" + entry.key + "]; the nearest is [" + config::nearest(entry.key, known) + "]",
          kOperation);
    }
    if (row == kNoRow) return unknown_key(place, entry.key);
    if (!entry.is_value) {
      return fail(Errc::config_error, place + ": '" + entry.key + "' is " + entry.text + ", not a value", kOperation);
    }
    if (const auto [first, fresh] = seen.emplace(row, &entry); !fresh) {
      return fail(Errc::config_error,
                  place + ": '" + entry.key + "' is the same setting as '" + first->second->key + "' in line " +
                      std::to_string(first->second->line),
                  kOperation);
    }
    if (auto done = set(row, entry.text, "file " + place); !done) return done;
  }
  return {};
}

Result<void> Config::set_from_environment(const ConfigPairs& environment) {
  std::map<std::string, std::pair<std::size_t, bool>, std::less<>> rows;  // name -> row, is an alias
  for (std::size_t row = 0; row < settings().size(); ++row) {
    rows.emplace(environment_name(settings()[row]), std::pair(row, false));
    for (const auto& alias : config::words(settings()[row].environment_aliases)) {
      rows.emplace(alias, std::pair(row, true));
    }
  }
  const auto is_other = [](std::string_view name) {
    return name == "DTR_CONFIG" || std::any_of(kOtherVariables.begin(), kOtherVariables.end(),
                                               [&](std::string_view prefix) { return name.starts_with(prefix); });
  };
  // Aliases first, so that a row's own variable wins over them.
  for (const bool aliases : {true, false}) {
    for (const auto& [name, value] : environment) {
      const auto found = rows.find(name);
      if (found == rows.end()) {
        if (name.starts_with("DTR_") && !is_other(name)) return unknown_variable(name);
        continue;
      }
      if (found->second.second != aliases) continue;
      if (auto done = set(found->second.first, value, "environment " + name); !done) return done;
    }
  }
  return {};
}

Result<void> Config::set_from_code(const ConfigPairs& overrides) {
  for (const auto& [key, value] : overrides) {
    const std::size_t row = row_of_key(key);
    if (row == kNoRow) return unknown_key("code", key);
    if (auto done = set(row, value, "code"); !done) return done;
  }
  return {};
}

Result<void> Config::check_pairs() const {
  for (const auto& [low_key, high_key, times] : kOrdered) {
    const Value& low = values_[row_of_key(low_key)];
    const Value& high = values_[row_of_key(high_key)];
    if (low.integer <= high.integer / times) continue;
    const auto words = [](std::string_view key, const Value& value) {
      return std::string(key) + " = " + value.text + " (" + value.origin + ")";
    };
    return fail(Errc::config_error,
                words(low_key, low) + (times == 1 ? " exceeds " : " exceeds half of ") + words(high_key, high),
                kOperation);
  }
  return {};
}

const Config::Value& Config::at(std::string_view key, std::initializer_list<SettingType> types) const {
  const std::size_t row = row_of_key(key);
  const bool fits = row != kNoRow &&
                    (types.size() == 0 || std::find(types.begin(), types.end(), settings()[row].type) != types.end());
  if (!fits) {
    throw Exception({.code = Errc::internal,
                     .message = "the table has no setting '" + std::string(key) + "' of the type asked for",
                     .operation = kOperation});
  }
  return values_[row];
}

bool Config::boolean(std::string_view key) const { return at(key, {SettingType::boolean}).integer != 0; }

std::int64_t Config::integer(std::string_view key) const { return at(key, {SettingType::integer}).integer; }

double Config::real(std::string_view key) const { return at(key, {SettingType::real}).real; }

const std::string& Config::text(std::string_view key) const {
  return at(key, {SettingType::text, SettingType::choice}).text;
}

const std::vector<std::string>& Config::list(std::string_view key) const { return at(key, {SettingType::list}).list; }

std::chrono::nanoseconds Config::duration(std::string_view key) const {
  const Value& value = at(key, {SettingType::integer, SettingType::real});
  const Setting& setting = settings()[row_of_key(key)];
  const std::int64_t ns = config::unit_ns(setting.unit);
  if (ns == 0) {
    throw Exception(
        {.code = Errc::internal, .message = "setting '" + std::string(key) + "' is no time", .operation = kOperation});
  }
  if (setting.type == SettingType::integer) return std::chrono::nanoseconds(value.integer * ns);
  return std::chrono::nanoseconds(static_cast<std::int64_t>(value.real * static_cast<double>(ns)));
}

const std::string& Config::origin(std::string_view key) const { return at(key, {}).origin; }

bool Config::is_set(std::string_view key) const { return origin(key) != kDefault; }

std::vector<Config::Row> Config::describe() const {
  std::vector<Row> rows;
  for (std::size_t row = 0; row < values_.size(); ++row) {
    const Setting& setting = settings()[row];
    rows.push_back({.key = std::string(setting.key),
                    .value = values_[row].text,
                    .unit = std::string(config::unit_name(setting.unit)),
                    .origin = values_[row].origin,
                    .environment = environment_name(setting),
                    .help = std::string(setting.help)});
  }
  return rows;
}

}  // namespace dtr::inline v0
