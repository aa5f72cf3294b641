// The training loop of a worker: read a batch, compute its gradient, sum it with everybody's, descend.
#include <cstdio>
#include <numeric>
#include <optional>
#include <set>

#include <xxhash.h>

#include "dtr/base/clock.hpp"
#include "dtr/checkpoint/checkpoint_manager.hpp"
#include "dtr/dataset/prefetch.hpp"
#include "dtr/dataset/readers/mnist.hpp"
#include "dtr/dataset/registry.hpp"
#include "dtr/pushpull/worker.hpp"
#include "job.hpp"
#include "model.hpp"

namespace dtr::train {

namespace {

constexpr auto kStart = std::chrono::minutes(2);  ///< ranks may read their data at very different speeds
constexpr float kMomentum = 0.9F;
constexpr std::size_t kChunks = 16;      ///< keys: enough to spread over servers, few enough to stay large
constexpr std::size_t kLineFloats = 16;  ///< chunks begin on cache lines
constexpr const char* kDataset = "fashion-mnist/train";

/// By push_pull, cut into chunks by key.
class PushPullExchange final : public GradientExchange {
 public:
  PushPullExchange(Runtime& rt, std::size_t floats)
      : rt_(rt),
        floats_(floats),
        chunk_((floats / kChunks + kLineFloats) / kLineFloats * kLineFloats),
        mine_(value_or_throw(rt.allocate(kChunks * chunk_ * sizeof(float)))),
        sum_(value_or_throw(rt.allocate(kChunks * chunk_ * sizeof(float)))),
        worker_(rt) {
    std::fill(all(mine_).begin(), all(mine_).end(), 0.0F);
    for (std::size_t key = 0; key < kChunks; ++key) {
      round_.push_back({.key = key,
                        .push = all(mine_).subspan(key * chunk_, chunk_),
                        .pull = all(sum_).subspan(key * chunk_, chunk_)});
    }
  }

  [[nodiscard]] std::span<float> mine() override { return all(mine_).first(floats_); }
  [[nodiscard]] std::span<const float> sum() const override { return all(sum_).first(floats_); }
  [[nodiscard]] Result<void> run() override {
    auto round = worker_.push_pull(round_);
    if (!round) return fail(std::move(round.error()));
    return worker_.wait(*round, rt_.operation_timeout());
  }

 private:
  static std::span<float> all(const Buffer& buffer) { return buffer.as<float>(); }

  Runtime& rt_;
  std::size_t floats_;
  std::size_t chunk_;
  Buffer mine_;
  Buffer sum_;
  Worker worker_;
  std::vector<PushPull> round_;
};

/// What travels each step: the gradient of all parameters, then the loss, then who wants to stop.
class StepSums {
 public:
  StepSums(std::unique_ptr<GradientExchange> exchange, std::size_t parameters)
      : exchange_(std::move(exchange)), parameters_(parameters) {}

  static std::size_t floats(std::size_t parameters) { return parameters + 2; }
  [[nodiscard]] std::span<float> gradient() { return exchange_->mine().first(parameters_); }
  [[nodiscard]] std::span<const float> summed() const { return exchange_->sum().first(parameters_); }
  [[nodiscard]] float loss() const { return exchange_->sum()[parameters_]; }
  [[nodiscard]] bool somebody_stops() const { return exchange_->sum()[parameters_ + 1] > 0; }

  [[nodiscard]] Result<void> run(double loss, bool stop) {
    exchange_->mine()[parameters_] = static_cast<float>(loss);
    exchange_->mine()[parameters_ + 1] = stop ? 1.0F : 0.0F;
    return exchange_->run();
  }

 private:
  std::unique_ptr<GradientExchange> exchange_;
  std::size_t parameters_;
};

/// Seconds that a scope took, added to a total.
class Timed {
 public:
  explicit Timed(double& total) : total_(total), start_(monotonic_ns()) {}
  ~Timed() { total_ += static_cast<double>(monotonic_ns() - start_) * 1e-9; }
  Timed(const Timed&) = delete;
  Timed& operator=(const Timed&) = delete;

 private:
  double& total_;
  std::int64_t start_;
};

class Training {
 public:
  Training(Runtime& rt, const Options& options, const MakeExchange& make_exchange)
      : rt_(rt),
        options_(options),
        make_exchange_(make_exchange),
        workers_(value_or_throw(rt.worker_group())),
        registry_(*workers_, RegistryOptions::from(rt.config())),
        parameters_(shape_.parameters()),
        velocity_(shape_.parameters()),
        model_(shape_, std::max<std::size_t>(options.batch, 500)) {}

