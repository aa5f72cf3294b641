#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "dtr/fabric/verbs/nic.hpp"
#include "dtr/fabric/verbs/nodes.hpp"

namespace dtr::inline v0 {
namespace fabric::verbs {

namespace {

constexpr const char* kOperation = "open verbs";

}  // namespace

Result<std::vector<std::unique_ptr<Nic>>> open_nics(VerbsApi& api, const VerbsOptions& options) {
  int count = 0;
  ibv_device** list = api.get_device_list(&count);
  if (list == nullptr) {
    const int number = errno;
    const char* hint = number == ENOSYS ? " (the kernel has no RDMA support or its modules are not loaded)" : "";
    return fail(Errc::unsupported, "no RDMA devices: " + errno_error(number, "list").message + hint, kOperation);
  }
  struct Wanted {
    ibv_device* device;
    std::uint8_t port;
    std::size_t place;
    int distance;  ///< from the CPUs that this process may use
  };
  std::vector<Wanted> wanted;
  std::string reasons;
  std::vector<std::unique_ptr<Nic>> nics;
  std::vector<std::string> known;
  const int here = options.devices.empty() ? node_of_process() : -1;
  for (int i = 0; i < count; ++i) {
    const std::string device = api.get_device_name(list[i]);
    known.push_back(device);
    Context context(api, api.open_device(list[i]));
    ibv_device_attr attributes{};
    if (!context || api.query_device(context.get(), &attributes) != 0) {
      reasons += device + " cannot be opened; ";
      continue;
    }
    for (int port = 1; port <= attributes.phys_port_cnt; ++port) {
      std::size_t place = 0;
      if (!options.devices.empty()) {
        const auto entry = std::find_if(options.devices.begin(), options.devices.end(), [&](const std::string& name) {
          return name == device || name == device + ":" + std::to_string(port);
        });
        if (entry == options.devices.end()) continue;
        place = static_cast<std::size_t>(entry - options.devices.begin());
      }
      wanted.push_back(
          {list[i], static_cast<std::uint8_t>(port), place, node_distance(here, node_of_device(list[i]->ibdev_path))});
    }
  }
  std::stable_sort(wanted.begin(), wanted.end(), [&](const Wanted& a, const Wanted& b) {
    if (a.place != b.place) return a.place < b.place;
    if (a.distance != b.distance) return a.distance < b.distance;
    const int names = std::strcmp(api.get_device_name(a.device), api.get_device_name(b.device));
    return names != 0 ? names < 0 : a.port < b.port;
  });
  for (const Wanted& each : wanted) {
    if (nics.size() == RemoteKey::kMaxRails) break;
    auto nic = Nic::open(api, each.device, each.port, options);
    if (nic) {
      nics.push_back(std::move(*nic));
    } else {
      reasons += nic.error().message + "; ";
    }
  }
  api.free_device_list(list);
  if (!nics.empty()) return nics;
  std::string names;
  for (const std::string& name : known) names += (names.empty() ? "" : ", ") + name;
  if (known.empty()) return fail(Errc::unsupported, "no RDMA device in this host", kOperation);
  return fail(Errc::unsupported,
              "no usable RDMA port; devices: " + names + "; " +
                  (reasons.empty() ? "none is in verbs.devices" : reasons.substr(0, reasons.size() - 2)),
              kOperation);
}

}  // namespace fabric::verbs
}  // namespace dtr::inline v0
