// Which ranks share a host.
#pragma once

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

}  // namespace dtr::inline v0
