// Nobody gets in, and whoever tries disturbs nothing.
#include <deque>
#include <random>

#include <poll.h>
#include <sys/ioctl.h>

#include "fabric_tcp/raw_peer.hpp"

namespace dtr::testing {
namespace {

using fabric::tcp::ReplyHeader;
using fabric::tcp::ReplyType;
using fabric::tcp::RequestHeader;
using fabric::tcp::RequestType;

/// One stranger of every kind, by number.
void pester(std::deque<RawPeer>& strangers, Node& node, std::uint32_t number, std::mt19937& random) {
  RawPeer stranger(node);
  fabric::Identity impostor = node.identity;
  impostor.self = 0;
  impostor.token.fill(std::byte{99});
  const fabric::Hello hello = fabric::make_hello(impostor, fabric::tcp::kTransportLetters, node.identity.self, 1);
  switch (number % 8) {
    case 0:  // nothing at all
      break;
    case 1: {  // garbage
      std::vector<std::byte> garbage(1 + random() % 4000);
      fill_pattern(garbage, number);
      stranger.say(garbage.data(), garbage.size());
      break;
    }
    case 2:  // half a frame
      stranger.say(&hello, 1 + random() % (sizeof hello - 1));
      break;
    case 3: {  // huge lengths everywhere
      const std::vector<std::byte> huge(512, std::byte{0xFF});
      stranger.say(huge.data(), huge.size());
      break;
    }
    case 4: {  // a true hello, then a proof of nothing
      stranger.say(hello);
      stranger.say(fabric::Proof{});
      break;
    }
    case 5: {  // another build
      fabric::Hello other = hello;
      other.build ^= 1;
      stranger.say(other);
      break;
    }
    case 6:
      stranger.say("GET / HTTP/1.1\r\n\r\n", 18);
      stranger.slam();
      return;
    case 7:  // a hello, requests behind it as if it were in already
      stranger.say(hello);
      stranger.say(RequestHeader{.type = RequestType::send, .length = 1});
      break;
    default:
      break;
  }
  if (number % 16 < 8) strangers.push_back(std::move(stranger));  // half of them stay as long as they may
  if (strangers.size() > 400) strangers.pop_front();
}

TEST(TcpStrangerTest, TenThousandOfThemDisturbNothing) {
  const std::size_t before = open_descriptors();
  {
    const fabric::tcp::TcpOptions options{.handshake_timeout = 2000ms, .max_pending_handshakes = 64};
    Node a(0, 3, options);
    Node b(1, 3, options);
    Node late(2, 3, options);
    auto channel = a.connect(b);
    ASSERT_TRUE(drive_until(
        10s, [&] { return channel->state() == ChannelState::open; }, a, b));
    auto source = pattern(1 << 20, 1);
    std::vector<std::byte> sink(1 << 20);
    Region* local = a.add(source);
    const RemoteRegion* remote = value_or_throw(channel->import(b.add(sink)->key()));

    std::deque<RawPeer> strangers;
    std::mt19937 random(1);
    Completion done;
    std::uint32_t transfers = 0;
    std::unique_ptr<Channel> late_channel;
    for (std::uint32_t i = 0; i < 10000; ++i) {
      pester(strangers, b, i, random);
      if (i == 5000) late_channel = late.connect(b, 20s);  // an honest peer comes in the middle of it
      if (i % 100 == 0 && done.done()) {
        ++transfers;
        done.arm(2);
        const std::array requests{WorkRequest::put({local, 0}, {remote, 0}, 1 << 20, &done),
                                  WorkRequest::notify(1, transfers, &done)};
        ASSERT_EQ(channel->post(requests, Deadline(scaled(20s))).accepted, 2U);
      }
      a.progress();
      b.progress();
      late.progress();
    }
    ASSERT_TRUE(drive_until(
        20s, [&] { return done.done() && late_channel->state() == ChannelState::open; }, a, b, late));
    EXPECT_TRUE(done.status().ok());
    EXPECT_TRUE(sink == source);
    EXPECT_GT(transfers, 20U);
    EXPECT_EQ(b.recorder.notifications.size(), transfers);
    EXPECT_TRUE(b.recorder.messages.empty());
    EXPECT_TRUE(a.recorder.downs.empty() && b.recorder.downs.empty());
    strangers.clear();
    drive_for(50ms, a, b, late);
    // Of all the strangers nothing is left: three transports with their polls, bells and listeners, two connections.
    EXPECT_TRUE(drive_until(
        10s, [&] { return open_descriptors() == before + 3 * 4 + 2 * 2; }, a, b, late))
        << open_descriptors() - before;
  }
  EXPECT_EQ(open_descriptors(), before);
}

TEST(TcpStrangerTest, SilentOnesAreDroppedInTime) {
  Node node(0, 2, {.handshake_timeout = 200ms});
  std::deque<RawPeer> strangers;
  for (int i = 0; i < 50; ++i) strangers.emplace_back(node);
  ASSERT_TRUE(drive_until(
      5s, [&] { return std::all_of(strangers.begin(), strangers.end(), [](const RawPeer& s) { return s.hung_up(); }); },
      node));
}

TEST(TcpStrangerTest, AWrongTokenIsRefusedOnBothSidesWithWords) {
  Node a(0, 2, {}, 1);
  Node b(1, 2, {}, 2);
  auto channel = a.connect(b);
  ASSERT_TRUE(drive_until(
      5s, [&] { return channel->state() == ChannelState::failed; }, a, b));
  const auto request = WorkRequest::flush(nullptr);
  const auto status = channel->post(std::span(&request, 1), Deadline(1s)).status;
  EXPECT_EQ(status.code, Errc::handshake_rejected);
  EXPECT_NE(channel->explain(status).find("token"), std::string::npos) << channel->explain(status);
}

TEST(TcpStrangerTest, ARankThatIsNotTheOneMeantIsRefused) {
  Node a(0, 3);
  Node c(2, 3);
  auto channel = value_or_throw(a.transport->connect(1, c.transport->address(), Deadline(scaled(5s))));
  ASSERT_TRUE(drive_until(
      5s, [&] { return channel->state() == ChannelState::failed; }, a, c));
  const auto request = WorkRequest::flush(nullptr);
  EXPECT_EQ(channel->post(std::span(&request, 1), Deadline(1s)).status.code, Errc::handshake_rejected);
  EXPECT_TRUE(a.recorder.downs.empty());
}

TEST(TcpStrangerTest, AnEavesdropperCannotReplayAHandshake) {
  Node node(1, 2);
  fabric::Identity rank0 = node.identity;
  rank0.self = 0;
  RawPeer honest(node);
  ASSERT_TRUE(honest.shake_hands(node, rank0, 1));
  // Same hello and same proof again: the responder's nonce is another one.
  const fabric::Hello hello = fabric::make_hello(rank0, fabric::tcp::kTransportLetters, 1, 2);
  RawPeer first(node);
  first.say(hello);
  fabric::Hello theirs;
  fabric::Proof proof;
  ASSERT_TRUE(first.hear(theirs, node) && first.hear(proof, node));
  const fabric::Proof overheard = fabric::make_proof(rank0, fabric::Side::initiator, hello, theirs);
  RawPeer replay(node);
  replay.say(hello);
  ASSERT_TRUE(replay.hear(theirs, node) && replay.hear(proof, node));
  replay.say(overheard);
  ASSERT_TRUE(drive_until(
      5s, [&] { return replay.hung_up(); }, node));
  // Nor does the responder's own proof serve as the initiator's.
  RawPeer mirror(node);
  mirror.say(hello);
  ASSERT_TRUE(mirror.hear(theirs, node) && mirror.hear(proof, node));
  mirror.say(proof);
  ASSERT_TRUE(drive_until(
      5s, [&] { return mirror.hung_up(); }, node));
  EXPECT_FALSE(honest.hung_up());
}

TEST(TcpStrangerTest, AnOvertakenConnectionIsDropped) {
  Node node(1, 2);
  fabric::Identity rank0 = node.identity;
  rank0.self = 0;
  RawPeer current(node);
  ASSERT_TRUE(current.shake_hands(node, rank0, 5));
  RawPeer old(node);
  EXPECT_FALSE(old.shake_hands(node, rank0, 5));
  EXPECT_FALSE(current.hung_up());
  RawPeer next(node);
  ASSERT_TRUE(next.shake_hands(node, rank0, 6));
  EXPECT_TRUE(drive_until(
      5s,
      [&] {
        static_cast<void>(current.hear(4096));  // the welcome
        return current.hung_up();
      },
      node));
}

TEST(TcpStrangerTest, AMalformedRequestEndsItsConnectionAndNothingElse) {
  const RequestHeader good{.type = RequestType::notify, .port = 1, .value = 7};
  const std::vector<RequestHeader> malformed{
      {.type = static_cast<RequestType>(0)},
      {.type = static_cast<RequestType>(200)},
      {.type = RequestType::notify, .reserved = 1},
      {.type = RequestType::notify, .value = 0x1000000},
      {.type = RequestType::send, .length = fabric::tcp::kMaxMessage + 1},
      {.type = RequestType::send, .length = ~0ULL},
      {.type = RequestType::put, .length = ~0ULL},
      {.type = RequestType::get, .length = fabric::tcp::kMaxTransfer + 1},
  };
  for (const RequestHeader& bad : malformed) {
    Node node(1, 3);
    Node honest(2, 3);
    auto channel = honest.connect(node);
    ASSERT_TRUE(drive_until(
        5s, [&] { return channel->state() == ChannelState::open; }, node, honest));
    fabric::Identity rank0 = node.identity;
    rank0.self = 0;
    RawPeer peer(node);
    ASSERT_TRUE(peer.shake_hands(node, rank0, 1));
    ReplyHeader welcome;
    ASSERT_TRUE(peer.hear(welcome, node));
    EXPECT_EQ(welcome.type, ReplyType::welcome);
    peer.say(good);
    peer.say(bad);
    peer.say(good);
    ASSERT_TRUE(drive_until(
        5s, [&] { return node.recorder.notifications.size() == 1; }, node));
    drive_for(10ms, node);
    EXPECT_EQ(node.recorder.notifications.size(), 1U) << "what follows the malformed one is not executed";
    ReplyHeader ack;
    EXPECT_TRUE(peer.hear(ack, node));
    EXPECT_TRUE(drive_until(
        5s, [&] { return peer.hung_up(); }, node));
    EXPECT_EQ(channel->state(), ChannelState::open);
    const auto request = WorkRequest::notify(1, 8, nullptr);
    ASSERT_EQ(channel->post(std::span(&request, 1), Deadline(scaled(5s))).accepted, 1U);
    ASSERT_TRUE(drive_until(
        5s, [&] { return node.recorder.notifications.size() == 2; }, node, honest));
  }
}

/// So much can be taken from it without waiting: bytes of a stream, or a connection of a listener.
bool readable(int fd, std::size_t bytes) {
  pollfd waiting{.fd = fd, .events = POLLIN, .revents = 0};
  if (::poll(&waiting, 1, 0) != 1) return false;
  int there = 0;
  return bytes <= 1 || (::ioctl(fd, FIONREAD, &there) == 0 && static_cast<std::size_t>(there) >= bytes);
}

TEST(TcpStrangerTest, AMalformedReplyEndsTheChannelWithWords) {
  // A target that answers nonsense: a listener of our own that holds the token.
  Node node(0, 2);
  UniqueFd listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in at{};
  at.sin_family = AF_INET;
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  ASSERT_EQ(::bind(listener.get(), reinterpret_cast<const sockaddr*>(&at), sizeof at), 0);
  ASSERT_EQ(::listen(listener.get(), 8), 0);
  socklen_t length = sizeof at;
  ASSERT_EQ(::getsockname(listener.get(), reinterpret_cast<sockaddr*>(&at), &length), 0);
  auto address = node.transport->address();
  const std::uint16_t port = ntohs(at.sin_port);
  std::memcpy(address.data() + 2, &port, sizeof port);

  const std::vector<ReplyHeader> nonsense{
      {.type = static_cast<ReplyType>(0)},
      {.type = ReplyType::ack, .sequence = 1000},
      {.type = ReplyType::ack, .sequence = 0},  // the get has no such answer
      {.type = ReplyType::data, .sequence = 0, .value = 9},
      {.type = ReplyType::data, .sequence = 0, .value = ~0ULL},
      {.type = ReplyType::result, .sequence = 0},
      {.type = ReplyType::refused, .sequence = 0},
      {.type = ReplyType::welcome},
  };
  std::uint32_t connection = 0;
  for (const ReplyHeader& bad : nonsense) {
    auto channel = value_or_throw(node.transport->connect(1, address, Deadline(scaled(5s))));
    ASSERT_TRUE(drive_until(
        5s, [&] { return readable(listener.get(), 1); }, node));
    const UniqueFd peer(::accept(listener.get(), nullptr, nullptr));
    ASSERT_TRUE(peer);
    fabric::Identity rank1 = node.identity;
    rank1.self = 1;
    fabric::Hello theirs;
    ASSERT_TRUE(drive_until(
        5s, [&] { return readable(peer.get(), sizeof theirs); }, node));
    ASSERT_EQ(::recv(peer.get(), &theirs, sizeof theirs, MSG_WAITALL), static_cast<ssize_t>(sizeof theirs));
    EXPECT_GT(theirs.connection, connection);
    connection = theirs.connection;
    const fabric::Hello mine = fabric::make_hello(rank1, fabric::tcp::kTransportLetters, 0, theirs.connection);
    const fabric::Proof proof = fabric::make_proof(rank1, fabric::Side::responder, theirs, mine);
    const fabric::Verdict verdict{};
    const ReplyHeader welcome{.type = ReplyType::welcome};
    for (const auto& [data, bytes] : {std::pair<const void*, std::size_t>{&mine, sizeof mine},
                                      {&proof, sizeof proof},
                                      {&verdict, sizeof verdict},
                                      {&welcome, sizeof welcome}}) {
      ASSERT_EQ(::send(peer.get(), data, bytes, MSG_NOSIGNAL), static_cast<ssize_t>(bytes));
    }
    ASSERT_TRUE(drive_until(
        5s, [&] { return channel->state() == ChannelState::open; }, node));
    std::array<std::byte, 8> memory{};
    Region* local = node.add(memory);
    RemoteKey key = local->key();
    const RemoteRegion* remote = value_or_throw(channel->import(key));
    Completion done;
    done.arm(1);
    const auto request = WorkRequest::get({remote, 0}, {local, 0}, 8, &done);
    ASSERT_EQ(channel->post(std::span(&request, 1), Deadline(scaled(5s))).accepted, 1U);
    ASSERT_EQ(::send(peer.get(), &bad, sizeof bad, MSG_NOSIGNAL), static_cast<ssize_t>(sizeof bad));
    ASSERT_TRUE(drive_until(
        5s, [&] { return done.done(); }, node));
    EXPECT_EQ(done.status().code, Errc::protocol_error);
    EXPECT_EQ(channel->state(), ChannelState::failed);
    EXPECT_NE(channel->explain(done.status()).find("malformed"), std::string::npos);
    node.regions->revoke(*local);
    node.regions->remove(*local);
  }
}

}  // namespace
}  // namespace dtr::testing
