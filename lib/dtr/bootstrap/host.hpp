// Which ranks share a host.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace dtr::inline v0 {

/// A text that is equal for two processes exactly if they share a running kernel, a host name and a network namespace:
/// what shared memory and its unix socket need. A non-empty `override` is the text itself, so that tests can make
/// several "hosts" on one machine.
[[nodiscard]] std::string host_id(std::string_view override = {});

/// This machine's name as the kernel has it.
[[nodiscard]] std::string host_name();

/// A rank's place among the ranks of its host, and its host's among all hosts (in order of their lowest rank).
struct HostPlace {
  int local_rank = 0;
  int local_size = 1;
  int host = 0;
  int hosts = 1;
};

/// `ids`: everybody's host_id, by rank.
[[nodiscard]] HostPlace place_on_host(std::span<const std::string> ids, int rank);

/// CPUs as bits; the first word has CPUs 0 to 63.
using CpuSet = std::vector<std::uint64_t>;

/// Those that this thread may run on; none if the kernel does not say.
[[nodiscard]] CpuSet allowed_cpus();

/// How many ranks want each of the CPUs that rank `mine` may use, on average: 1 where each rank has a CPU of its own.
/// `sets`: of the ranks of one host, each of which spreads over its set; who has none is counted as
/// one for these CPUs.
[[nodiscard]] double ranks_per_cpu(std::span<const CpuSet> sets, std::size_t mine);

}  // namespace dtr::inline v0
