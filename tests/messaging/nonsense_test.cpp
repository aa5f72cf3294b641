// What peers may say, right and wrong, in any order, beside what a Messenger's user may do.
#include <random>

#include <gtest/gtest.h>

#include "messaging/strange_peers.hpp"

namespace dtr::testing {
namespace {

TEST(MessageNonsenseTest, HonestPeersAreServedRightAndLiarsHarmNobodyElse) {
  StrangePeers peers;
  std::mt19937 random(7);
  for (int i = 0; i < 2500; ++i) {
    std::vector<std::byte> script(random() % (i % 10 == 0 ? 1500 : 300));
    for (std::byte& each : script) each = static_cast<std::byte>(random());
    ASSERT_EQ(peers.play(script), "") << i;
  }
}

}  // namespace
}  // namespace dtr::testing
