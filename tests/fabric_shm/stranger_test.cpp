// Whoever connects without being a peer, and peers that write nonsense: they harm their own connection only.
#include <random>
#include <thread>

#include <sys/socket.h>
#include <sys/un.h>

#include "dtr/fabric/shm/greeter.hpp"
#include "dtr/fabric/shm/in_link.hpp"
#include "dtr/fabric/shm/out_link.hpp"
#include "fabric_shm/node.hpp"

namespace dtr::testing {
namespace {

using fabric::ChannelState;
using fabric::WorkRequest;
namespace shm = fabric::shm;

shm::Address address_of(const Node& node) {
  const auto bytes = node.transport->address();
  shm::Address address;
  std::memcpy(&address, bytes.data(), sizeof address);
  return address;
}

TEST(StrangerTest, ThousandsOfStrangersDisturbNothingAndLeaveNothingBehind) {
  set_log_level(LogLevel::error);
  Node target(0, {.handshake_timeout = 50ms, .max_handshakes = 16});
  Node node(1);
  const std::size_t before = open_descriptors();
  const shm::Address address = address_of(target);
  std::mt19937 random(3);
  const fabric::Hello hello = fabric::make_hello(node.identity, shm::kTransportId, 0, 0);
  std::vector<UniqueFd> silent;
  for (int i = 0; i < 3000; ++i) {
    auto socket = shm::connect_to(address);
    while (!socket) {  // the queue is full
      target.pump();
      socket = shm::connect_to(address);
    }
    std::vector<std::byte> bytes(random() % 300);
    switch (i % 5) {
      case 0:  // garbage
        for (auto& byte : bytes) byte = static_cast<std::byte>(random());
        static_cast<void>(shm::send_all(socket->get(), bytes));
        break;
      case 1:  // half a hello
        static_cast<void>(shm::send_all(socket->get(), std::as_bytes(std::span(&hello, 1)).first(random() % 72)));
        break;
      case 2: {  // a hello and a proof made without the token, with descriptors that nobody asked for
        const fabric::Proof proof{};
        const int fds[] = {0, 1, 2};
        static_cast<void>(shm::send_value(socket->get(), hello, fds) && shm::send_value(socket->get(), proof, fds));
        break;
      }
      case 3: {  // another version of us
        fabric::Hello other = hello;
        other.version = 77;
        static_cast<void>(shm::send_value(socket->get(), other));
        break;
      }
      default:
        break;
    }
    if (i % 7 == 0) silent.push_back(std::move(*socket));  // stays and says no more
    if (i % 10 == 0) target.pump();
  }
  const auto channel = open_channel(node, target);
  const WorkRequest notify = WorkRequest::notify(1, 5, nullptr);
  EXPECT_EQ(channel->post({&notify, 1}, 1s).finished, 1U);
  EXPECT_TRUE(pump_until({&node, &target}, 5s, [&] { return target.events.notifications == 1; }));
  EXPECT_TRUE(target.events.downs().empty());
  silent.clear();
  // 7 = what the one good link holds: socket, process and doorbell at each end, and the rings' file until passed on.
  EXPECT_TRUE(pump_until({&node, &target}, 10s, [&] { return open_descriptors() <= before + 7; }))
      << open_descriptors() << " descriptors, before " << before;
  set_log_level(LogLevel::warn);
}

TEST(StrangerTest, WrongTokenIsRefusedOnBothSides) {
  Node target(0);
  Node stranger(1, {}, std::byte{13});
  const auto channel = value_or_throw(stranger.transport->connect(0, target.transport->address(), scaled(10s)));
  ASSERT_TRUE(pump_until({&target, &stranger}, 5s, [&] { return channel->state() == ChannelState::failed; }));
  const WorkRequest flush = WorkRequest::flush(nullptr);
  EXPECT_EQ(channel->post({&flush, 1}, 1s).status.code, Errc::handshake_rejected);
  EXPECT_NE(channel->explain({.code = Errc::handshake_rejected}).find("token"), std::string::npos);
  EXPECT_TRUE(target.events.downs().empty());
}

TEST(StrangerTest, PeerThatTakesUsForAnotherRankIsRefused) {
  Node target(0);
  Node node(1);
  const auto channel = value_or_throw(node.transport->connect(2, target.transport->address(), scaled(10s)));
  ASSERT_TRUE(pump_until({&target, &node}, 5s, [&] { return channel->state() == ChannelState::failed; }));
  const WorkRequest flush = WorkRequest::flush(nullptr);
  EXPECT_EQ(channel->post({&flush, 1}, 1s).status.code, Errc::handshake_rejected);
}

TEST(StrangerTest, AddressOfTheWrongSizeIsAnError) {
  Node node(1);
  const auto channel = node.transport->connect(0, {}, 1s);
  ASSERT_FALSE(channel);
  EXPECT_EQ(channel.error().code, Errc::invalid_argument);
}

TEST(StrangerTest, SegmentsThatCouldShrinkAreNotMapped) {
  const auto unsealed = [] {
    UniqueFd fd(::memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    EXPECT_EQ(::ftruncate(fd.get(), 1 << 20), 0);
    return fd;
  };
  EXPECT_EQ(shm::Control::map(unsealed()).error().code, Errc::protocol_error);
  EXPECT_EQ(shm::LinkMemory::map(unsealed(), 64, 64).error().code, Errc::protocol_error);
}

TEST(StrangerTest, RingsThatDoNotFitTheirSegmentAreRefused) {
  const auto attempt = [](std::uint64_t forward, std::uint64_t backward) {
    const auto segment = value_or_throw(Segment::create(0, 64 << 10));
    return shm::LinkMemory::map(UniqueFd(::dup(segment->fd())), forward, backward).error().code;
  };
  EXPECT_EQ(attempt(4096, 64), Errc::protocol_error);
  EXPECT_EQ(attempt(100, 64), Errc::protocol_error);
  EXPECT_EQ(attempt(64, 0), Errc::protocol_error);
  EXPECT_EQ(attempt(1ULL << 63, 1ULL << 63), Errc::protocol_error);
}

/// The target's end of a link whose other end the test plays.
struct PlayedInitiator {
  PlayedInitiator()
      : local(std::make_shared<shm::Local>(fabric::TransportContext{identity, *regions, events}, options)) {
    local->control = value_or_throw(shm::Control::create(false));
    local->doorbell.reset(::dup(0));
    value_or_throw(local->poller.open());
    int ends[2];
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends), 0);
    peer_socket.reset(ends[1]);
    auto memory = value_or_throw(shm::LinkMemory::create(64, 64));
    backward = memory.backward();
    producer = shm::RingProducer(memory.forward());
    header = &memory.header();
    shm::InParts parts;
    parts.peer = 1;
    parts.socket.reset(ends[0]);
    parts.doorbell.reset(::dup(0));
    parts.control = value_or_throw(shm::Control::create(false));
    parts.memory = std::move(memory);
    link = std::make_unique<shm::InLink>(*local, std::move(parts));
    value_or_throw(link->start());
  }
  bool frame(std::uint8_t type, std::span<const std::byte> bytes) {
    std::byte* at = producer.reserve(static_cast<std::uint32_t>(bytes.size()));
    if (at == nullptr) return false;
    if (!bytes.empty()) std::memcpy(at, bytes.data(), bytes.size());
    producer.commit(type, 1);
    return true;
  }
  [[nodiscard]] bool refused() const { return header->refused.load() != 0; }