  Result<Summary> run() {
    // First: its end tells the servers that this worker ends.
    StepSums exchange(make_exchange_(rt_, StepSums::floats(shape_.parameters())), shape_.parameters());
    if (auto ready = prepare(); !ready) return fail(std::move(ready.error()));
    const std::int64_t start = monotonic_ns();
    auto trained = loop(exchange);
    if (!trained) return fail(std::move(trained.error()));
    const double seconds = static_cast<double>(monotonic_ns() - start) * 1e-9;
    if (auto saved = finish_save(); !saved) return fail(std::move(saved.error()));
    summary_.steps = step_;
    summary_.samples_per_second = seconds > 0 ? static_cast<double>(samples_) / seconds : 0;
    if (!summary_.finished) return summary_;
    return conclude();
  }

 private:
  /// Without a folder there are none.
  Result<void> open_checkpoints() {
    if (options_.checkpoint_dir.empty()) return {};
    auto how = CheckpointOptions::from(rt_.config());
    if (!how) return fail(std::move(how.error()));
    how->path = options_.checkpoint_dir;
    if (!rt_.config().is_set("checkpoint.interval_steps")) how->interval_steps = kCheckpointEvery;
    how->interval_steps = options_.checkpoint_every.value_or(how->interval_steps);
    how->save_timeout = rt_.operation_timeout();
    how->close_timeout = rt_.operation_timeout();
    checkpoints_.emplace(*workers_, std::move(*how));
    return {};
  }

  Result<void> prepare() {
    if (auto opened = open_checkpoints(); !opened) return opened;
    initialize(shape_, options_.seed, parameters_);
    auto path = mnist_images_path(options_.data, MnistPart::train);
    if (!path) return fail(std::move(path.error()));
    DatasetInfo info{.id = kDataset,
                     .path = *path,
                     .format = "idx",
                     .shard_size = 0,
                     .shuffle = true,
                     .seed = options_.seed,
                     .unit = ShardUnit::sample,
                     .tail = TailPolicy::drop};
    if (auto registered = registry_.register_dataset(info, kStart); !registered) return registered;
    auto files = open_mnist(options_.data, MnistPart::train);
    if (!files) return fail(std::move(files.error()));
    readers_ = {files->images, files->labels};
    const auto plan = registry_.plan(kDataset, workers_->rank(), 0);
    if (!plan) return fail(plan.error());
    total_steps_ = options_.epochs * plan->batches(options_.batch);
    return checkpoints_ || options_.resume ? resume() : Result<void>{};
  }

  /// What decides the course of the training; stands in each checkpoint, the seed first.
  [[nodiscard]] std::string settings() const {
    return "seed " + std::to_string(options_.seed) + ", batch " + std::to_string(options_.batch) + ", epochs " +
           std::to_string(options_.epochs) + ", lr " + std::to_string(options_.rate) + ", workers " +
           std::to_string(workers_->size());
  }

  /// A folder that another job has filled would give that job's parameters to the next --resume. Who resumes may change
  /// everything but the seed, which also says which images were seen.
  [[nodiscard]] Result<void> check_same_job(const Checkpoint& loaded) const {
    const auto saved = loaded.get<std::uint8_t>("settings");
    if (!saved) return fail(saved.error());
    const std::string theirs(saved->begin(), saved->end());
    const std::string mine = settings();
    const auto seed_of = [](const std::string& text) { return text.substr(0, text.find(',')); };
    if (options_.resume ? seed_of(theirs) == seed_of(mine) : theirs == mine) return {};
    return fail(Errc::invalid_argument,
                "the checkpoints in " + options_.checkpoint_dir + " are of another job (" + theirs + "; this one has " +
                    mine + "): give it a folder of its own",
                "dtr_train");
  }

  Result<void> resume() {
    if (!checkpoints_) return fail(Errc::invalid_argument, "--resume needs --checkpoint-dir", "dtr_train");
    const auto loaded = checkpoints_->load_latest(kStart);
    if (!loaded) {
      if (loaded.error().code != Errc::not_found && loaded.error().code != Errc::corrupt) return fail(loaded.error());
      if (!options_.resume) return {};
      say("no checkpoint to resume from (" + loaded.error().message + "); starting at step 0");
      return {};
    }
    if (auto same = check_same_job(*loaded); !same || !options_.resume) return same;
    for (const std::string& reason : loaded->skipped()) say("passed over: " + reason);
    const auto parameters = loaded->get<float>("parameters");
    const auto velocity = loaded->get<float>("momentum");
    const auto step = loaded->get<std::uint64_t>("step");
    const auto cursor = loaded->get<std::uint8_t>("cursor");
    for (const Error* error : {parameters ? nullptr : &parameters.error(), velocity ? nullptr : &velocity.error(),
                               step ? nullptr : &step.error(), cursor ? nullptr : &cursor.error()}) {
      if (error != nullptr) return fail(*error);
    }
    if (parameters->size() != parameters_.size() || velocity->size() != velocity_.size() || step->size() != 1) {
      return fail(Errc::invalid_argument, "the checkpoint is of another network", "resume");
    }
    auto where = EpochCursor::parse({reinterpret_cast<const char*>(cursor->data()), cursor->size()});
    if (!where) return fail(std::move(where.error()));
    parameters_ = *parameters;
    velocity_ = *velocity;
    step_ = step->front();
    cursor_ = *where;
    say("resumed at step " + std::to_string(step_) + ", " + where->to_string());
    if (options_.max_steps > 0 && step_ > options_.max_steps) {
      say("that is beyond --max-steps " + std::to_string(options_.max_steps) +
          ": nothing to train, the results are those of step " + std::to_string(step_));
    } else if (limit_reached() || where->epoch >= options_.epochs) {
      say("the training had come to its end: nothing to train");
    }
    return {};
  }

