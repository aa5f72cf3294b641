#include "dtr/runtime/runtime.hpp"

#include <algorithm>
#include <cstdio>
#include <thread>

#include <sodium.h>

#include "dtr/base/bytes.hpp"
#include "dtr/base/file.hpp"
#include "dtr/base/log.hpp"
#include "dtr/bootstrap/launcher.hpp"
#include "dtr/fabric/refusals.hpp"
#include "dtr/fabric/transports.hpp"
#include "dtr/runtime/detail/control.hpp"
#include "dtr/runtime/detail/introduction.hpp"
#include "dtr/runtime/detail/pool.hpp"
#include "dtr/runtime/detail/waiting.hpp"

namespace dtr::inline v0 {

namespace {

using std::chrono::duration_cast;
using std::chrono::milliseconds;

std::string roles_text(int servers, bool colocated) {
  return colocated ? "colocated" : std::to_string(servers) + " servers";
}

Result<void> check_roles(const RuntimeOptions& options, int size) {
  if (options.servers < 0) return fail(Errc::invalid_argument, "a negative number of servers", "init");
  if (options.colocated && options.servers > 0) {
    return fail(Errc::invalid_argument, "servers are all ranks when colocated; leave .servers at 0", "init");
  }
  if (options.servers >= size) {
    return fail(Errc::invalid_argument,
                std::to_string(options.servers) + " servers among " + std::to_string(size) +
                    " ranks leave no worker; start at least " + std::to_string(options.servers + 1),
                "init");
  }
  return {};
}

fabric::ProgressOptions progress_options(const Config& config) {
  fabric::ProgressOptions options;
  options.thread = config.text("progress.mode") == "thread";
  options.cpus = value_or_throw(parse_cpu_list(config.text("progress.affinity")));
  return options;
}

}  // namespace

/// Everything that can fail, done before the object exists.
struct Runtime::Prepared {
  Config config;
  std::unique_ptr<Bootstrap> world;
  std::unique_ptr<Bootstrap> role_group;
  std::unique_ptr<fabric::Fabric> fabric;
  ControlOptions control;
  HostPlace place;
  int servers = 0;
  bool colocated = false;
};

Result<void> Runtime::prepare_alone(const RuntimeOptions& options, Prepared& made) {
  auto config = Config::load(options.config);
  if (!config) return dtr::fail(std::move(config.error()));
  made.config = std::move(*config);
  auto logged = configure_log({.level = value_or_throw(parse_log_level(made.config.text("log.level"))),
                               .file = made.config.text("log.file"),
                               .rank = made.world->rank()});
  if (!logged) return logged;
  if (sodium_init() < 0) return dtr::fail(Errc::unsupported, "no source of random numbers", "init");
  const int size = made.world->size();
  if (auto good = check_roles(options, size); !good) return good;
  made.servers = options.servers;
  made.colocated = options.colocated;

  fabric::FabricOptions fabric_options;
  fabric_options.identity = {.self = static_cast<std::uint32_t>(made.world->rank()),
                             .world = static_cast<std::uint32_t>(size),
                             .host_id = host_id(made.config.text("host.id")),
                             .token = {}};
  fabric_options.allow = made.config.list("transport.allow");
  fabric_options.connect_timeout = duration_cast<milliseconds>(made.config.duration("timeout.connect_ms"));
  fabric_options.eager_bytes = static_cast<std::size_t>(made.config.integer("fabric.eager_bytes"));
  fabric_options.hold_bytes = static_cast<std::size_t>(made.config.integer("fabric.hold_bytes"));
  fabric_options.progress = progress_options(made.config);
  fabric_options.transports = options.transports.empty() ? fabric::default_transports(made.config) : options.transports;
  auto fabric = fabric::Fabric::create(std::move(fabric_options));
  if (!fabric) return dtr::fail(std::move(fabric.error()));
  made.fabric = std::move(*fabric);
  return {};
}

Result<Runtime::Prepared> Runtime::prepare(RuntimeOptions options) {
  Prepared made;
  made.world = std::move(options.bootstrap);
  if (made.world == nullptr) {
    auto world = world_bootstrap();
    if (!world) return dtr::fail(std::move(world.error()));
    made.world = std::move(*world);
  }
  const int rank = made.world->rank();
  const int size = made.world->size();
  const auto alone = prepare_alone(options, made);

  // Who cannot take part says so, instead of letting the others wait for it.
  Introduction mine;
  if (alone) {
    mine.host = made.fabric->identity().host_id;
    randombytes_buf(mine.token.data(), mine.token.size());
    mine.address = made.fabric->address();
    mine.cpus = allowed_cpus();
    mine.servers = options.servers;
    mine.colocated = options.colocated ? 1 : 0;
    mine.speaks = made.config.text("progress.mode") == "thread" ? 1 : 0;
    mine.watch_width = static_cast<std::uint32_t>(made.config.integer("runtime.watch_width"));
    mine.heartbeat_interval_ms = made.config.integer("runtime.heartbeat_interval_ms");
    mine.heartbeat_timeout_ms = made.config.integer("runtime.heartbeat_timeout_ms");
  } else {
    mine.failure = alone.error().to_string();
  }
  auto all = made.world->exchange(mine.pack());
  if (!alone) return dtr::fail(alone.error());
  if (!all) return dtr::fail(std::move(all.error()));

  std::vector<std::string> hosts;
  std::vector<CpuSet> cpus;  // of the ranks of this host
  std::vector<Bytes> addresses;
  fabric::JobToken token{};
  for (int r = 0; r < size; ++r) {
    auto& record = (*all)[static_cast<std::size_t>(r)];
    auto intro = Introduction::unpack(record, r);
    record = Bytes();  // thousands of them: not kept until the end
    if (!intro) return dtr::fail(std::move(intro.error()));
    if (!intro->failure.empty()) return dtr::fail(Errc::invalid_argument, intro->failure, "init", r);
    if (intro->servers != mine.servers || intro->colocated != mine.colocated) {
      return dtr::fail(Errc::invalid_argument,
                       "the roles differ: " + roles_text(mine.servers, mine.colocated != 0) + " here, " +
                           roles_text(intro->servers, intro->colocated != 0) + " there",
                       "init", r);
    }
    if (r == 0) {
      token = intro->token;
      made.control.watch = {.width = std::max<std::uint32_t>(intro->watch_width, 1),
                            .interval = milliseconds(intro->heartbeat_interval_ms),
                            .timeout = milliseconds(intro->heartbeat_timeout_ms)};
    }
    made.control.speaks.push_back(intro->speaks != 0);
    if (intro->host == mine.host) cpus.push_back(std::move(intro->cpus));
    hosts.push_back(std::move(intro->host));
    addresses.push_back(std::move(intro->address));
  }
  made.place = place_on_host(hosts, rank);
  const auto place = static_cast<std::size_t>(made.place.local_rank);
  made.fabric->progress().set_waiting(waiting_for(ranks_per_cpu(cpus, place), made.config.integer("progress.spin_us")));
  if (auto started = made.fabric->start(addresses, token); !started) return dtr::fail(std::move(started.error()));

  if (!options.colocated && options.servers > 0) {
    auto group = made.world->split(rank < size - options.servers ? 0 : 1);
    if (!group) return dtr::fail(std::move(group.error()));
    made.role_group = std::move(*group);
  }
  made.control.message_timeout = duration_cast<milliseconds>(made.config.duration("timeout.operation_ms"));
  return made;
}

Result<std::unique_ptr<Runtime>> Runtime::init(RuntimeOptions options) {
  try {
    return std::make_unique<Runtime>(std::move(options));
  } catch (const Exception& e) {
    return dtr::fail(e.error());
  }
}

Runtime::Runtime(RuntimeOptions options) : Runtime(value_or_throw(prepare(std::move(options)))) {}

Runtime::Runtime(Prepared prepared)
    : config_(std::move(prepared.config)),
      metrics_({.labels = {{"rank", std::to_string(prepared.world->rank())}}}),
      barrier_ns_(metrics_.histogram("dtr_barrier_seconds", "Time in barriers that were met", {}, 1e-9)),
      world_(std::move(prepared.world)),
      role_group_(std::move(prepared.role_group)),
      fabric_(std::move(prepared.fabric)),
      control_(std::make_unique<Control>(*fabric_, metrics_, std::move(prepared.control))),
      place_(prepared.place),
      rank_(world_->rank()),
      size_(world_->size()),
      workers_(size_ - prepared.servers),
      servers_(prepared.colocated ? size_ : prepared.servers),
      colocated_(prepared.colocated),
      operation_timeout_(duration_cast<milliseconds>(config_.duration("timeout.operation_ms"))),
      transfer_timeout_(config_.duration("transfer.timeout_s")),
      transfer_timeout_grows_(!config_.is_set("transfer.timeout_s")) {
  value_or_throw(control_->start());
  pool_ = std::make_shared<Pool>(*fabric_, static_cast<std::size_t>(config_.integer("memory.pool_bytes")),
                                 static_cast<std::size_t>(config_.integer("memory.pool_max_bytes")));
  metrics_.before_text([this] { refresh_metrics(); });
  if (const std::string& path = config_.text("metrics.file"); !path.empty()) {
    metrics_writer_ =
        std::make_unique<MetricsWriter>(metrics_, rank_path(path, rank_), config_.duration("metrics.interval_s"));
  }
  if (const std::string& path = config_.text("trace.file"); !path.empty()) {
    tracer_ = std::make_unique<Tracer>(TraceOptions{.path = path, .rank = rank_});
  }
  world_->on_mpi_finalize([this] { static_cast<void>(finalize()); });
}

Runtime::~Runtime() {
  if (auto ended = finalize(); !ended && ended.error().code != Errc::forked) {
    DTR_LOG_WARN("the end of the Runtime: ", ended.error().to_string());
  }
  metrics_.before_text({});  // the writer writes once more
  refresh_metrics();
  pool_->detach();
  control_.reset();
  fabric_.reset();
}

/// What the fabric counts in places of its threads. Names that stay at 0 are not there.
void Runtime::refresh_metrics() {
  constexpr const char* kOperations = "Operations that this process began";
  constexpr const char* kBytes = "Bytes that operations of this process were to move";
  constexpr const char* kFailures = "Operations of this process that did not end well";
  for (const auto& [transport, totals] : fabric_->traffic()) {
    for (std::size_t i = 0; i < fabric::kOpcodes; ++i) {
      if (totals.operations[i] == 0) continue;
      const MetricLabels labels{{"transport", transport},
                                {"operation", fabric::to_string(static_cast<fabric::Opcode>(i))}};
      metrics_.counter("dtr_fabric_operations_total", kOperations, labels).follow(totals.operations[i]);
      if (totals.bytes[i] == 0) continue;
      metrics_.counter("dtr_fabric_bytes_total", kBytes, labels).follow(totals.bytes[i]);
    }
    for (std::size_t i = 0; i < fabric::kCodes; ++i) {
      if (totals.failures[i] == 0) continue;
      const auto code = static_cast<Errc>(-static_cast<int>(i));
      const MetricLabels labels{{"transport", transport}, {"code", std::string(dtr::to_string(code))}};
      metrics_.counter("dtr_fabric_failures_total", kFailures, labels).follow(totals.failures[i]);
    }
  }
}

int Runtime::worker_index() const noexcept { return rank_ < workers_ ? rank_ : -1; }

int Runtime::server_index() const noexcept {
  if (colocated_) return rank_;
  return rank_ >= workers_ ? rank_ - workers_ : -1;
}

Result<void> Runtime::check_peers() const {
  if (const auto failure = control_->first_failure()) return dtr::fail(*failure);
  return {};
}

Deadline Runtime::transfer_deadline(std::uint64_t bytes) const {
  if (!transfer_timeout_grows_) return transfer_timeout_;
  return transfer_timeout_ + std::chrono::duration<double>(static_cast<double>(bytes) * 1e-9);
}

Result<void> Runtime::heartbeat() {
  if (finalized_.load()) return dtr::fail(Errc::closed, "the Runtime has ended", "heartbeat");
  auto alive = control_->heartbeat();
  if (alive && config_.text("progress.mode") == "inline") fabric_->progress().poll();  // so that it gets on its way
  return alive;
}

Result<void> Runtime::barrier(BarrierOptions roles) {
  return barrier(roles, duration_cast<milliseconds>(config_.duration("timeout.barrier_ms")));
}

Result<void> Runtime::barrier(BarrierOptions roles, Deadline deadline) {
  const std::string operation = roles.servers && roles.workers ? "barrier"
                                : roles.servers                ? "barrier of servers"
                                                               : "barrier of workers";
  if (finalized_.load()) return dtr::fail(Errc::closed, "the Runtime has ended", operation);
  const bool everyone = (roles.servers && roles.workers) || role_group_ == nullptr;
  if ((!roles.servers && !roles.workers) || (!everyone && (roles.servers ? !is_server() : !is_worker()))) {
    return dtr::fail(Errc::invalid_argument, "rank " + std::to_string(rank_) + " has none of the roles named",
                     operation);
  }
  if (fabric_->progress().in_progress()) return dtr::fail(Errc::would_deadlock, "called from a callback", operation);
  const Control::Members members{
      .first = static_cast<fabric::PeerId>(everyone || roles.workers ? 0 : workers_),
      .count = static_cast<std::uint32_t>(everyone ? size_ : (roles.workers ? workers_ : servers_))};
  const TraceSpan span(tracer_.get(), "barrier", "runtime");
  const Stopwatch watch;
  auto met = control_->barrier(everyone ? *world_ : *role_group_, members, operation, deadline);
  if (met) barrier_ns_.record(static_cast<std::uint64_t>(watch.elapsed_ns()));
  return met;
}

Result<std::vector<Bytes>> Runtime::allgather(std::string_view topic, std::span<const std::byte> mine,
                                              Deadline deadline) {
  const TraceSpan span(tracer_.get(), "allgather", "runtime");
  return control_->allgather(topic, mine, {.first = 0, .count = static_cast<std::uint32_t>(size_)}, deadline);
}

/// Consecutive ranks of a Runtime.
class Runtime::RoleGroup final : public Group {
 public:
  RoleGroup(Control& control, std::string name, int first, int count, int rank)
      : control_(control), name_(std::move(name)), first_(first), count_(count), rank_(rank) {}
  [[nodiscard]] int rank() const noexcept override { return rank_ - first_; }
  [[nodiscard]] int size() const noexcept override { return count_; }
  [[nodiscard]] Result<std::vector<Bytes>> allgather(std::string_view topic, std::span<const std::byte> mine,
                                                     Deadline deadline) override {
    const Control::Members members{.first = static_cast<fabric::PeerId>(first_),
                                   .count = static_cast<std::uint32_t>(count_)};
    return control_.allgather(name_ + "/" + std::string(topic), mine, members, deadline);
  }