  fabric::Identity identity{.self = 0, .world = 4, .host_id = "h", .token = {}};
  std::unique_ptr<RegionTable> regions = value_or_throw(RegionTable::create());
  Events events;
  shm::ShmOptions options{};
  std::shared_ptr<shm::Local> local;
  UniqueFd peer_socket;
  shm::RingMemory backward;
  shm::RingProducer producer;
  shm::LinkHeader* header = nullptr;
  std::unique_ptr<shm::InLink> link;
};

TEST(NonsenseTest, MalformedFramesEndTheirLinkAndTouchNoMemory) {
  set_log_level(LogLevel::error);
  std::vector<std::byte> memory(4096, std::byte{0x66});
  std::mt19937 random(11);
  int ended = 0;
  for (int round = 0; round < 500; ++round) {
    PlayedInitiator peer;
    Region& region = *value_or_throw(peer.regions->add(memory, {}));
    for (int i = 0; i < 20 && !peer.refused(); ++i) {
      std::vector<std::byte> bytes(random() % 200);
      for (auto& byte : bytes) byte = static_cast<std::byte>(random());
      if (bytes.size() >= sizeof(shm::Place) && random() % 2 == 0) {
        // The right place but for the secret.
        shm::Place place = shm::Place::of(region.key(), 0);
        place.secret ^= 1;
        std::memcpy(bytes.data(), &place, sizeof place);
      }
      static_cast<void>(peer.frame(static_cast<std::uint8_t>(random() % 10), bytes));
      static_cast<void>(peer.link->serve(10));
    }
    ended += peer.refused() ? 1 : 0;
    EXPECT_TRUE(peer.events.downs().empty());
    EXPECT_EQ(region.uses(), 0U);
  }
  EXPECT_GT(ended, 400);
  EXPECT_EQ(std::count(memory.begin(), memory.end(), std::byte{0x66}), 4096);
  set_log_level(LogLevel::warn);
}

TEST(NonsenseTest, EachKindOfMalformedFrameIsRefused) {
  set_log_level(LogLevel::error);
  const auto refuses = [](std::uint8_t type, std::size_t bytes) {
    PlayedInitiator peer;
    EXPECT_TRUE(peer.frame(type, std::vector<std::byte>(bytes, std::byte{0xFF})));
    static_cast<void>(peer.link->serve(10));
    return peer.refused();
  };
  EXPECT_TRUE(refuses(static_cast<std::uint8_t>(shm::FrameType::notify), 3));
  EXPECT_TRUE(refuses(static_cast<std::uint8_t>(shm::FrameType::notify), 5));
  EXPECT_TRUE(refuses(static_cast<std::uint8_t>(shm::FrameType::notify), 4));  // a value of more than 24 bits
  EXPECT_TRUE(refuses(static_cast<std::uint8_t>(shm::FrameType::put), 39));
  EXPECT_TRUE(refuses(static_cast<std::uint8_t>(shm::FrameType::get), 41));
  EXPECT_TRUE(refuses(static_cast<std::uint8_t>(shm::FrameType::atomic), 48));  // no such operation
  EXPECT_TRUE(refuses(static_cast<std::uint8_t>(shm::FrameType::result), 16));  // goes the other way
  EXPECT_TRUE(refuses(77, 8));
  EXPECT_FALSE(refuses(static_cast<std::uint8_t>(shm::FrameType::message), 100));
  set_log_level(LogLevel::warn);
}

TEST(NonsenseTest, PeerThatAsksWithoutReadingTheAnswersIsServedWhenItReads) {
  PlayedInitiator peer;
  std::vector<std::byte> memory(1 << 20, std::byte{3});
  Region& region = *value_or_throw(peer.regions->add(memory, {}));
  constexpr std::uint32_t kGets = 40;
  for (std::uint32_t i = 0; i < kGets; ++i) {
    const shm::GetBody get{.place = shm::Place::of(region.key(), 0), .length = 5000, .operation = i};
    ASSERT_TRUE(peer.frame(static_cast<std::uint8_t>(shm::FrameType::get), std::as_bytes(std::span(&get, 1))));
    static_cast<void>(peer.link->serve(10));
  }
  for (int i = 0; i < 100; ++i) static_cast<void>(peer.link->serve(10));
  EXPECT_FALSE(peer.link->has_work());  // it may sleep, although there is something left to answer

  shm::RingConsumer consumer(peer.backward);
  shm::RingConsumer::Frame frame;
  std::uint64_t bytes = 0;
  std::uint32_t results = 0;
  for (int i = 0; i < 1000 && results < kGets; ++i) {
    while (consumer.look(frame) == shm::RingConsumer::Look::frame) {
      if (frame.type == static_cast<std::uint8_t>(shm::FrameType::result)) ++results;
      if (frame.type == static_cast<std::uint8_t>(shm::FrameType::data)) bytes += frame.bytes.size() - 16;
      consumer.pop();
    }
    consumer.release();
    static_cast<void>(peer.link->serve(10));
  }
  EXPECT_EQ(results, kGets);
  EXPECT_EQ(bytes, kGets * 5000U);
  EXPECT_FALSE(peer.refused());
}

}  // namespace
}  // namespace dtr::testing
