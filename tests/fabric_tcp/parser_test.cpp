// The parts that read bytes from peers, fed without sockets: well-formed in any pieces, mutated, random.
#include <array>
#include <random>

#include "dtr/fabric/tcp/address.hpp"
#include "fabric_tcp/stream_target.hpp"

namespace dtr::testing {
namespace {

using namespace fabric::tcp;

using Target = StreamTarget;

/// Mostly small pieces, now and then a large one.
auto pieces_by(std::mt19937& random) {
  return [&random]() -> std::size_t { return 1 + random() % (random() % 4 == 0 ? 70000 : 60); };
}

std::vector<std::byte> honest_stream(const Target& target, std::mt19937& random, std::size_t requests) {
  std::vector<std::byte> stream;
  const auto append = [&](const void* data, std::size_t bytes) {
    const auto* first = static_cast<const std::byte*>(data);
    stream.insert(stream.end(), first, first + bytes);
  };
  for (std::size_t i = 0; i < requests; ++i) {
    constexpr std::array kTypes{RequestType::put,          RequestType::put_notify, RequestType::notify,
                                RequestType::get,          RequestType::send,       RequestType::fetch_add,
                                RequestType::compare_swap, RequestType::nothing};
    const RequestType type = kTypes[random() % kTypes.size()];
    const std::uint64_t offset = random() % 1000 * 8;
    RequestHeader header = target.header(type, offset, random() % 3 == 0 ? 8192 - offset : random() % 64);
    if (type == RequestType::send) header.length = random() % 5000;
    if (is_atomic(type)) header.length = 8;
    header.operand = random();
    append(&header, sizeof header);
    const auto payload = pattern(payload_bytes(header), i);
    append(payload.data(), payload.size());
  }
  return stream;
}

TEST(TcpParserTest, AStreamIsExecutedWholeInWhateverPiecesItComes) {
  for (std::uint32_t seed = 0; seed < 30; ++seed) {
    std::mt19937 content(seed);
    std::mt19937 cuts(seed + 1000);
    Target target;
    const auto stream = honest_stream(target, content, 300);
    // What it means, worked out by hand.
    std::vector<std::byte> expected(8192);
    std::size_t messages = 0;
    std::size_t notifications = 0;
    for (std::size_t at = 0; at < stream.size();) {
      RequestHeader header;
      std::memcpy(&header, stream.data() + at, sizeof header);
      at += sizeof header;
      const std::uint64_t bytes = payload_bytes(header);
      if (header.type == RequestType::send) {
        ++messages;
      } else {
        std::memcpy(expected.data() + header.offset, stream.data() + at, bytes);
      }
      if (header.type == RequestType::notify || header.type == RequestType::put_notify) ++notifications;
      if (is_atomic(header.type)) {
        std::uint64_t word = 0;
        std::memcpy(&word, expected.data() + header.offset, 8);
        if (header.type == RequestType::fetch_add) word += header.operand;
        if (header.type == RequestType::compare_swap && word == header.length) word = header.operand;
        std::memcpy(expected.data() + header.offset, &word, 8);
      }
      at += bytes;
    }
    feed(target, stream, pieces_by(cuts));
    EXPECT_EQ(target.inbound.processed, 300U);
    EXPECT_TRUE(target.inbound.refusals.empty());
    EXPECT_EQ(target.recorder.messages.size(), messages);
    EXPECT_EQ(target.recorder.notifications.size(), notifications);
    EXPECT_EQ(std::memcmp(target.region->data(), expected.data(), expected.size()), 0);
    EXPECT_TRUE(target.intact());
    EXPECT_EQ(target.region->uses(), 0U);
  }
}

TEST(TcpParserTest, MutatedStreamsHarmNothing) {
  std::mt19937 random(2);
  for (int round = 0; round < 1500; ++round) {
    Target target;
    auto stream = honest_stream(target, random, 40);
    for (std::uint32_t flips = 1 + random() % 8; flips > 0; --flips) {
      stream[random() % stream.size()] ^= static_cast<std::byte>(1U << (random() % 8));
    }
    if (random() % 4 == 0) stream.erase(stream.begin() + static_cast<std::ptrdiff_t>(random() % stream.size()));
    feed(target, stream, pieces_by(random));
    ASSERT_TRUE(target.intact());
    ASSERT_EQ(target.region->uses(), 0U);
  }
}

TEST(TcpParserTest, RandomBytesHarmNothing) {
  std::mt19937 random(3);
  for (int round = 0; round < 3000; ++round) {
    Target target;
    auto stream = pattern(1 + random() % 3000, static_cast<std::uint64_t>(round));
    if (random() % 2 == 0) stream[0] = static_cast<std::byte>(random() % 12);
    if (random() % 2 == 0 && stream.size() > 4) stream[2] = stream[3] = std::byte{0};
    feed(target, stream, pieces_by(random));
    ASSERT_TRUE(target.intact());
    ASSERT_EQ(target.region->uses(), 0U);
  }
}

TEST(TcpParserTest, NothingIsExecutedForAPeerThatWasShutOut) {
  std::mt19937 random(4);
  Target target;
  const auto stream = honest_stream(target, random, 100);
  target.inbound.shut_out = true;
  feed(target, stream, pieces_by(random));
  EXPECT_EQ(target.inbound.processed, 0U);
  EXPECT_TRUE(target.recorder.messages.empty() && target.recorder.notifications.empty());
}

TEST(TcpParserTest, MalformedHeadersAreNamed) {
  EXPECT_EQ(malformed(RequestHeader{}), nullptr);
  EXPECT_STREQ(malformed(RequestHeader{.type = static_cast<RequestType>(77)}), "unknown request type");
  EXPECT_STREQ(malformed(RequestHeader{.type = RequestType::put, .length = ~0ULL}), "impossible length");
  EXPECT_EQ(malformed(RequestHeader{.type = RequestType::compare_swap, .length = ~0ULL}), nullptr);
  EXPECT_STREQ(malformed(ReplyHeader{.type = ReplyType::refused}), "code does not fit the reply's type");
  EXPECT_STREQ(malformed(ReplyHeader{.type = ReplyType::ack, .code = -3}), "code does not fit the reply's type");
}

TEST(TcpParserTest, AddressesSurviveTheirEncodingAndGarbageIsRefused) {
  const auto here = value_or_throw(local_endpoints({}, 4711));
  ASSERT_FALSE(here.empty());
  const auto there = value_or_throw(decode(encode(here)));
  ASSERT_EQ(there.size(), here.size());
  for (std::size_t i = 0; i < here.size(); ++i) EXPECT_EQ(there[i].to_string(), here[i].to_string());
  EXPECT_EQ(value_or_throw(parse_endpoint("::1", 5)).to_string(), "[::1]:5");
  EXPECT_EQ(value_or_throw(parse_endpoint("10.1.2.3", 5)).to_string(), "10.1.2.3:5");
  EXPECT_FALSE(parse_endpoint("localhost", 5));
  EXPECT_EQ(value_or_throw(local_endpoints({.bind_address = "lo"}, 1)).front().to_string(), "127.0.0.1:1");

  std::mt19937 random(5);
  EXPECT_FALSE(decode({}));
  for (int round = 0; round < 1000; ++round) {
    const auto garbage = pattern(random() % 200, static_cast<std::uint64_t>(round));
    if (const auto decoded = decode(garbage)) {
      for (const Endpoint& endpoint : *decoded) EXPECT_FALSE(endpoint.to_string().empty());
    }
  }
}

}  // namespace
}  // namespace dtr::testing