  [[nodiscard]] bool limit_reached() const { return options_.max_steps > 0 && step_ >= options_.max_steps; }

  Result<void> loop(StepSums& exchange) {
    std::optional<BatchLoader> loader;
    for (std::uint64_t epoch = cursor_ ? cursor_->epoch : 0; epoch < options_.epochs; ++epoch) {
      auto plan = cursor_ ? registry_.plan(kDataset, workers_->rank(), *cursor_)
                          : registry_.plan(kDataset, workers_->rank(), epoch);
      if (!plan) return fail(std::move(plan.error()));
      cursor_.reset();
      if (!loader) {
        LoaderOptions how = LoaderOptions::from(rt_.config());
        how.batch = options_.batch;
        how.depth = 4;
        loader.emplace(readers_, *plan, how);
      } else if (auto begun = loader->begin(*plan); !begun) {
        return begun;
      }
      while (!limit_reached()) {
        auto batch = next_batch(*loader);
        if (!batch) return fail(std::move(batch.error()));
        if (batch->rows == 0) break;
        if (auto stepped = take_step(exchange, *loader, *batch, epoch); !stepped) return stepped;
        if (!summary_.finished) return {};
      }
      if (limit_reached()) break;
    }
    return {};
  }

  Result<SampleBatch> next_batch(BatchLoader& loader) {
    const Timed timed(summary_.data_seconds);
    return loader.next(rt_.operation_timeout());
  }

  Result<void> take_step(StepSums& exchange, const BatchLoader& loader, const SampleBatch& batch, std::uint64_t epoch) {
    Model::Outcome outcome;
    {
      const Timed timed(summary_.compute_seconds);
      outcome =
          model_.gradient(parameters_, batch.field<std::uint8_t>(0), batch.field<std::uint8_t>(1), exchange.gradient());
    }
    {
      const Timed timed(summary_.push_pull_seconds);
      if (auto done = exchange.run(outcome.loss, rt_.stop_requested()); !done) return done;
    }
    {
      const Timed timed(summary_.compute_seconds);
      const auto everybodys = static_cast<float>(batch.rows * static_cast<std::size_t>(workers_->size()));
      const double left = 1.0 - static_cast<double>(step_) / static_cast<double>(total_steps_);
      descend(parameters_, velocity_, exchange.summed(), 1.0F / everybodys,
              static_cast<float>(options_.rate * std::max(left, 0.0)), kMomentum);
    }
    ++step_;
    const std::uint64_t images = batch.rows * static_cast<std::uint64_t>(workers_->size());
    samples_ += images;
    report(epoch, exchange.loss() / static_cast<float>(images));
    summary_.finished = !exchange.somebody_stops();
    if (checkpoints_ && (checkpoints_->due(step_) || !summary_.finished)) return save(loader);
    return {};
  }

  Result<void> save(const BatchLoader& loader) {
    if (auto earlier = finish_save(); !earlier) return earlier;
    const std::string cursor = loader.cursor().to_string();
    const std::vector<std::uint64_t> step{step_};
    const std::vector<std::uint8_t> where(cursor.begin(), cursor.end());
    const std::string job = settings();
    const std::vector<std::uint8_t> words(job.begin(), job.end());
    auto ticket = checkpoints_->save_async(
        step_,
        {TensorView::of("parameters", parameters_).same_on_all_ranks(),
         TensorView::of("momentum", velocity_).same_on_all_ranks(), TensorView::of("step", step).same_on_all_ranks(),
         TensorView::of("cursor", where).same_on_all_ranks(), TensorView::of("settings", words).same_on_all_ranks()});
    if (!ticket) return fail(std::move(ticket.error()));
    ticket_ = *ticket;
    return {};
  }

  Result<void> finish_save() {
    if (!ticket_) return {};
    auto saved = ticket_->wait(rt_.operation_timeout());
    ticket_.reset();
    // A resumed run may come to a step that was saved before the crash but not chosen by all: that is fine.
    if (!saved && saved.error().code == Errc::already_exists) return {};
    return saved;
  }

