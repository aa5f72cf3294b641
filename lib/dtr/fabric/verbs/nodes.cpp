#include "dtr/fabric/verbs/nodes.hpp"

#include <fstream>

#include <linux/mempolicy.h>
#include <sched.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace dtr::inline v0 {
namespace fabric::verbs {

namespace {

constexpr int kSameNode = 10;
constexpr int kOtherNode = 20;
constexpr int kMostNodes = 64;

}  // namespace

int node_of_device(const char* sysfs_path) {
  std::ifstream file(std::string(sysfs_path) + "/device/numa_node");
  int node = -1;
  return file >> node ? node : -1;
}

int node_of_process() {
  cpu_set_t cpus;
  if (::sched_getaffinity(0, sizeof cpus, &cpus) != 0) return -1;
  int found = -1;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &cpus)) continue;
    const std::string folder = "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/node";
    int node = 0;
    struct stat info {};
    while (node < kMostNodes && ::stat((folder + std::to_string(node)).c_str(), &info) != 0) ++node;
    if (node == kMostNodes || (found >= 0 && found != node)) return -1;
    found = node;
  }
  return found;
}

int node_of_memory(const std::byte* address) noexcept {
  int node = -1;
  const long failed = ::syscall(SYS_get_mempolicy, &node, nullptr, 0, address, MPOL_F_NODE | MPOL_F_ADDR);
  return failed == 0 ? node : -1;
}

int node_distance(int from, int to) {
  if (from < 0 || to < 0 || from == to) return kSameNode;
  std::ifstream file("/sys/devices/system/node/node" + std::to_string(from) + "/distance");
  int distance = kOtherNode;
  for (int node = 0; node <= to; ++node) {
    if (!(file >> distance)) return kOtherNode;
  }
  return distance;
}

}  // namespace fabric::verbs
}  // namespace dtr::inline v0
