// Which NIC moves which memory, and what is registered.
#include <filesystem>
#include <fstream>

#include <unistd.h>

#include "dtr/fabric/verbs/nodes.hpp"
#include "fabric_verbs/nics.hpp"
#include "fabric_verbs/traffic.hpp"

namespace dtr::testing {
namespace {

/// A folder that says of a device what sysfs does.
class FakeSysfs {
 public:
  explicit FakeSysfs(int node) {
    static std::atomic<int> count{0};
    path_ = std::filesystem::temp_directory_path() /
            ("dtr-sysfs-" + std::to_string(::getpid()) + "-" + std::to_string(count++));
    std::filesystem::create_directories(path_ / "device");
    std::ofstream(path_ / "device" / "numa_node") << node << '\n';
  }
  ~FakeSysfs() { std::filesystem::remove_all(path_); }
  FakeSysfs(const FakeSysfs&) = delete;
  FakeSysfs& operator=(const FakeSysfs&) = delete;
  [[nodiscard]] std::string path() const { return path_.string(); }

 private:
  std::filesystem::path path_;
};

TEST(VerbsMemoryTest, TransfersTakeTheRailsThatAreNearTheMemory) {
  const FakeSysfs node7(7);
  const FakeSysfs node8(8);
  NicsOptions options{.verbs = {.slice_bytes = 16 << 10, .failure_detect = scaled(20s)}};
  options.devices = {{.sysfs = node7.path()}, {.sysfs = node8.path()}};
  Nics nics(options);
  World world(nics.transport_case());
  Memory sink(world.target(), 1 << 20, true);
  const auto* remote = value_or_throw(world.initiator().import(1, sink.region()->key()));
  Memory unknown(world.initiator(), 1 << 20, true);
  Memory on7(world.initiator(), 1 << 20, true, {.numa_node = 7});
  Memory on8(world.initiator(), 1 << 20, true, {.numa_node = 8});
  const Deadline both_open(scaled(20s));
  while (nics.nic(0).posted_requests("soft0") == 0 || nics.nic(0).posted_requests("soft1") == 0) {
    ASSERT_FALSE(both_open.passed());
    ASSERT_TRUE(run(world.initiator(), 1, {WorkRequest::put({unknown.region(), 0}, {remote, 0}, 1 << 20, nullptr)}));
  }
  for (const auto& [memory, near, far] : {std::tuple(&on7, "soft0", "soft1"), std::tuple(&on8, "soft1", "soft0")}) {
    // Without messages: they always take the first rail.
    const auto before_near = nics.nic(0).posted_requests(near);
    const auto before_far = nics.nic(0).posted_requests(far);
    memory->pattern(3);
    ASSERT_TRUE(run(world.initiator(), 1, {WorkRequest::put({memory->region(), 0}, {remote, 0}, 1 << 20, nullptr)}));
    EXPECT_EQ(nics.nic(0).posted_requests(near) - before_near, (1U << 20) / (16U << 10));
    EXPECT_EQ(nics.nic(0).posted_requests(far) - before_far, 0U);
    EXPECT_EQ(sink.mismatches(3, 0, sink.size()), 0U);
  }
}

TEST(VerbsMemoryTest, AFarRailServesWhereNoNearOneDoes) {
  const FakeSysfs node7(7);
  const FakeSysfs node8(8);
  NicsOptions options{.verbs = {.failure_detect = scaled(2s)}};
  options.devices = {{.sysfs = node7.path()}, {.sysfs = node8.path()}};
  Nics nics(options);
  World world(nics.transport_case());
  Memory sink(world.target(), 1 << 16, true);
  const auto* remote = value_or_throw(world.initiator().import(1, sink.region()->key()));
  Memory on8(world.initiator(), 1 << 16, true, {.numa_node = 8});
  on8.pattern(4);
  nics.network().cut("rank0/soft1", "rank1/soft1");
  const auto moved =
      run(world.initiator(), 1, {WorkRequest::put({on8.region(), 0}, {remote, 0}, 1 << 16, nullptr)}, 60s);
  ASSERT_TRUE(moved) << moved.error().to_string();
  EXPECT_EQ(sink.mismatches(4, 0, sink.size()), 0U);
}

TEST(VerbsMemoryTest, NodesAreReadFromSysfsAndUnknownOnesAreNotFar) {
  const FakeSysfs node7(7);
  EXPECT_EQ(fabric::verbs::node_of_device(node7.path().c_str()), 7);
  EXPECT_EQ(fabric::verbs::node_of_device(""), -1);
  EXPECT_EQ(fabric::verbs::node_distance(-1, 7), fabric::verbs::node_distance(7, 7));
  EXPECT_GT(fabric::verbs::node_distance(7, 8), fabric::verbs::node_distance(7, 7));
}

TEST(VerbsMemoryTest, AReportNamesDeviceAddressAndWhy) {
  Nics nics;
  World world(nics.transport_case());
  std::string reason;
  for (const auto& report : world.initiator().transports()) {
    if (report.name == "verbs") reason = report.reason;
  }
  EXPECT_NE(reason.find("soft0:1 RoCE"), std::string::npos) << reason;
  EXPECT_NE(reason.find("RoCE v2 with an IPv4 address"), std::string::npos) << reason;
}

TEST(VerbsMemoryTest, MemoryThatIsTakenBackIsNotKeptRegistered) {
  Nics nics;
  World world(nics.transport_case());
  ASSERT_TRUE(run(world.initiator(), 1, {WorkRequest::notify(Traffic::kPort, 1, nullptr)}));
  const auto& nic = nics.nic(0);
  const auto before = nic.objects();
  std::vector<std::byte> memory(1 << 16);  // its owner may unmap it, and no NIC would know
  for (int round = 0; round < 3; ++round) {
    Region* region = value_or_throw(world.initiator().register_memory(memory));
    EXPECT_EQ(nic.objects(), before + 1);
    ASSERT_TRUE(world.initiator().unregister_memory(*region, scaled(10s)));
    EXPECT_EQ(nic.objects(), before);
  }
}

}  // namespace
}  // namespace dtr::testing
