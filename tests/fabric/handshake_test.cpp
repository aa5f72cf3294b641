#include "dtr/fabric/handshake.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sodium.h>

namespace dtr::fabric {
namespace {

using ::testing::HasSubstr;

constexpr std::uint32_t kTransport = 0x20706374;

class HandshakeTest : public ::testing::Test {
 protected:
  void SetUp() override { ASSERT_GE(sodium_init(), 0); }

  static Identity rank(std::uint32_t self, std::byte secret = std::byte{7}) {
    Identity identity{.self = self, .world = 4, .host_id = "h", .token = {}};
    identity.token.fill(secret);
    return identity;
  }
  Identity initiator_ = rank(1);
  Identity responder_ = rank(2);
  Hello from_initiator_ = make_hello(initiator_, kTransport, 2, 0);
  Hello from_responder_ = make_hello(responder_, kTransport, 1, 0);
};

TEST_F(HandshakeTest, MembersOfOneJobRecogniseEachOther) {
  EXPECT_TRUE(check_hello(from_initiator_, responder_, kTransport, -1));
  EXPECT_TRUE(check_hello(from_responder_, initiator_, kTransport, 2));
  const Proof proof = make_proof(initiator_, Side::initiator, from_initiator_, from_responder_);
  EXPECT_TRUE(check_proof(proof, responder_, Side::initiator, from_initiator_, from_responder_));
}

TEST_F(HandshakeTest, AnotherTokenIsRefused) {
  const Identity stranger = rank(1, std::byte{8});
  const Proof proof = make_proof(stranger, Side::initiator, from_initiator_, from_responder_);
  const auto checked = check_proof(proof, responder_, Side::initiator, from_initiator_, from_responder_);
  ASSERT_FALSE(checked);
  EXPECT_EQ(checked.error().code, Errc::handshake_rejected);
  EXPECT_THAT(checked.error().to_string(), HasSubstr("token"));
}

TEST_F(HandshakeTest, ProofsCannotBeReflectedOrReplayed) {
  const Proof mine = make_proof(responder_, Side::responder, from_initiator_, from_responder_);
  EXPECT_FALSE(check_proof(mine, responder_, Side::initiator, from_initiator_, from_responder_)) << "reflected";
  const Proof old = make_proof(initiator_, Side::initiator, from_initiator_, from_responder_);
  const Hello later = make_hello(responder_, kTransport, 1, 0);
  EXPECT_FALSE(check_proof(old, responder_, Side::initiator, from_initiator_, later)) << "replayed";
  Hello changed = from_initiator_;
  changed.peer = 3;
  EXPECT_FALSE(check_proof(old, responder_, Side::initiator, changed, from_responder_)) << "in another's name";
}

TEST_F(HandshakeTest, EveryDifferenceIsNamed) {
  const auto text = [&](auto change) {
    Hello hello = from_initiator_;
    change(hello);
    const auto checked = check_hello(hello, responder_, kTransport, 1);
    return checked ? std::string("accepted") : checked.error().to_string();
  };
  EXPECT_THAT(text([](Hello& h) { h.magic ^= 1; }), HasSubstr("not a libdtr peer"));
  EXPECT_THAT(text([](Hello& h) { h.byte_order = 0x04030201; }), HasSubstr("little-endian"));
  EXPECT_THAT(text([](Hello& h) { h.version = 99; }), HasSubstr("protocol 99, this process 1"));
  EXPECT_THAT(text([](Hello& h) { h.build = 1; }), HasSubstr("build id 0x1"));
  EXPECT_THAT(text([](Hello& h) { h.transport = 1; }), HasSubstr("another transport"));
  EXPECT_THAT(text([](Hello& h) { h.target = 3; }), HasSubstr("wants rank 3, this is rank 2"));
  EXPECT_THAT(text([](Hello& h) { h.peer = 4; }), HasSubstr("rank 4 is no peer in a job of 4"));
  EXPECT_THAT(text([](Hello& h) { h.peer = 2; }), HasSubstr("no peer"));
  EXPECT_THAT(text([](Hello& h) { h.peer = 3; }), HasSubstr("rank 1 was expected"));
  EXPECT_EQ(text([](Hello&) {}), "accepted");
}

}  // namespace
}  // namespace dtr::fabric
