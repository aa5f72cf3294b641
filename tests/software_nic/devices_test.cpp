// What devices say of themselves, and their limits.
#include <algorithm>
#include <cstring>

#include "software_nic/ends.hpp"
#include "support/software_nic/device.hpp"

namespace dtr::software_nic {
namespace {

TEST(DevicesTest, ANicHasTheDevicesThatWereAskedFor) {
  auto network = std::make_shared<Network>();
  SoftwareNic nic(network, {.devices = {{}, {.name = "rail", .ports = {{}, {.state = IBV_PORT_DOWN}}}}});
  int count = 0;
  ibv_device** list = nic.get_device_list(&count);
  ASSERT_EQ(count, 2);
  EXPECT_STREQ(nic.get_device_name(list[0]), "soft0");
  EXPECT_STREQ(nic.get_device_name(list[1]), "rail");
  EXPECT_EQ(list[2], nullptr);
  ibv_context* context = nic.open_device(list[1]);
  EXPECT_EQ(context->device, list[1]);
  nic.free_device_list(list);
  ibv_device_attr attributes{};
  ASSERT_EQ(nic.query_device(context, &attributes), 0);
  EXPECT_EQ(attributes.phys_port_cnt, 2);
  ibv_port_attr port{};
  ASSERT_EQ(nic.query_port(context, 1, &port), 0);
  EXPECT_EQ(port.state, IBV_PORT_ACTIVE);
  EXPECT_EQ(port.link_layer, IBV_LINK_LAYER_ETHERNET);
  EXPECT_EQ(port.active_mtu, IBV_MTU_1024);
  ASSERT_EQ(nic.query_port(context, 2, &port), 0);
  EXPECT_EQ(port.state, IBV_PORT_DOWN);
  EXPECT_EQ(nic.query_port(context, 3, &port), EINVAL);
  EXPECT_EQ(nic.close_device(context), 0);
}

TEST(DevicesTest, TheUsualGidTableIsADriversTable) {
  auto network = std::make_shared<Network>();
  SoftwareNic nic(network);
  const End end(nic);
  ibv_gid_entry entry{};
  const auto check = [&](std::uint32_t index, ibv_gid_type type, bool link_local) {
    ASSERT_EQ(nic.query_gid(end.context, 1, index, &entry), 0);
    EXPECT_EQ(entry.gid_type, static_cast<std::uint32_t>(type));
    EXPECT_EQ(entry.gid_index, index);
    EXPECT_EQ(entry.port_num, 1U);
    EXPECT_EQ(entry.gid.raw[0] == 0xFE, link_local);
    EXPECT_EQ(entry.gid.raw[11] == 0xFF, !link_local);
  };
  check(0, IBV_GID_TYPE_ROCE_V1, true);
  check(1, IBV_GID_TYPE_ROCE_V2, true);
  check(2, IBV_GID_TYPE_ROCE_V1, false);
  check(3, IBV_GID_TYPE_ROCE_V2, false);
  EXPECT_EQ(nic.query_gid(end.context, 1, 4, &entry), ENODATA);
  EXPECT_EQ(nic.query_gid(end.context, 1, 15, &entry), ENODATA);
  EXPECT_EQ(nic.query_gid(end.context, 1, 16, &entry), EINVAL);
  EXPECT_EQ(nic.query_gid(end.context, 2, 0, &entry), EINVAL);
}

TEST(DevicesTest, GidsAreWhatTheOptionsSay) {
  auto network = std::make_shared<Network>();
  SoftwareNic nic(network, {.devices = {{.ports = {{.gids = {{}, {.address = "2001:db8::7"}}}}}}});
  const End end(nic);
  ibv_gid_entry entry{};
  EXPECT_EQ(nic.query_gid(end.context, 1, 0, &entry), ENODATA);
  const RawGid wanted = parse_gid("2001:db8::7");
  ASSERT_EQ(nic.query_gid(end.context, 1, 1, &entry), 0);
  EXPECT_EQ(std::memcmp(entry.gid.raw, wanted.data(), wanted.size()), 0);
  EXPECT_THROW(static_cast<void>(parse_gid("10.0.0")), std::invalid_argument);
}

/// Whether a request over this connection gets there.
bool reaches(const std::shared_ptr<Network>& network, const NicOptions& one, const NicOptions& other,
             std::uint32_t gid) {
  SoftwareNic nic_a(network, one);
  SoftwareNic nic_b(network, other);
  End a(nic_a);
  End b(nic_b);
  connect(a, b, {.gid_index = gid, .timeout = 4, .retry_count = 1});
  EXPECT_EQ(a.post(b, {.length = 8}), 0);
  return a.completion().status == IBV_WC_SUCCESS;
}

TEST(DevicesTest, LinkLocalAddressesReachOnlyTheSameHost) {
  auto network = std::make_shared<Network>();
  EXPECT_FALSE(reaches(network, {.host = "x"}, {.host = "y"}, 1));
  EXPECT_TRUE(reaches(network, {.host = "x"}, {.host = "x"}, 1));
  EXPECT_TRUE(reaches(network, {.host = "x"}, {.host = "y"}, kIpv4Gid));
}

TEST(DevicesTest, WithoutRoutesSubnetsAreApart) {
  const auto at = [](const std::string& address) {
    return NicOptions{.devices = {{.ports = {{.gids = {{.address = address}}}}}}};
  };
  EXPECT_TRUE(reaches(std::make_shared<Network>(), at("10.0.1.1"), at("10.0.2.1"), 0));
  const auto flat = std::make_shared<Network>(NetworkOptions{.routed = false});
  EXPECT_FALSE(reaches(flat, at("10.0.1.1"), at("10.0.2.1"), 0));
  EXPECT_TRUE(reaches(flat, at("10.0.1.1"), at("10.0.1.2"), 0));
}

TEST(DevicesTest, RoceVersionsDoNotUnderstandEachOther) {
  const auto of = [](const std::string& address, ibv_gid_type type) {
    return NicOptions{.devices = {{.ports = {{.gids = {{.address = address, .type = type}}}}}}};
  };
  auto network = std::make_shared<Network>();
  EXPECT_FALSE(reaches(network, of("10.0.1.1", IBV_GID_TYPE_ROCE_V1), of("10.0.1.2", IBV_GID_TYPE_ROCE_V2), 0));
  EXPECT_TRUE(reaches(network, of("10.0.1.1", IBV_GID_TYPE_ROCE_V1), of("10.0.1.2", IBV_GID_TYPE_ROCE_V1), 0));
}

TEST(DevicesTest, NumbersAndKeysAreNeverUsedTwice) {
  auto network = std::make_shared<Network>();
  SoftwareNic nic_a(network);
  SoftwareNic nic_b(network);
  std::vector<std::uint32_t> numbers;
  std::vector<std::uint32_t> keys;
  for (int i = 0; i < 50; ++i) {
    const End end(i % 2 == 0 ? nic_a : nic_b);
    numbers.push_back(end.qp->qp_num);
    keys.push_back(end.mr->lkey);
    keys.push_back(end.mr->rkey);
  }
  std::sort(numbers.begin(), numbers.end());
  std::sort(keys.begin(), keys.end());
  EXPECT_EQ(std::adjacent_find(numbers.begin(), numbers.end()), numbers.end());
  EXPECT_EQ(std::adjacent_find(keys.begin(), keys.end()), keys.end());
}

TEST(DevicesTest, EachLimitGivesItsError) {
  auto network = std::make_shared<Network>();
  SoftwareNic nic(network, {.devices = {{.max_pd = 2,
                                         .max_qp = 2,
                                         .max_cq = 2,
                                         .max_mr = 2,
                                         .max_srq = 1,
                                         .max_mr_size = 2 * kMemory,
                                         .max_qp_wr = 64,
                                         .max_cqe = 1024,
                                         .max_srq_wr = 64,
                                         .max_sge = 4,
                                         .max_srq_sge = 1,
                                         .max_inline = 64}}});
  End end(nic);  // one of each, up to each size
  const auto expect = [](const void* made, int error) {
    EXPECT_EQ(made, nullptr);
    EXPECT_EQ(errno, error);
  };
  ibv_qp_init_attr attributes = end.wanted();
  ibv_qp* second = nic.create_qp(end.pd, &attributes);
  ASSERT_NE(second, nullptr);
  expect(nic.create_qp(end.pd, &attributes), ENOMEM);
  ASSERT_EQ(nic.destroy_qp(second), 0);
  const auto wrong = [&](auto change) {
    ibv_qp_init_attr bad = end.wanted();
    change(bad);
    expect(nic.create_qp(end.pd, &bad), EINVAL);
  };
  wrong([](ibv_qp_init_attr& bad) { bad.cap.max_send_wr = 65; });
  wrong([](ibv_qp_init_attr& bad) { bad.cap.max_send_sge = 5; });
  wrong([](ibv_qp_init_attr& bad) { bad.cap.max_inline_data = 65; });
  wrong([](ibv_qp_init_attr& bad) { bad.send_cq = nullptr; });
  attributes.qp_type = IBV_QPT_UD;
  expect(nic.create_qp(end.pd, &attributes), EOPNOTSUPP);

  ibv_cq* cq = nic.create_cq(end.context, 1, nullptr, nullptr, 0);
  ASSERT_NE(cq, nullptr);
  EXPECT_EQ(cq->cqe, 1);
  expect(nic.create_cq(end.context, 1, nullptr, nullptr, 0), ENOMEM);
  ASSERT_EQ(nic.destroy_cq(cq), 0);
  expect(nic.create_cq(end.context, 1025, nullptr, nullptr, 0), EINVAL);
  expect(nic.create_cq(end.context, 0, nullptr, nullptr, 0), EINVAL);
  expect(nic.create_cq(end.context, 1, nullptr, nullptr, 1), EINVAL);

  ibv_mr* mr = nic.reg_mr(end.pd, end.memory.data(), 1, 0);
  ASSERT_NE(mr, nullptr);
  expect(nic.reg_mr(end.pd, end.memory.data(), 1, 0), ENOMEM);
  ASSERT_EQ(nic.dereg_mr(mr), 0);
  expect(nic.reg_mr(end.pd, end.memory.data(), 2 * kMemory + 1, 0), EINVAL);
  expect(nic.reg_mr(end.pd, end.memory.data(), 0, 0), EINVAL);
  expect(nic.reg_mr(end.pd, nullptr, 8, 0), EFAULT);
  expect(nic.reg_mr(end.pd, end.memory.data(), 8, IBV_ACCESS_REMOTE_WRITE), EINVAL);  // needs local write

  ibv_srq_init_attr receives{};
  receives.attr = {.max_wr = 8, .max_sge = 1, .srq_limit = 0};
  expect(nic.create_srq(end.pd, &receives), ENOMEM);
  receives.attr.max_wr = 65;
  expect(nic.create_srq(end.pd, &receives), EINVAL);
  receives.attr = {.max_wr = 8, .max_sge = 2, .srq_limit = 0};
  expect(nic.create_srq(end.pd, &receives), EINVAL);

  ibv_pd* pd = nic.alloc_pd(end.context);
  ASSERT_NE(pd, nullptr);
  expect(nic.alloc_pd(end.context), ENOMEM);
  EXPECT_EQ(nic.dealloc_pd(pd), 0);
}

TEST(DevicesTest, LockedMemoryRunsOut) {
  auto network = std::make_shared<Network>();
  SoftwareNic nic(network, {.devices = {{.max_locked_bytes = kMemory + 4096}}});
  End end(nic);
  ibv_mr* mr = nic.reg_mr(end.pd, end.memory.data(), 4096, 0);
  ASSERT_NE(mr, nullptr);
  EXPECT_EQ(nic.reg_mr(end.pd, end.memory.data(), 1, 0), nullptr);
  EXPECT_EQ(errno, ENOMEM);
  EXPECT_EQ(nic.dereg_mr(mr), 0);
}

TEST(DevicesTest, ASharedReceiveQueueIsAsLongAsItSays) {
  auto network = std::make_shared<Network>();
  SoftwareNic nic(network);
  End end(nic);
  for (std::uint64_t i = 0; i < 64; ++i) end.receive(i, 0);
  std::array<ibv_recv_wr, 1> more{};
  ibv_recv_wr* bad = nullptr;
  EXPECT_EQ(nic.post_srq_recv(end.srq, more.data(), &bad), ENOMEM);
  EXPECT_EQ(bad, more.data());
}

}  // namespace
}  // namespace dtr::software_nic
