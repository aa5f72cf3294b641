// Where devices, memory and processes are in this host: NUMA nodes, as sysfs has them.
#pragma once

#include <cstddef>
#include <string>

namespace dtr::inline v0 {
namespace fabric::verbs {

/// Of a device's folder in sysfs (ibv_device::ibdev_path). -1 = unknown.
[[nodiscard]] int node_of_device(const char* sysfs_path);

/// The node that has all CPUs that the calling thread may run on. -1 = unknown, or there are several.
[[nodiscard]] int node_of_process();

/// Of the page at this address, which has to be there. -1 = unknown, or the kernel will not say.
[[nodiscard]] int node_of_memory(const std::byte* address) noexcept;

/// As the firmware tells it: 10 = the same node, larger is farther. Unknown counts as the same.
[[nodiscard]] int node_distance(int from, int to);

}  // namespace fabric::verbs
}  // namespace dtr::inline v0
