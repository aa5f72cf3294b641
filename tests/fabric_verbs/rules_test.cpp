// The rules of addresses and rails, and what crosses the wire: pure functions.
#include <array>
#include <cstring>

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "dtr/base/bytes.hpp"
#include "dtr/fabric/verbs/wire.hpp"

namespace dtr::fabric::verbs {
namespace {

using ::testing::HasSubstr;

GidEntry entry(const std::string& address, std::uint32_t index, std::uint8_t prefix = 0, bool v2 = true) {
  GidEntry made{
      .gid = {}, .index = index, .routable_roce = v2 ? std::uint8_t{1} : std::uint8_t{0}, .prefix_bits = prefix};
  if (address.find(':') == std::string::npos) {
    made.gid[10] = made.gid[11] = 0xFF;
    EXPECT_EQ(::inet_pton(AF_INET, address.c_str(), made.gid.data() + 12), 1);
  } else {
    EXPECT_EQ(::inet_pton(AF_INET6, address.c_str(), made.gid.data()), 1);
  }
  return made;
}

/// As a driver makes it: link-local first.
PortOffer roce(const std::string& address, std::uint8_t prefix = 120) {
  return {.gids = {entry("fe80::1", 0), entry(address, 1, prefix)}};
}

TEST(GidRuleTest, TheRoutableAddressInThePeersSubnetIsTaken) {
  PortOffer ours{.gids = {entry("fe80::1", 0), entry("192.168.1.1", 1, 120), entry("10.0.0.1", 3, 120)}};
  const auto choice = choose_gids(ours, roce("10.0.0.2"), false);
  ASSERT_TRUE(choice);
  EXPECT_EQ(choice->ours.index, 3U);
  EXPECT_TRUE(choice->same_subnet);
  EXPECT_THAT(choice->reason, HasSubstr("10.0.0.1"));
  EXPECT_THAT(choice->reason, HasSubstr("same subnet"));
}

TEST(GidRuleTest, LinkLocalAddressesAreNeverTakenBetweenHosts) {
  const PortOffer local{.gids = {entry("fe80::1", 0)}};
  const PortOffer other{.gids = {entry("fe80::2", 0)}};
  EXPECT_FALSE(choose_gids(local, other, false));
  EXPECT_TRUE(choose_gids(local, other, true));
}

TEST(GidRuleTest, RoceVersion1IsNotTaken) {
  const PortOffer old{.gids = {entry("10.0.0.1", 0, 120, false)}};
  EXPECT_FALSE(choose_gids(old, roce("10.0.0.2"), false));
}

TEST(GidRuleTest, AnotherSubnetIsReachedByRoutingAndSaidSo) {
  const auto choice = choose_gids(roce("10.0.0.1"), roce("10.0.1.2"), false);
  ASSERT_TRUE(choice);
  EXPECT_FALSE(choice->same_subnet);
  EXPECT_THAT(choice->reason, HasSubstr("routed"));
}

TEST(GidRuleTest, TheEntryAskedForIsTakenOrNone) {
  PortOffer ours{.gids = {entry("10.0.0.1", 1, 120), entry("10.0.0.3", 5, 120)}};
  EXPECT_EQ(choose_gids(ours, roce("10.0.0.2"), false, 5)->ours.index, 5U);
  EXPECT_FALSE(choose_gids(ours, roce("10.0.0.2"), false, 7));
}

TEST(GidRuleTest, InfinibandAndEthernetDoNotMeet) {
  PortOffer infiniband{.ethernet = false, .gids = {entry("fe80::1", 0)}};
  EXPECT_FALSE(choose_gids(infiniband, roce("10.0.0.1"), true));
  EXPECT_TRUE(choose_gids(infiniband, infiniband, false));
}

TEST(RailRuleTest, PortsArePairedBySubnetInTheOrderOfTheLowerRank) {
  const std::array lower{roce("10.0.0.1"), roce("10.0.1.1")};
  const std::array higher{roce("10.0.1.2"), roce("10.0.0.2")};
  const auto pairs = pair_rails(lower, higher, false);
  EXPECT_THAT(pairs, ::testing::ElementsAre(RailPair{0, 1}, RailPair{1, 0}));
}

TEST(RailRuleTest, APortWithoutAPartnerMakesNoRail) {
  const std::array lower{roce("10.0.0.1"), roce("10.0.1.1")};
  const std::array higher{roce("10.0.0.2")};
  EXPECT_EQ(pair_rails(lower, higher, false).size(), 1U);
  EXPECT_EQ(pair_rails({}, higher, false).size(), 0U);
}

TEST(VerbsWireTest, AnAddressComesBackAsItWas) {
  Address address{
      .control = {std::byte{1}}, .host = "host", .credits = 32, .ports = {}, .early = {{.number = 7, .psn = 9}}};
  address.ports.push_back({.name = "mlx5_0:1", .offer = roce("10.0.0.1"), .lid = 3, .mtu = 5, .rd_atomic = 16});
  const auto back = Address::decode(address.encode());
  ASSERT_TRUE(back);
  EXPECT_EQ(back->host, "host");
  ASSERT_EQ(back->ports.size(), 1U);
  EXPECT_EQ(back->ports[0].name, "mlx5_0:1");
  EXPECT_EQ(back->ports[0].offer.gids.size(), 2U);
  ASSERT_EQ(back->early.size(), 1U);
  EXPECT_EQ(back->early[0].number, 7U);
}

TEST(VerbsWireTest, AnAddressCutAnywhereIsRefused) {
  Address address{.control = {std::byte{1}}, .host = "host", .credits = 32, .ports = {}, .early = {}};
  address.ports.push_back({.name = "mlx5_0:1", .offer = roce("10.0.0.1")});
  const auto bytes = address.encode();
  for (std::size_t length = 0; length < bytes.size(); ++length) {
    const auto back = Address::decode(std::span(bytes).first(length));
    ASSERT_FALSE(back) << length;
    EXPECT_EQ(back.error().code, Errc::protocol_error);
  }
  auto longer = bytes;
  longer.push_back(std::byte{0});
  EXPECT_FALSE(Address::decode(longer));
}

TEST(VerbsWireTest, ImpossibleCountsAreRefusedBeforeAnythingIsMade) {
  ByteWriter out;
  out.bytes({}).text("host").value(std::uint32_t{32}).value(std::uint32_t{64}).value(std::uint32_t{0xFFFFFFFF});
  EXPECT_FALSE(Address::decode(out.view()));
}

TEST(VerbsWireTest, MalformedControlMessagesAreToldApart) {
  const ControlMessage good{.type = ControlType::connect, .rail = 0, .epoch = 1, .queue_pair = 17};
  EXPECT_EQ(malformed(good), nullptr);
  ControlMessage bad = good;
  bad.type = static_cast<ControlType>(9);
  EXPECT_NE(malformed(bad), nullptr);
  bad = good;
  bad.rail = 8;
  EXPECT_NE(malformed(bad), nullptr);
  bad = good;
  bad.epoch = 0;
  EXPECT_NE(malformed(bad), nullptr);
  bad = good;
  bad.queue_pair = 0x1000000;
  EXPECT_NE(malformed(bad), nullptr);
}

}  // namespace
}  // namespace dtr::fabric::verbs
