// dtr_train: trains an image classifier on several ranks. Workers compute, servers sum, checkpoints survive a crash.
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <string>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>
#include <unistd.h>

#include "dtr/base/bytes.hpp"
#include "dtr/base/file.hpp"
#include "dtr/dataset/readers/mnist.hpp"
#include "dtr/pushpull/reducer.hpp"
#include "job.hpp"
#include "model.hpp"

namespace dtr::train {

Result<void> write_json(const std::string& path, const Summary& summary) {
  const nlohmann::json json{{"test_accuracy", summary.test_accuracy},
                            {"parameter_digest", summary.parameter_digest},
                            {"steps", summary.steps},
                            {"samples_per_second", summary.samples_per_second},
                            {"transport", summary.transport},
                            {"push_pull_seconds", summary.push_pull_seconds},
                            {"compute_seconds", summary.compute_seconds},
                            {"data_seconds", summary.data_seconds}};
  return replace_file(path, json.dump(1) + "\n");
}

Result<void> check_json(const std::string& path) {
  const std::string operation = "--json " + path;
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) {
    return fail(Errc::invalid_argument, "that is a folder; give it the name of a file", operation);
  }
  std::filesystem::path folder = std::filesystem::path(path).parent_path();
  if (folder.empty()) folder = ".";
  if (::access(folder.c_str(), W_OK | X_OK) == 0) return {};
  return fail(errno_error(errno, "cannot write into the folder '" + folder.string() + "'", operation));
}

}  // namespace dtr::train

