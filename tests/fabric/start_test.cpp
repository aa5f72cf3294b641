// What a Fabric checks before it starts.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "dtr/fabric/fabric.hpp"
#include "dtr/fabric/tcp/tcp.hpp"

namespace dtr {
namespace {

using ::testing::HasSubstr;

fabric::FabricOptions with_tcp(std::size_t eager_bytes) {
  fabric::FabricOptions options;
  options.identity = {.self = 0, .world = 1};
  options.eager_bytes = 4096;
  options.transports.push_back({.name = "tcp", .make = [eager_bytes](const fabric::TransportContext& context) {
                                  return fabric::tcp::make_tcp(
                                      context, {.bind_address = "127.0.0.1", .eager_bytes = eager_bytes});
                                }});
  return options;
}

TEST(FabricStartTest, ATransportThatCannotCarryTheLargestMessageIsRefusedByName) {
  const auto refused = fabric::Fabric::create(with_tcp(4095));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Errc::config_error);
  EXPECT_THAT(refused.error().message, HasSubstr("tcp sends messages of at most 4095 bytes"));
}

TEST(FabricStartTest, ATransportMayCarryLargerMessagesThanTheOthers) {
  const auto fabric = fabric::Fabric::create(with_tcp(10000));
  ASSERT_TRUE(fabric) << fabric.error().to_string();
  ASSERT_TRUE((*fabric)->start(std::vector(1, (*fabric)->address()), {}));
  EXPECT_EQ((*fabric)->max_message(), 4096U);
  EXPECT_EQ((*fabric)->max_message(0), 4096U) << "to oneself, by loopback";
  EXPECT_EQ((*fabric)->max_message(1), 4096U) << "no such rank";
}

}  // namespace
}  // namespace dtr
