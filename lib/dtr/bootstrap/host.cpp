#include "dtr/bootstrap/host.hpp"

#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <unordered_map>

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

}  // namespace dtr::inline v0
