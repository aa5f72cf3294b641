#include "calibrate.hpp"

#include <algorithm>
#include <array>
#include <cstdio>
#include <filesystem>
#include <limits>

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

/// All messages of more than `eager` bytes in pieces of `piece`.
Thresholds only(const std::string& transport, std::uint64_t eager, std::uint32_t piece) {
  Thresholds made;
  auto& rows = made.tables.emplace_back(Thresholds::Table{.transport = transport, .rows = {}}).rows;
  if (eager > 0) rows.push_back({.up_to = eager, .way = MessageWay::eager, .piece = piece});
  rows.push_back({.up_to = kNoEnd, .way = MessageWay::slots, .piece = piece});
  return made;
}

/// Bytes a second from rank 0 to rank 1, the median of some repeats; 0 on other ranks.
double rate(Runtime& rt, const Thresholds& thresholds, std::size_t bytes) {
  Messenger messenger(rt, {.thresholds = thresholds});
  value_or_throw(rt.allgather("dtr_info/rate", {}, kBound));
  std::array<double, kRepeats> rates{};
  if (rt.rank() < 2) {
    std::vector<std::byte> memory(bytes, std::byte{1});
    const std::uint64_t messages = std::clamp<std::uint64_t>(kBytesARepeat / bytes, 2 * kWindow, 20000);
    const bool sends = rt.rank() == 0;
    for (double& each : rates) {
      std::array<MessageHandle, kWindow> handles{};
      const Stopwatch watch;
      for (std::uint64_t i = 0; i < messages + kWindow; ++i) {
        MessageHandle& mine = handles[i % kWindow];
        if (i >= kWindow) value_or_throw(messenger.wait(mine));
        if (i < messages) {
          mine =
              value_or_throw(sends ? messenger.send(1, kTag, memory, kBound) : messenger.recv(0, kTag, memory, kBound));
        }
      }
      // The last one has come, says rank 1.
      std::byte end{};
      value_or_throw(messenger.wait(value_or_throw(sends ? messenger.recv(1, kTag, {&end, 1}, kBound)
                                                         : messenger.send(0, kTag, {&end, 1}, kBound))));
      each = static_cast<double>(messages * bytes) / static_cast<double>(watch.elapsed_ns());
    }
  }
  value_or_throw(rt.allgather("dtr_info/rated", {}, kBound));
  std::sort(rates.begin(), rates.end());
  return rates[kRepeats / 2];
}

/// The largest message that goes better as one of the fabric.
std::uint64_t best_eager(Runtime& rt, const std::string& transport, std::uint32_t piece) {
  const std::uint64_t most = rt.fabric().max_message() - 16;
  std::uint64_t best = 64;
  for (std::uint64_t bytes = 256;; bytes = std::min(2 * bytes, most)) {
    const double eager = rate(rt, only(transport, bytes, piece), bytes);
    const double slots = rate(rt, only(transport, 0, piece), bytes);
    if (rt.rank() == 0) {
      std::printf("  %9llu bytes   eager %7.2f GB/s   slots %7.2f GB/s\n", static_cast<unsigned long long>(bytes),
                  eager, slots);
      std::fflush(stdout);
    }
    if (eager >= slots) best = bytes;
    if (bytes == most) return best == most ? rt.fabric().max_message() : best;
  }
}

}  // namespace

Result<void> calibrate(Runtime& rt, const std::string& path) {
  if (rt.size() < 2) return fail(Errc::invalid_argument, "start 2 ranks", "calibrate");
  const std::string transport = rt.fabric().path(rt.rank() == 0 ? 1 : 0).transport;
  const bool talks = rt.rank() == 0;
  const auto largest = static_cast<std::uint32_t>(rt.config().integer("messages.slot_bytes"));
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
    ThresholdRow row{.up_to = 2 * bytes, .way = MessageWay::slots, .piece = largest};
    double best = 0;
    if (talks) std::printf("  %9llu bytes  ", static_cast<unsigned long long>(bytes));
    for (const std::uint32_t piece : pieces) {
      if (piece > bytes && piece != pieces.front()) break;  // as the one before
      const double now = rate(rt, only(transport, 0, piece), bytes);
      if (talks) std::printf(" %u: %.2f GB/s ", piece, now);
      if (now > best) {
        best = now;
        row.piece = piece;
      }
    }
    if (talks) std::printf("\n"), std::fflush(stdout);
    if (found.back().way == MessageWay::slots && found.back().piece == row.piece) found.pop_back();
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