namespace {

using dtr::train::Options;
using dtr::train::Summary;

constexpr std::chrono::seconds kBegin = std::chrono::minutes(2);
constexpr std::chrono::seconds kEnd = std::chrono::minutes(2);  ///< from the last step of a server to worker 0's test
constexpr std::chrono::seconds kFarewell{3};

/// What the signal handler of this program reaches.
std::atomic<dtr::Runtime*> running{nullptr};

void stop_soon(int /*signal*/) {
  if (dtr::Runtime* rt = running.load(std::memory_order_relaxed)) rt->request_stop();
}

/// Slurm sends SIGUSR1 ahead of the time limit, if asked to, and SIGTERM when it preempts: the ranks agree on a step,
/// save it, and end.
void install_handler() {
  struct sigaction action {};
  action.sa_handler = stop_soon;
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  sigaction(SIGUSR1, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

void print(const Summary& summary) {
  std::printf("test accuracy %.4f, parameters %s, %llu steps, %.0f samples/s over %s\n", summary.test_accuracy,
              summary.parameter_digest.c_str(), static_cast<unsigned long long>(summary.steps),
              summary.samples_per_second, summary.transport.empty() ? "loopback" : summary.transport.c_str());
}

dtr::Result<void> run(dtr::Runtime& rt, const Options& options) {
  if (!rt.is_worker()) return dtr::Reducer(rt).serve();
  std::optional<dtr::Reducer> reducer;
  if (rt.is_server()) {  // both: progress sums, whenever something has come
    reducer.emplace(rt);
    if (auto started = reducer->start(); !started) return started;
  }
  auto summary = dtr::train::train(rt, options);
  if (!summary) return dtr::fail(std::move(summary.error()));
  if (reducer) {
    if (auto served = reducer->join(kEnd); !served) return served;
  }
  if (rt.worker_index() != 0) return {};
  if (!summary->finished) {
    std::printf("stopped at step %llu as asked\n", static_cast<unsigned long long>(summary->steps));
    return {};
  }
  print(*summary);
  return options.json.empty() ? dtr::Result<void>{} : dtr::train::write_json(options.json, *summary);
}

/// Worker 0 tests the outcome and writes the results, and all learn at the start whether it could: nobody trains for a
/// folder that is not there.
dtr::Result<void> check_end(const dtr::Runtime& rt, const Options& options) {
  if (rt.worker_index() != 0) return {};
  if (auto images = dtr::open_mnist(options.data, dtr::MnistPart::test); !images) return dtr::fail(images.error());
  return options.json.empty() ? dtr::Result<void>{} : dtr::train::check_json(options.json);
}

/// A job begins and ends well on every rank or on none: a server learns here that the workers could not read their
/// data.
dtr::Result<void> all_well(dtr::Runtime& rt, std::string_view topic, dtr::Result<void> mine, dtr::Deadline deadline) {
  dtr::ByteWriter words;
  words.value(mine ? dtr::Errc::ok : mine.error().code).text(mine ? "" : mine.error().to_string());
  const auto all = rt.allgather(topic, words.view(), deadline);
  const bool died = !all && all.error().code == dtr::Errc::peer_failed;
  // A death is the cause of what else went wrong; who left says itself why.
  const bool left = !mine && all && mine.error().code == dtr::Errc::peer_left;
  if (!mine && !left && (!died || mine.error().code == dtr::Errc::peer_failed)) return mine;
  if (!all) return dtr::fail(all.error());
  for (std::size_t rank = 0; rank < all->size(); ++rank) {
    dtr::ByteReader in((*all)[rank]);
    const auto code = in.value<dtr::Errc>();
    if (code == dtr::Errc::ok || (left && code == dtr::Errc::peer_left)) continue;
    return dtr::fail(code, in.text(), "training", static_cast<int>(rank));
  }
  return mine;
}

/// 0 or more; a range would let NaN pass.
CLI::Validator finite_rate() {
  return CLI::Validator(
      [](const std::string& text) {
        char* end = nullptr;
        const double rate = std::strtod(text.c_str(), &end);
        const bool good = end != text.c_str() && *end == 0 && std::isfinite(rate) && rate >= 0;
        return good ? std::string() : "'" + text + "' is no finite number of 0 or more";
      },
      "FLOAT >= 0");
}

/// Digits only: every 64-bit seed is good, and -1 is none of them.
CLI::Validator whole_number() {
  return CLI::Validator(
      [](const std::string& text) {
        const bool good = !text.empty() && text.find_first_not_of("0123456789") == std::string::npos;
        return good ? std::string() : "'" + text + "' is no whole number";
      },
      "UINT");
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Trains a 784-256-10 network on Fashion-MNIST: workers compute, servers sum");
  Options options;
  // A minus sign or a NaN is a mistake: without a check it would become a huge number, or a training of nothing.
  const auto count = [&app](const char* name, auto& value, const char* what) {
    constexpr std::uint64_t kMost = 1'000'000'000'000;
    return app.add_option(name, value, what)->check(CLI::Range(std::uint64_t{0}, kMost));
  };
  std::string servers = std::to_string(options.servers);
  app.add_option("--servers", servers, "ranks that only sum, the last ones; or colocated: every rank computes and sums")
      ->check(CLI::Range(0, 1'000'000) | CLI::IsMember({"colocated"}))
      ->capture_default_str();
  app.add_option("--epochs", options.epochs, "times through the 60,000 images")
      ->check(CLI::Range(std::uint64_t{0}, std::uint64_t{1'000'000}))
      ->capture_default_str();
  app.add_option("--batch", options.batch, "images a worker and step")
      ->check(CLI::Range(std::uint64_t{1}, std::uint64_t{60000}))
      ->capture_default_str();
  app.add_option("--lr", options.rate, "learning rate at the start")->check(finite_rate())->capture_default_str();
  app.add_option("--seed", options.seed, "of the parameters and of the order of images")
      ->check(whole_number())
      ->capture_default_str();
  app.add_option("--data", options.data, "folder of the idx files")->capture_default_str();
  app.add_option("--checkpoint-dir", options.checkpoint_dir, "folder for checkpoints (default: none)");
  count("--checkpoint-every", options.checkpoint_every, "steps from one to the next; 0 = never")
      ->default_str("checkpoint.interval_steps where it is set, else " + std::to_string(dtr::train::kCheckpointEvery));
  app.add_flag("--resume", options.resume, "go on from the newest valid checkpoint");
  count("--max-steps", options.max_steps, "end after this step, counted from 0; 0 = no limit");
  app.add_option("--json", options.json, "file for the results");
  CLI11_PARSE(app, argc, argv);
  options.colocated = servers == "colocated";
  options.servers = options.colocated ? 0 : std::stoi(servers, nullptr, 0);

  dtr::train::make_arithmetic_portable();
  try {
    dtr::Runtime rt({.servers = options.servers, .colocated = options.colocated});
    running = &rt;
    install_handler();
    auto done = all_well(rt, "dtr_train begins", check_end(rt, options), kBegin);
    if (done) done = run(rt, options);
    const bool failed = !done;
    // Who fails does not wait long for ranks that may hang.
    const dtr::Deadline farewell = failed ? std::min(dtr::Deadline(kFarewell), rt.end_deadline()) : dtr::Deadline(kEnd);
    done = all_well(rt, "dtr_train ends", std::move(done), farewell);
    const auto ended = failed ? rt.finalize(farewell) : rt.finalize();
    running = nullptr;
    if (!done) return rt.fail(done.error());
    if (!ended) return rt.fail(ended.error());
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
  return 0;
}
