#include "calibrate.hpp"

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <limits>

#include "common/memory.hpp"
#include "common/messages_read.hpp"
#include "dtr/base/clock.hpp"
#include "dtr/base/file.hpp"
#include "dtr/messaging/messenger.hpp"

namespace dtr::info {

namespace {

constexpr auto kBound = std::chrono::seconds(60);
constexpr std::uint64_t kTag = 1;
constexpr std::uint64_t kNoEnd = std::numeric_limits<std::int64_t>::max();
constexpr std::size_t kWindow = 16;
constexpr int kRepeats = 5;
constexpr std::uint64_t kBytesARepeat = 64 << 20;

/// All messages of more than `eager` bytes this way, whose `up_to` does not count.
Thresholds only(const std::string& transport, std::uint64_t eager, ThresholdRow way) {
  Thresholds made;
  auto& rows = made.tables.emplace_back(Thresholds::Table{.transport = transport, .rows = {}}).rows;
  way.up_to = kNoEnd;
  if (eager > 0) rows.push_back({.up_to = eager, .way = MessageWay::eager, .piece = way.piece});
  rows.push_back(way);
  return made;
}

ThresholdRow slots_of(std::uint32_t piece) {
  return {.up_to = kNoEnd, .way = MessageWay::slots, .piece = piece, .mapped = MessageWay::slots};
}
constexpr ThresholdRow kRead{.up_to = kNoEnd, .way = MessageWay::read};

struct Rate {
  double gb = 0;           ///< gigabytes a second
  std::uint64_t read = 0;  ///< messages that rank 1 read in the memory of rank 0
};

/// What rank `from` has; collective.
template <class T>
T told_by(Runtime& rt, int from, const char* name, const T& mine) {
  const auto all = value_or_throw(rt.allgather(name, std::as_bytes(std::span(&mine, 1)), kBound));
  T value;
  std::memcpy(&value, all.at(static_cast<std::size_t>(from)).data(), sizeof value);
  return value;
}

/// From rank 0 to rank 1, the median of some repeats; the same on all ranks, so that they go on alike.
Rate rate(Runtime& rt, const Thresholds& thresholds, std::size_t bytes, bool of_the_pool = false) {
  Messenger messenger(rt, {.thresholds = thresholds});
  const std::uint64_t read_before = common::messages_read(rt);
  value_or_throw(rt.allgather("dtr_info/rate", {}, kBound));
  std::array<double, kRepeats> rates{};
  if (rt.rank() < 2) {
    const common::Memory memory(rt, bytes, of_the_pool);
    const std::uint64_t messages = std::clamp<std::uint64_t>(kBytesARepeat / bytes, 2 * kWindow, 20000);
    const bool sends = rt.rank() == 0;
    for (double& each : rates) {
      std::array<MessageHandle, kWindow> handles{};
      const Stopwatch watch;
      for (std::uint64_t i = 0; i < messages + kWindow; ++i) {
        MessageHandle& mine = handles[i % kWindow];
        if (i >= kWindow) value_or_throw(messenger.wait(mine));
        if (i < messages) {
          mine = value_or_throw(sends ? messenger.send(1, kTag, memory.span(), kBound)
                                      : messenger.recv(0, kTag, memory.span(), kBound));
        }
      }
      // The last one has come, says rank 1.
      std::byte end{};
      value_or_throw(messenger.wait(value_or_throw(sends ? messenger.recv(1, kTag, {&end, 1}, kBound)
                                                         : messenger.send(0, kTag, {&end, 1}, kBound))));
      each = static_cast<double>(messages * bytes) / static_cast<double>(watch.elapsed_ns());
    }
  }
  std::sort(rates.begin(), rates.end());
  return {.gb = told_by(rt, 0, "dtr_info/rated", rates[kRepeats / 2]),
          .read = told_by(rt, 1, "dtr_info/read", common::messages_read(rt) - read_before)};
}

/// The largest message that goes better as one of the fabric.
std::uint64_t best_eager(Runtime& rt, const std::string& transport, std::uint32_t piece) {
  const std::uint64_t most = told_by(rt, 0, "dtr_info/most", std::uint64_t{rt.fabric().max_message(1)}) - 16;
  std::uint64_t best = 64;
  for (std::uint64_t bytes = 256;; bytes = std::min(2 * bytes, most)) {
    const double eager = rate(rt, only(transport, bytes, slots_of(piece)), bytes).gb;
    const double slots = rate(rt, only(transport, 0, slots_of(piece)), bytes).gb;
    if (rt.rank() == 0) {
      std::printf("  %9llu bytes   eager %7.2f GB/s   slots %7.2f GB/s\n", static_cast<unsigned long long>(bytes),
                  eager, slots);
      std::fflush(stdout);
    }
    if (eager >= slots) best = bytes;
    if (bytes == most) return best == most ? most + 16 : best;
  }
}

/// Is a message of this size copied by its receiver alone sooner than by both through the best of the slots?
void read_where_better(Runtime& rt, ThresholdRow& row, std::uint64_t bytes, double slots) {
  const Rate read = rate(rt, only("shm", 0, kRead), bytes);
  const Rate slots_from_pool = rate(rt, only("shm", 0, slots_of(row.piece)), bytes, true);
  const Rate read_from_pool = rate(rt, only("shm", 0, kRead), bytes, true);
  const auto better = [](const Rate& reading, double other) {
    return reading.read > 0 && reading.gb > other ? MessageWay::read : MessageWay::slots;
  };
  row.way = better(read, slots);
  row.mapped = better(read_from_pool, slots_from_pool.gb);
  if (rt.rank() != 0) return;
  const auto print = [](const Rate& reading) {
    if (reading.read == 0) {
      std::printf(" read: cannot be");
    } else {
      std::printf(" read: %.2f GB/s", reading.gb);
    }
  };
  print(read);
  std::printf("   from the pool: %.2f,", slots_from_pool.gb);
  print(read_from_pool);
}

}  // namespace

Result<void> calibrate(Runtime& rt, const std::string& path) {
  if (rt.size() < 2) return fail(Errc::invalid_argument, "start 2 ranks", "calibrate");
  const std::string transport = rt.fabric().path(rt.rank() == 0 ? 1 : 0).transport;
  const bool talks = rt.rank() == 0;
  // Ranks from 2 on only keep step, whatever their own ways are.
  const auto largest =
      told_by(rt, 0, "dtr_info/largest", static_cast<std::uint32_t>(rt.config().integer("messages.slot_bytes")));
  const bool can_be_read = told_by(rt, 0, "dtr_info/transport", std::uint8_t{transport == "shm"}) != 0;
  std::vector<std::uint32_t> pieces;
  for (std::uint32_t piece = 8 << 10; piece < largest; piece *= 2) pieces.push_back(piece);
  pieces.push_back(largest);
  if (talks) {
    std::printf("messages over %s between ranks 0 and 1; pieces of up to messages.slot_bytes = %u\n", transport.c_str(),
                largest);
  }
  std::vector<ThresholdRow> found;
  found.push_back({.up_to = best_eager(rt, transport, largest), .way = MessageWay::eager, .piece = largest});
  constexpr std::uint64_t kSizes[] = {16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20};
  for (const std::uint64_t bytes : kSizes) {
    if (2 * bytes <= found.front().up_to) continue;
    ThresholdRow row{.up_to = 2 * bytes, .way = MessageWay::slots, .piece = largest};
    double best = 0;
    if (talks) std::printf("  %9llu bytes  ", static_cast<unsigned long long>(bytes));
    for (const std::uint32_t piece : pieces) {
      if (piece > bytes && piece != pieces.front()) break;  // as the one before
      const double now = rate(rt, only(transport, 0, slots_of(piece)), bytes).gb;
      if (talks) std::printf(" %u: %.2f GB/s ", piece, now);
      if (now > best) {
        best = now;
        row.piece = piece;
      }
    }
    if (can_be_read) read_where_better(rt, row, bytes, best);
    if (talks) std::printf("\n"), std::fflush(stdout);
    const ThresholdRow& before = found.back();
    if (before.way == row.way && before.piece == row.piece && before.mapped == row.mapped) found.pop_back();
    found.push_back(row);
  }
  found.back().up_to = kNoEnd;
  if (!talks) return {};

  Thresholds all;
  if (std::filesystem::exists(path)) {
    auto before = Thresholds::load(path);
    if (!before) return fail(std::move(before.error()));
    all = std::move(*before);
  }
  std::erase_if(all.tables, [&](const Thresholds::Table& table) { return table.transport == transport; });
  all.tables.push_back({.transport = transport, .rows = found});
  all.origin = path;
  if (auto written = replace_file(path, all.toml()); !written) return written;
  std::printf("written: %s; messages.thresholds names it\n%s", path.c_str(), all.describe().c_str());
  return {};
}

}  // namespace dtr::info