 private:
  Control& control_;
  std::string name_;
  int first_;
  int count_;
  int rank_;
};

Result<std::unique_ptr<Group>> Runtime::worker_group() {
  if (!is_worker()) return dtr::fail(Errc::invalid_argument, "this rank is no worker", "worker group");
  return std::unique_ptr<Group>(new RoleGroup(*control_, "workers", 0, workers_, rank_));
}

Result<std::unique_ptr<Group>> Runtime::server_group() {
  if (!is_server()) return dtr::fail(Errc::invalid_argument, "this rank is no server", "server group");
  return std::unique_ptr<Group>(new RoleGroup(*control_, "servers", colocated_ ? 0 : workers_, servers_, rank_));
}

Result<Buffer> Runtime::allocate(std::size_t bytes) { return pool_->allocate(bytes); }

Result<fabric::Port> Runtime::service_port(std::string_view service, int group) const {
  struct Range {
    std::string_view service;
    int first;
    int count;
  };
  static constexpr Range kRanges[] = {{"control", 0, 1},    {"pushpull worker", 16, 32}, {"pushpull server", 48, 32},
                                      {"transfer", 80, 64}, {"messaging", 144, 64},      {"application", 208, 48}};
  for (const Range& range : kRanges) {
    if (range.service != service) continue;
    if (group < 0 || group >= range.count) {
      return dtr::fail(Errc::out_of_range,
                       std::string(service) + " has groups 0 to " + std::to_string(range.count - 1) + ", not " +
                           std::to_string(group),
                       "service port");
    }
    return static_cast<fabric::Port>(range.first + group);
  }
  return dtr::fail(Errc::not_found, "no service is called " + std::string(service), "service port");
}

Deadline Runtime::end_deadline() const noexcept {
  const std::chrono::nanoseconds whole = config_.duration("timeout.finalize_ms");
  return std::max<std::chrono::nanoseconds>(whole - waited_in_vain(), {});
}

std::chrono::nanoseconds Runtime::waited_in_vain() const noexcept {
  const std::lock_guard lock(vain_mutex_);
  return recent_vain(Deadline::Clock::now());
}

void Runtime::add_vain_wait(std::chrono::nanoseconds waited) noexcept {
  const std::lock_guard lock(vain_mutex_);
  const auto now = Deadline::Clock::now();
  vain_ = recent_vain(now) + waited;
  last_vain_ = now;
}

std::chrono::nanoseconds Runtime::recent_vain(Deadline::Clock::time_point now) const noexcept {
  // What lies back by a whole budget was no part of the end that comes now.
  return now - last_vain_ < config_.duration("timeout.finalize_ms") ? vain_ : std::chrono::nanoseconds{};
}

EndWait::EndWait(Runtime& runtime, std::chrono::nanoseconds most) noexcept
    : runtime_(runtime), started_(Deadline::Clock::now()), deadline_(Deadline(most)) {
  const auto kept = runtime.config().duration("timeout.finalize_ms") / 4;
  const auto left = std::max<std::chrono::nanoseconds>(runtime.end_deadline().left() - kept, {});
  deadline_ = std::min(deadline_, Deadline(left));
}

EndWait::~EndWait() {
  const auto now = Deadline::Clock::now();
  if (now < deadline_.at()) return;
  runtime_.add_vain_wait(now - started_);
}

Result<void> Runtime::finalize() { return finalize(end_deadline()); }

Result<void> Runtime::finalize(Deadline deadline) {
  if (fabric_->progress().in_progress()) return dtr::fail(Errc::would_deadlock, "called from a callback", "finalize");
  if (finalized_.exchange(true)) return {};
  control_->begin_end();
  // Everybody first comes to the end, so that nobody's goodbye meets an open operation. Time is kept for the question
  // who did not come, and for the goodbyes.
  const auto kept = std::min<milliseconds>(duration_cast<milliseconds>(deadline.left()) / 4, std::chrono::seconds(1));
  const Deadline meeting(deadline.left() - kept);
  const Control::Members everyone{.first = 0, .count = static_cast<std::uint32_t>(size_)};
  Result<void> outcome = control_->first_gone(everyone)
                             ? dtr::fail(control_->why_gone(everyone, "finalize", deadline))
                             : control_->barrier(*world_, everyone, "finalize", meeting, kept / 2);
  if (outcome) {
    control_->all_at_end();
    // Who stops answering while somebody's connection to him is still being made leaves that rank waiting for it: all
    // end their own channels first, and meet once more.
    outcome = fabric_->close_channels(deadline);
    if (outcome) {
      outcome = world_->barrier(deadline, [this]() -> Result<void> {
        fabric_->progress().poll();
        return {};
      });
    }
  }
  const bool everyone_alive = outcome.has_value();
  if (auto stopped = fabric_->stop(deadline); !stopped && outcome) outcome = std::move(stopped);
  if (role_group_ != nullptr) {
    if (auto ended = role_group_->finalize(everyone_alive, deadline); !ended && outcome) outcome = std::move(ended);
  }
  if (auto ended = world_->finalize(everyone_alive, deadline); !ended && outcome) outcome = std::move(ended);
  if (!outcome) outcome.error().operation = "finalize";
  return outcome;
}

int Runtime::fail(const Error& error) const {
  std::fprintf(stderr, "rank %d: %s\n", rank_, error.to_string().c_str());
  return 1;
}

}  // namespace dtr::inline v0
