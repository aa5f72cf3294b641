// dtr_perf: latency and bandwidth of put, get, send and fetch-add between two ranks (or one rank and itself).
#include <cstdio>

#include <CLI/CLI.hpp>

#include "perf.hpp"

namespace {

using dtr::perf::Operation;
using dtr::perf::Plan;

/// "A:B:xF" -> A, A*F, ... up to B; "A:B:+S" -> A, A+S, ...; "A,B,C" as it is.
dtr::Result<std::vector<std::uint64_t>> parse_sizes(const std::string& text) {
  const auto wrong = [&] {
    return dtr::fail(dtr::Errc::invalid_argument, "\"" + text + "\" is no A:B:xF, such as 8:1048576:x4", "--sizes");
  };
  unsigned long long first = 0;
  unsigned long long last = 0;
  unsigned long long factor = 0;
  int used = 0;
  if (std::sscanf(text.c_str(), "%llu:%llu:x%llu%n", &first, &last, &factor, &used) != 3 ||
      static_cast<std::size_t>(used) != text.size() || first == 0 || factor < 2 || last < first) {
    return wrong();
  }
  std::vector<std::uint64_t> sizes;
  for (std::uint64_t size = first; size <= last; size *= factor) {
    sizes.push_back(size);
    if (size > last / factor) break;
  }
  return sizes;
}

dtr::Result<void> complete(Plan& plan) {
  static const std::map<std::string, std::pair<Operation, bool>> operations{
      {"put_lat", {Operation::put, true}},      {"put_bw", {Operation::put, false}},
      {"get_lat", {Operation::get, true}},      {"get_bw", {Operation::get, false}},
      {"send_lat", {Operation::send, true}},    {"send_bw", {Operation::send, false}},
      {"msg_lat", {Operation::message, true}},  {"msg_bw", {Operation::message, false}},
      {"atomic_lat", {Operation::atomic, true}}};
  const auto found = operations.find(plan.name);
  if (found == operations.end()) {
    return dtr::fail(
        dtr::Errc::invalid_argument,
        "\"" + plan.name + "\" is none of put_lat put_bw get_lat get_bw send_lat send_bw msg_lat msg_bw atomic_lat",
        "dtr_perf");
  }
  std::tie(plan.operation, plan.latency) = found->second;
  return {};
}

std::uint64_t iterations_for(const Plan& plan, std::uint64_t size) {
  if (plan.iterations > 0) return plan.iterations;
  constexpr std::uint64_t kBytes = 4ULL << 30;  // about a second of copying
  const std::uint64_t most = plan.latency ? 20000 : 2000000;
  return std::clamp<std::uint64_t>(kBytes / std::max<std::uint64_t>(size, 1), 20, most);
}

dtr::Result<void> run(dtr::Runtime& rt, const Plan& plan) {
  if (rt.size() > 2) {
    return dtr::fail(dtr::Errc::invalid_argument,
                     "start 2 ranks, or 1 for loopback; these are " + std::to_string(rt.size()), "dtr_perf");
  }
  std::vector<dtr::perf::Row> rows;
  if (rt.rank() == 0) dtr::perf::print_header();
  for (const std::uint64_t size : plan.sizes) {
    if (plan.operation == Operation::atomic && size != 8) {
      return dtr::fail(dtr::Errc::invalid_argument, std::to_string(size) + " bytes; an atomic has 8", "atomic_lat");
    }
    dtr::perf::Pair pair(rt, size, plan.atomic_home);
    const std::uint64_t iterations = iterations_for(plan, size);
    const auto batch = static_cast<std::uint32_t>(std::min<std::uint64_t>(plan.batch, iterations));
    // What is larger than a message of the fabric goes by the Messenger.
    const bool by_messenger =
        plan.operation == Operation::message || (plan.operation == Operation::send && size > rt.fabric().max_message());
    auto samples = by_messenger   ? dtr::perf::measure_messages(pair, plan, iterations)
                   : plan.latency ? dtr::perf::measure_latency(pair, plan.operation, iterations)
                                  : dtr::perf::measure_bandwidth(pair, plan.operation, iterations, batch);
    if (rt.rank() != 0) continue;
    rows.push_back(dtr::perf::make_row(plan, pair, std::move(samples)));
    dtr::perf::print_row(rows.back());
  }
  if (rt.rank() == 0 && !plan.json.empty()) return dtr::perf::write_json(plan.json, rows);
  return {};
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Latency and bandwidth of libdtr between two ranks");
  Plan plan;
  std::uint64_t size = 0;
  std::string sizes;
  app.add_option("operation", plan.name, "put_lat put_bw get_lat get_bw send_lat send_bw msg_lat msg_bw atomic_lat")
      ->required();
  std::string home = "cpu";
  auto* one = app.add_option("--size", size, "bytes of one operation")->check(CLI::PositiveNumber);
  app.add_option("--sizes", sizes, "A:B:xF: from A to B bytes, times F each")->excludes(one);
  app.add_option("--transport", plan.transport, "shm, tcp, verbs (default: as configured)");
  app.add_option("--atomics", home, "who executes them: the target's cpu, or its device (verbs)")
      ->check(CLI::IsMember({"cpu", "device"}));
  app.add_option("--iterations", plan.iterations, "operations to measure (default: by size)")
      ->check(CLI::Range(std::uint64_t{0}, std::uint64_t{100'000'000}));
  app.add_option("--batch", plan.batch, "requests per post in bandwidth tests")->check(CLI::Range(1, 65536));
  app.add_flag("--managed", plan.managed, "messages: from and into memory of the pool instead of malloc's");
  app.add_option("--json", plan.json, "file for the results");
  CLI11_PARSE(app, argc, argv);

  if (auto good = complete(plan); !good) {
    std::fprintf(stderr, "%s\n", good.error().to_string().c_str());
    return 2;
  }
  plan.atomic_home = home == "device" ? dtr::AtomicHome::device : dtr::AtomicHome::cpu;
  plan.sizes = {size > 0 ? size : 8};
  if (!sizes.empty()) {
    auto list = parse_sizes(sizes);
    if (!list) {
      std::fprintf(stderr, "%s\n", list.error().to_string().c_str());
      return 2;
    }
    plan.sizes = std::move(*list);
  }
  dtr::RuntimeOptions options;
  if (!plan.transport.empty()) options.config.overrides.emplace_back("transport.allow", plan.transport);
  try {
    dtr::Runtime rt(std::move(options));
    try {
      if (auto done = run(rt, plan); !done) return rt.fail(done.error());
    } catch (const dtr::Exception& e) {
      return rt.fail(e.error());
    }
    if (auto ended = rt.finalize(); !ended) return rt.fail(ended.error());
  } catch (const dtr::Exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
  return 0;
}
