// Which NIC moves which memory, and what is registered.
#include <filesystem>
#include <fstream>
#include <random>

#include <sys/mman.h>
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

class VerbsPiecesTest : public ::testing::TestWithParam<std::size_t> {};  // by number of devices

TEST_P(VerbsPiecesTest, MemoryThatIsLongerThanADeviceRegistersMovesLikeAnyOther) {
  constexpr std::size_t kBytes = 1'000'000;
  NicsOptions options{.rails = GetParam(), .verbs = {.slice_bytes = 400'000}};
  options.device.max_mr_size = 300'000;  // cut into four, which a slice is longer than
  Nics nics(options);
  World world(nics.transport_case());
  Inbox inbox;
  ASSERT_TRUE(world.target().open_port(Traffic::kPort, inbox));
  std::vector<std::byte> ours(kBytes + 1);
  std::vector<std::byte> theirs(kBytes + 3);
  Region* local = value_or_throw(world.initiator().register_memory(std::span(ours).subspan(1)));
  Region* there = value_or_throw(world.target().register_memory(std::span(theirs).subspan(3)));
  EXPECT_GE(local->key().pieces, 4);
  const auto* remote = value_or_throw(world.initiator().import(1, there->key()));

  std::vector<std::byte> model(kBytes);
  std::mt19937_64 random(1);
  for (int round = 0; round < 200; ++round) {
    const std::size_t bytes = 1 + random() % (round % 4 == 0 ? kBytes : 20'000);
    const std::size_t from = random() % (kBytes - bytes + 1);
    const std::size_t to = random() % (kBytes - bytes + 1);
    for (std::size_t i = 0; i < bytes; ++i) local->data()[from + i] = static_cast<std::byte>(random());
    std::memcpy(model.data() + to, local->data() + from, bytes);
    const auto data = round % 3 == 0
                          ? WorkRequest::put_notify({local, from}, {remote, to}, bytes, Traffic::kPort, 7, nullptr)
                          : WorkRequest::put({local, from}, {remote, to}, bytes, nullptr);
    const auto put = run(world.initiator(), 1, {data, WorkRequest::flush(nullptr)});
    ASSERT_TRUE(put) << put.error().to_string();
    if (round % 3 == 0) {
      ASSERT_TRUE(inbox.next());
    }
    ASSERT_EQ(std::memcmp(there->data(), model.data(), kBytes), 0) << bytes << " bytes to " << to;
    const auto got = run(world.initiator(), 1, {WorkRequest::get({remote, 0}, {local, 0}, kBytes, nullptr)});
    ASSERT_TRUE(got) << got.error().to_string();
    ASSERT_EQ(std::memcmp(local->data(), model.data(), kBytes), 0);
  }
  EXPECT_TRUE(world.initiator().unregister_memory(*local, scaled(5s)));
  EXPECT_TRUE(world.target().unregister_memory(*there, scaled(5s)));
  world.target().close_port(Traffic::kPort);
}

TEST_P(VerbsPiecesTest, AKeyThatLiesAboutItsPiecesIsRefusedByTheTarget) {
  NicsOptions options{.rails = GetParam()};
  Nics nics(options);
  World world(nics.transport_case());
  Memory here(world.initiator(), 4096, true);
  Memory there(world.target(), 4096, true);
  there.pattern(1);
  here.pattern(2);
  for (const unsigned pieces : {0U, 2U, 7U, 8U, 255U}) {
    for (const std::uint64_t length : {std::uint64_t{4096}, std::uint64_t{1} << 40, ~std::uint64_t{0}}) {
      RemoteKey key = there.region()->key();
      key.pieces = static_cast<std::uint8_t>(pieces);
      key.length = length;
      const auto* remote = value_or_throw(world.initiator().import(1, key));
      for (const std::uint64_t offset : {length - 8, length / 2}) {
        if (offset + 8 <= 4096) continue;  // that is there
        EXPECT_FALSE(run(world.initiator(), 1, {WorkRequest::put({here.region(), 0}, {remote, offset}, 8, nullptr)}))
            << pieces << " pieces, offset " << offset;
      }
    }
  }
  EXPECT_EQ(there.mismatches(1, 0, 4096), 0U);
}

INSTANTIATE_TEST_SUITE_P(, VerbsPiecesTest, ::testing::Values(1, 2));

TEST(VerbsMemoryTest, MemoryThatADmabufExportsIsReachedThroughIt) {
  constexpr std::size_t kBytes = 1 << 20;
  NicsOptions options;
  options.device.max_mr_size = 400'000;  // in pieces, each at its own offset of the descriptor
  Nics nics(options);
  World world(nics.transport_case());
  const UniqueFd fd(::memfd_create("dtr-dmabuf", MFD_CLOEXEC));
  ASSERT_TRUE(fd);
  ASSERT_EQ(::ftruncate(fd.get(), kBytes), 0);
  // As with a GPU's memory, the address names what the CPU cannot touch; we look through another mapping.
  auto* address = static_cast<std::byte*>(::mmap(nullptr, kBytes, PROT_NONE, MAP_SHARED, fd.get(), 0));
  auto* content = static_cast<std::byte*>(::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0));
  ASSERT_TRUE(address != MAP_FAILED && content != MAP_FAILED);
  Region* exported = value_or_throw(
      world.initiator().register_memory({address, kBytes}, {.kind = MemoryKind::cuda, .dmabuf_fd = fd.get()}));
  Memory there(world.target(), kBytes, true);
  const auto* remote = value_or_throw(world.initiator().import(1, there.region()->key()));

  for (std::size_t i = 0; i < kBytes; ++i) content[i] = pattern_byte(5, i);
  ASSERT_TRUE(run(world.initiator(), 1, {WorkRequest::put({exported, 0}, {remote, 0}, kBytes, nullptr)}));
  EXPECT_EQ(there.mismatches(5, 0, kBytes), 0U);
  there.pattern(6);
  ASSERT_TRUE(run(world.initiator(), 1, {WorkRequest::get({remote, 0}, {exported, 0}, kBytes, nullptr)}));
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < kBytes; ++i) wrong += content[i] == pattern_byte(6, i) ? 0U : 1U;
  EXPECT_EQ(wrong, 0U);

  // The other way: the peer writes to what is exported here.
  const auto* back = value_or_throw(world.target().import(0, exported->key()));
  there.pattern(7);
  ASSERT_TRUE(run(world.target(), 0,
                  {WorkRequest::put({there.region(), 0}, {back, 0}, kBytes, nullptr), WorkRequest::flush(nullptr)}));
  wrong = 0;
  for (std::size_t i = 0; i < kBytes; ++i) wrong += content[i] == pattern_byte(7, i) ? 0U : 1U;
  EXPECT_EQ(wrong, 0U);
  EXPECT_TRUE(world.initiator().unregister_memory(*exported, scaled(5s)));
  ::munmap(address, kBytes);
  ::munmap(content, kBytes);
}

}  // namespace
}  // namespace dtr::testing
