#include "pushpull/job.hpp"

#include <bit>
#include <thread>

#include "dtr/bootstrap/local.hpp"
#include "dtr/fabric/tcp/tcp.hpp"
#include "dtr/fabric/verbs/verbs.hpp"
#include "support/software_nic/software_nic.hpp"

namespace dtr::testing {

namespace {

/// verbs over a software NIC: there may be no device in this machine.
fabric::TransportFactory over_software_nic(std::shared_ptr<software_nic::Network> network, std::size_t eager_bytes) {
  return {.name = "verbs",
          .make = [network = std::move(network),
                   eager_bytes](const fabric::TransportContext& context) -> Result<std::unique_ptr<fabric::Transport>> {
            const fabric::TransportFactory control{
                .name = "tcp", .make = [](const fabric::TransportContext& inner) {
                  return fabric::tcp::make_tcp(
                      inner, {.bind_address = "127.0.0.1", .eager_bytes = 256 << 10, .send_buffer_bytes = 4 << 20});
                }};
            return fabric::verbs::make_verbs(
                context, {.eager_bytes = eager_bytes, .failure_detect = scaled(20s)},
                std::make_shared<software_nic::SoftwareNic>(
                    network,
                    software_nic::NicOptions{
                        .name = "rank" + std::to_string(context.identity.self), .host = "host", .devices = {}}),
                control);
          }};
}

}  // namespace

std::ostream& operator<<(std::ostream& out, const Job& job) {
  return out << job.transport << ", " << job.workers << (job.colocated ? " colocated ranks" : " workers, ")
             << (job.colocated ? "" : std::to_string(job.servers) + " servers");
}

void run(const Job& job, const std::function<void(Runtime&)>& rank) {
  auto bootstraps = local_bootstraps(job.ranks());
  std::vector<std::thread> threads;
  const auto network = std::make_shared<software_nic::Network>();
  for (auto& bootstrap : bootstraps) {
    threads.emplace_back([&job, &rank, &bootstrap, &network] {
      try {
        RuntimeOptions options;
        options.servers = job.colocated ? 0 : job.servers;
        options.colocated = job.colocated;
        options.bootstrap = std::move(bootstrap);
        options.config.environment = ConfigPairs{};
        options.config.overrides = job.config;
        options.config.overrides.emplace_back("transport.allow", job.transport);
        options.config.overrides.emplace_back("timeout.operation_ms", std::to_string(scaled(60s).count()));
        options.config.overrides.emplace_back("timeout.finalize_ms", std::to_string(scaled(20s).count()));
        if (job.transport == "verbs") {
          const auto eager_bytes = value_or_throw(Config::load(options.config)).integer("fabric.eager_bytes");
          options.transports.push_back(over_software_nic(network, static_cast<std::size_t>(eager_bytes)));
        }
        Runtime rt(std::move(options));
        rank(rt);
      } catch (const std::exception& e) {
        ADD_FAILURE() << "a rank ended with " << e.what();
      }
    });
  }
  for (auto& thread : threads) thread.join();
}

void run_reduced(const Job& job, const std::function<void(Runtime&, Worker&)>& worker, WorkerOptions options) {
  run(job, [&](Runtime& rt) {
    std::unique_ptr<Reducer> reducer;
    if (rt.is_server()) reducer = std::make_unique<Reducer>(rt, ReducerOptions{.group = options.group});
    if (!rt.is_worker()) {
      DTR_EXPECT_OK(reducer->serve(scaled(60s)));
      return;
    }
    if (reducer) value_or_throw(reducer->start());
    {
      Worker mine(rt, options);
      worker(rt, mine);
    }
    if (reducer) DTR_EXPECT_OK(reducer->join(scaled(20s)));
  });
}

void meet(Runtime& rt, const char* where) {
  const auto group = value_or_throw(rt.worker_group());
  value_or_throw(group->allgather(where, {}, scaled(60s)));
}

std::vector<Job> all_ways() {
  return {{.transport = "shm", .workers = 1, .servers = 1},
          {.transport = "shm", .workers = 3, .servers = 2},
          {.transport = "tcp", .workers = 1, .servers = 1},
          {.transport = "tcp", .workers = 3, .servers = 2},
          {.transport = "verbs", .workers = 1, .servers = 1},
          {.transport = "verbs", .workers = 3, .servers = 2},
          {.transport = "verbs", .workers = 2, .colocated = true},
          {.transport = "shm", .workers = 1, .colocated = true},
          {.transport = "shm", .workers = 3, .colocated = true},
          {.transport = "tcp", .workers = 3, .colocated = true},
          // Nothing by the kernel's copy: all other memory goes through the ring.
          {.transport = "shm", .workers = 2, .servers = 1, .config = {{"shm.cma", "off"}}}};
}

std::string name_of(const ::testing::TestParamInfo<Job>& info) {
  const Job& job = info.param;
  std::string name = job.transport + "_" + std::to_string(job.workers);
  name += job.colocated ? "_colocated" : "_to_" + std::to_string(job.servers);
  for (const auto& [key, value] : job.config) name += "_" + key.substr(key.find('.') + 1) + "_" + value;
  return name;
}

std::vector<float> numbers(std::size_t count, int worker, std::uint64_t seed) {
  std::vector<float> values(count);
  std::uint64_t x =
      (seed + 1) * 0x9E37'79B9'7F4A'7C15ULL + static_cast<std::uint64_t>(worker) * 0xD1B5'4A32'D192'ED03ULL;
  for (float& value : values) {
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    // Magnitudes far apart: rounding shows the order of the terms.
    value = static_cast<float>(static_cast<std::int64_t>(x) >> 40) * static_cast<float>(1U << (x & 15));
  }
  return values;
}

std::vector<float> sum_of_numbers(std::size_t count, int workers, std::uint64_t seed) {
  std::vector<float> sum = numbers(count, 0, seed);
  for (int worker = 1; worker < workers; ++worker) {
    const std::vector<float> next = numbers(count, worker, seed);
    for (std::size_t i = 0; i < count; ++i) sum[i] += next[i];
  }
  return sum;
}

::testing::AssertionResult same_bits(const std::vector<float>& got, const std::vector<float>& wanted) {
  if (got.size() != wanted.size())
    return ::testing::AssertionFailure() << got.size() << " values, not " << wanted.size();
  for (std::size_t i = 0; i < got.size(); ++i) {
    if (std::bit_cast<std::uint32_t>(got[i]) == std::bit_cast<std::uint32_t>(wanted[i])) continue;
    return ::testing::AssertionFailure() << "element " << i << " of " << got.size() << " is " << got[i] << ", not "
                                         << wanted[i];
  }
  return ::testing::AssertionSuccess();
}

}  // namespace dtr::testing
