// Faults on the wire between two real devices, made with tc and ip inside the RDMA VM. Rank 0 has one end, rank 1 the
// other. Without such a machine there is nothing to test: scripts/rdma-vm.sh --rails 2 gives one.
#include <cstdlib>
#include <functional>
#include <iterator>
#include <sstream>
#include <string>

#include <gmock/gmock.h>

#include "dtr/fabric/tcp/tcp.hpp"
#include "dtr/fabric/verbs/verbs.hpp"
#include "fabric_verbs/traffic.hpp"

namespace dtr::testing {
namespace {

std::vector<std::string> words_of(const char* variable) {
  const char* text = std::getenv(variable);
  std::istringstream in(text == nullptr ? "" : text);
  return {std::istream_iterator<std::string>(in), {}};
}

void shell(const std::string& command) { ASSERT_EQ(std::system(command.c_str()), 0) << command; }

class VerbsWireTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_GE(words_of("RDMA_VM_DEVICES").size(), 2U) << "run it by scripts/rdma-vm.sh --rails 2";
    shell("tc qdisc del dev " + interface(0) + " root 2> /dev/null; tc qdisc del dev " + interface(1) +
          " root 2> /dev/null; true");
  }
  static std::string interface(std::size_t number) { return words_of("RDMA_VM_INTERFACES").at(number); }
  /// On what one end, or both, send.
  static void netem(const std::string& fault, bool both = true) {
    for (std::size_t i = 0; i < (both ? 2U : 1U); ++i) {
      shell("tc qdisc replace dev " + interface(i) + " root netem " + fault);
    }
  }
  static TransportCase over_the_wire(std::chrono::milliseconds detect) {
    return {.name = "verbs",
            .transports = {{.name = "verbs", .make = [detect](const fabric::TransportContext& context) {
                              const auto devices = words_of("RDMA_VM_DEVICES");
                              const fabric::TransportFactory control{
                                  .name = "tcp", .make = [](const fabric::TransportContext& inner) {
                                    return fabric::tcp::make_tcp(inner, {.bind_address = "127.0.0.1",
                                                                         .eager_bytes = 256 << 10,
                                                                         .send_buffer_bytes = 4 << 20});
                                  }};
                              return fabric::verbs::make_verbs(
                                  context,
                                  {.devices = {devices.at(context.identity.self % 2)}, .failure_detect = detect},
                                  value_or_throw(fabric::verbs::load_verbs()), control);
                            }}}};
  }
  static void everything_arrives(World& world, std::size_t count, const std::function<void()>& meanwhile = {}) {
    Traffic traffic(world, count);
    traffic.start(120s);
    if (meanwhile) meanwhile();
    const auto result = traffic.finish(120s);
    EXPECT_TRUE(result) << result.error().to_string();
    traffic.expect_everything_once();
  }
};

TEST_F(VerbsWireTest, LossDelayDuplicatesAndCorruptionChangeNoByte) {
  for (const char* fault : {"loss 1%", "loss 5%", "delay 2ms 1ms", "duplicate 5%", "corrupt 2%"}) {
    World world(over_the_wire(scaled(20s)));
    netem(fault);
    everything_arrives(world, 100);
    if (HasFailure()) FAIL() << fault;
  }
}

TEST_F(VerbsWireTest, AnOutageShorterThanTheBoundIsSurvivedOnEitherSide) {
  for (const std::size_t side : {0U, 1U}) {
    World world(over_the_wire(scaled(20s)));
    everything_arrives(world, 100, [&] {
      shell("ip link set " + interface(side) + " down");
      std::this_thread::sleep_for(300ms);
      shell("ip link set " + interface(side) + " up");
    });
  }
}

TEST_F(VerbsWireTest, ALossOfEverythingEndsInAnErrorWithinTheBound) {
  World world(over_the_wire(scaled(2s)));
  ASSERT_TRUE(run(world.initiator(), 1, {WorkRequest::notify(Traffic::kPort, 1, nullptr)}));
  netem("loss 100%");
  const auto from = std::chrono::steady_clock::now();
  const auto result = run(world.initiator(), 1, {WorkRequest::notify(Traffic::kPort, 2, nullptr)}, 120s);
  EXPECT_LT(std::chrono::steady_clock::now() - from, scaled(30s));
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code, Errc::peer_failed) << result.error().to_string();
  EXPECT_THAT(result.error().message, ::testing::HasSubstr("rail"));
}

TEST_F(VerbsWireTest, ADeviceThatStaysDownEndsInAnErrorWithinTheBound) {
  World world(over_the_wire(scaled(2s)));
  ASSERT_TRUE(run(world.initiator(), 1, {WorkRequest::notify(Traffic::kPort, 1, nullptr)}));
  shell("ip link set " + interface(0) + " down");
  const auto from = std::chrono::steady_clock::now();
  const auto result = run(world.initiator(), 1, {WorkRequest::notify(Traffic::kPort, 2, nullptr)}, 120s);
  EXPECT_LT(std::chrono::steady_clock::now() - from, scaled(30s));
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code, Errc::peer_failed) << result.error().to_string();
  shell("ip link set " + interface(0) + " up");
}

}  // namespace
}  // namespace dtr::testing