  Result<Summary> conclude() {
    const std::uint64_t digest = XXH3_64bits(parameters_.data(), parameters_.size() * sizeof(float));
    char text[17];
    std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(digest));
    summary_.parameter_digest = text;
    std::set<std::string> paths;
    for (int server = 0; server < rt_.servers(); ++server) {
      const int rank = rt_.server_rank(server);
      if (rank != rt_.rank()) paths.insert(rt_.fabric().path(static_cast<fabric::PeerId>(rank)).transport);
    }
    std::string mine = summary_.parameter_digest;
    for (const std::string& path : paths) mine += "," + path;
    const auto all =
        workers_->allgather("conclude", std::as_bytes(std::span(mine.data(), mine.size())), rt_.operation_timeout());
    if (!all) return fail(all.error());
    for (std::size_t w = 0; w < all->size(); ++w) {
      const std::string theirs(reinterpret_cast<const char*>((*all)[w].data()), (*all)[w].size());
      if (theirs.compare(0, 16, summary_.parameter_digest) != 0) {
        return fail(Errc::corrupt, "its parameters differ: " + theirs.substr(0, 16) + ", here " + mine.substr(0, 16),
                    "dtr_train", static_cast<int>(w));
      }
      for (std::size_t at = 16; at < theirs.size();) {
        const std::size_t end = std::min(theirs.find(',', at + 1), theirs.size());
        paths.insert(theirs.substr(at + 1, end - at - 1));
        at = end;
      }
    }
    for (const std::string& path : paths) summary_.transport += (summary_.transport.empty() ? "" : ",") + path;
    if (workers_->rank() == 0) return test();
    return summary_;
  }

  Result<Summary> test() {
    const auto files = open_mnist(options_.data, MnistPart::test);
    if (!files) return fail(files.error());
    const std::uint64_t count = files->images->samples();
    std::vector<std::uint8_t> images(count * files->images->sample_bytes());
    std::vector<std::uint8_t> labels(count);
    for (auto read : {files->images->read(0, count, std::as_writable_bytes(std::span(images))),
                      files->labels->read(0, count, std::as_writable_bytes(std::span(labels)))}) {
      if (!read) return fail(std::move(read.error()));
    }
    const auto outcome = model_.evaluate(parameters_, images, labels);
    summary_.test_accuracy = static_cast<double>(outcome.correct) / static_cast<double>(count);
    return summary_;
  }

  void say(const std::string& text) const {
    if (workers_->rank() != 0) return;
    std::printf("%s\n", text.c_str());
    std::fflush(stdout);
  }

  void report(std::uint64_t epoch, float loss) {
    if (workers_->rank() != 0) return;
    const std::int64_t now = monotonic_ns();
    if (last_report_ == 0) last_report_ = now;
    if (now - last_report_ < 1'000'000'000 && step_ != total_steps_ && !limit_reached()) return;
    const double seconds = std::max(1e-9, static_cast<double>(now - last_report_) * 1e-9);
    std::printf(
        "epoch %llu  step %5llu/%llu  loss %.4f  %7.0f samples/s  push_pull %.1f s  data %.1f s  compute %.1f s\n",
        static_cast<unsigned long long>(epoch), static_cast<unsigned long long>(step_),
        static_cast<unsigned long long>(total_steps_), static_cast<double>(loss),
        static_cast<double>(samples_ - reported_samples_) / seconds, summary_.push_pull_seconds, summary_.data_seconds,
        summary_.compute_seconds);
    std::fflush(stdout);
    last_report_ = now;
    reported_samples_ = samples_;
  }

  Runtime& rt_;
  const Options& options_;
  const MakeExchange& make_exchange_;
  ModelShape shape_{};
  std::unique_ptr<Group> workers_;
  DatasetRegistry registry_;
  std::vector<ReaderPtr> readers_;
  std::vector<float> parameters_;
  std::vector<float> velocity_;
  Model model_;
  std::optional<CheckpointManager> checkpoints_;
  std::optional<Ticket> ticket_;
  std::optional<EpochCursor> cursor_;
  std::uint64_t total_steps_ = 0;
  std::uint64_t step_ = 0;
  std::uint64_t samples_ = 0;
  std::uint64_t reported_samples_ = 0;
  std::int64_t last_report_ = 0;
  Summary summary_;
};

}  // namespace

std::unique_ptr<GradientExchange> exchange_by_push_pull(Runtime& rt, std::size_t floats) {
  return std::make_unique<PushPullExchange>(rt, floats);
}

Result<Summary> train(Runtime& rt, const Options& options, const MakeExchange& make_exchange) {
  try {
    return Training(rt, options, make_exchange).run();
  } catch (const Exception& e) {
    return fail(e.error());
  }
}

}  // namespace dtr::train
