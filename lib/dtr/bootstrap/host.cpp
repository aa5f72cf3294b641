#include "dtr/bootstrap/host.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <filesystem>
#include <fstream>
#include <thread>
#include <unordered_map>

#include <sched.h>
#include <unistd.h>

namespace dtr::inline v0 {

std::string host_name() {
  std::array<char, 256> name{};
  return ::gethostname(name.data(), name.size() - 1) == 0 ? name.data() : "localhost";
}

std::string host_id(std::string_view override) {
  if (!override.empty()) return std::string(override);
  std::string id;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> id;
  // Containers and cluster nodes made of namespaces share a kernel but are separate hosts for their users.
  std::error_code without_proc;
  const auto network = std::filesystem::read_symlink("/proc/self/ns/net", without_proc);
  return id + "/" + host_name() + "/" + network.string();
}

HostPlace place_on_host(std::span<const std::string> ids, int rank) {
  const std::string& mine = ids[static_cast<std::size_t>(rank)];
  const auto up_to_me = ids.first(static_cast<std::size_t>(rank));
  std::unordered_map<std::string_view, int> hosts;
  for (const std::string& id : ids) hosts.try_emplace(id, static_cast<int>(hosts.size()));
  return {.local_rank = static_cast<int>(std::count(up_to_me.begin(), up_to_me.end(), mine)),
          .local_size = static_cast<int>(std::count(ids.begin(), ids.end(), mine)),
          .host = hosts.at(mine),
          .hosts = static_cast<int>(hosts.size())};
}

CpuSet allowed_cpus() {
  for (std::size_t words = 16; words <= 1024; words *= 2) {  // the kernel wants room for all CPUs that it may have
    CpuSet set(words);
    static_assert(sizeof(unsigned long) == sizeof(std::uint64_t), "the kernel's words are these");
    if (::sched_getaffinity(0, words * sizeof(std::uint64_t), reinterpret_cast<cpu_set_t*>(set.data())) != 0) continue;
    while (!set.empty() && set.back() == 0) set.pop_back();
    return set;
  }
  return {};
}

double ranks_per_cpu(std::span<const CpuSet> sets, std::size_t mine) {
  const CpuSet& own = sets[mine];
  int cpus = 0;
  for (const std::uint64_t word : own) cpus += std::popcount(word);
  if (cpus == 0) return static_cast<double>(sets.size()) / std::max(1U, std::thread::hardware_concurrency());
  double wanted = 0;
  for (const CpuSet& each : sets) {
    int all = 0;
    int shared = 0;
    for (std::size_t i = 0; i < each.size(); ++i) {
      all += std::popcount(each[i]);
      if (i < own.size()) shared += std::popcount(each[i] & own[i]);
    }
    wanted += all == 0 ? 1 : static_cast<double>(shared) / all;
  }
  return wanted / cpus;
}

}  // namespace dtr::inline v0
