// dtr_info: what libdtr finds on this machine, which way it would go to each peer and why, and every setting.
#include <cstdio>
#include <fstream>
#include <thread>

#include <CLI/CLI.hpp>

#include "calibrate.hpp"
#include "dtr/base/bytes.hpp"
#include "dtr/fabric/handshake.hpp"
#include "dtr/messaging/thresholds.hpp"
#include "dtr/runtime/runtime.hpp"

namespace {

constexpr auto kBound = std::chrono::seconds(30);

std::string first_line(const char* path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

void print_config(const dtr::Config& config) {
  std::printf("settings\n");
  for (const auto& row : config.describe()) {
    const std::string value = (row.value.empty() ? "\"\"" : row.value) + (row.unit.empty() ? "" : " " + row.unit);
    std::printf("  %-32s %-24s %s\n", row.key.c_str(), value.c_str(), row.origin.c_str());
  }
}

void print_host(const dtr::Runtime& rt) {
  std::printf("job\n  ranks              %d on %d host%s\n  workers, servers   %d, %d\n", rt.size(), rt.place().hosts,
              rt.place().hosts == 1 ? "" : "s", rt.workers(), rt.servers());
  std::printf("host\n  name               %s\n  kernel             %s\n  cores              %u\n",
              dtr::host_name().c_str(), first_line("/proc/sys/kernel/osrelease").c_str(),
              std::thread::hardware_concurrency());
}

void print_transports(dtr::Runtime& rt) {
  std::printf("transports\n");
  for (const auto& report : rt.fabric().transports()) {
    std::printf("  %-10s %-4s %s\n", report.name.c_str(), report.viable ? "yes" : "no", report.reason.c_str());
  }
}

dtr::Result<void> print_thresholds(const dtr::Config& config) {
  const auto thresholds = dtr::Thresholds::from(config);
  if (!thresholds) return dtr::fail(thresholds.error());
  std::printf("messages\n%s", thresholds->describe().c_str());
  return {};
}

/// Connects to every peer, so that the detail of each path is the real one; a text for rank 0 to print.
std::string describe_paths(dtr::Runtime& rt) {
  std::string text;
  for (int rank = 0; rank < rt.size(); ++rank) {
    const auto peer = static_cast<dtr::fabric::PeerId>(rank);
    dtr::fabric::Completion open;
    const auto flush = dtr::fabric::WorkRequest::flush(&open);
    rt.fabric().submit(peer, std::span(&flush, 1), kBound);
    const auto connected = rt.fabric().wait(open, peer, "connect", kBound);
    const auto path = rt.fabric().path(peer);
    text += "  " + std::to_string(rt.rank()) + " -> " + std::to_string(rank) + "  " +
            (connected ? path.detail : connected.error().to_string()) + "  (" + path.reason + ")\n";
  }
  return text;
}

dtr::Result<void> run(dtr::Runtime& rt, bool settings) {
  const std::string mine = describe_paths(rt);
  const auto all = rt.allgather("dtr_info/paths", std::as_bytes(std::span(mine.data(), mine.size())), kBound);
  if (!all) return dtr::fail(all.error());
  if (rt.rank() != 0) return {};
  std::printf("libdtr\n  handshake          protocol %u, build %llx\n", dtr::fabric::kProtocolVersion,
              static_cast<unsigned long long>(dtr::fabric::build_id()));
  print_host(rt);
  print_transports(rt);
  std::printf("paths\n");
  for (const auto& text : *all)
    std::printf("%.*s", static_cast<int>(text.size()), reinterpret_cast<const char*>(text.data()));
  if (auto shown = print_thresholds(rt.config()); !shown) return shown;
  if (settings) print_config(rt.config());
  return {};
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("What libdtr finds here, the path to each peer and why, and every setting with its origin");
  bool only_config = false;
  bool no_config = false;
  app.add_flag("--config", only_config, "only the settings, without starting a job");
  app.add_flag("--no-config", no_config, "everything but the settings");
  std::string calibrated;
  app.add_option("--calibrate", calibrated,
                 "measures messages between ranks 0 and 1, and writes the way of each size to this file");
  CLI11_PARSE(app, argc, argv);
  if (only_config) {
    const auto config = dtr::Config::load();
    if (!config) {
      std::fprintf(stderr, "%s\n", config.error().to_string().c_str());
      return 1;
    }
    print_config(*config);
    return 0;
  }
  try {
    dtr::Runtime rt;
    const auto done = calibrated.empty() ? run(rt, !no_config) : dtr::info::calibrate(rt, calibrated);
    if (!done) return rt.fail(done.error());
    if (auto ended = rt.finalize(); !ended) return rt.fail(ended.error());
  } catch (const dtr::Exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
  return 0;
}
