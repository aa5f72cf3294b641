// Rings of the shm transport: frames, wrap, room, and what a hostile or broken producer can write.
#include "dtr/fabric/shm/ring.hpp"

#include <cstring>
#include <deque>
#include <random>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

namespace dtr {
namespace {

using fabric::shm::FrameWord;
using fabric::shm::kSlot;
using fabric::shm::RingConsumer;
using fabric::shm::RingHeader;
using fabric::shm::RingMemory;
using fabric::shm::RingProducer;

/// A ring in ordinary memory.
struct OwnRing {
  explicit OwnRing(std::uint64_t slots) : data(slots), memory{&header, data.front().bytes, slots} {}

  struct alignas(64) Slot {
    std::byte bytes[kSlot] = {};
  };
  RingHeader header;
  std::vector<Slot> data;
  RingMemory memory;
};

bool send(RingProducer& producer, std::uint8_t type, const std::vector<std::byte>& payload) {
  std::byte* at = producer.reserve(static_cast<std::uint32_t>(payload.size()));
  if (at == nullptr) return false;
  if (!payload.empty()) std::memcpy(at, payload.data(), payload.size());
  producer.commit(type, 9);
  return true;
}

std::vector<std::byte> payload_of(std::size_t bytes, unsigned seed) {
  std::vector<std::byte> payload(bytes);
  for (std::size_t i = 0; i < bytes; ++i) payload[i] = static_cast<std::byte>(seed * 31 + i);
  return payload;
}

TEST(RingTest, FramesOfEverySizeArriveInOrderOverManyWraps) {
  OwnRing ring(32);
  RingProducer producer(ring.memory);
  RingConsumer consumer(ring.memory);
  std::mt19937 random(1);
  std::deque<std::vector<std::byte>> under_way;
  unsigned sent = 0;
  unsigned received = 0;
  while (received < 20000) {
    auto payload = payload_of(random() % (ring.memory.max_frame() + 1), sent);
    if (random() % 3 != 0 && send(producer, 1, payload)) {
      under_way.push_back(std::move(payload));
      ++sent;
      continue;
    }
    RingConsumer::Frame frame;
    const auto look = consumer.look(frame);
    ASSERT_EQ(look == RingConsumer::Look::frame, !under_way.empty());
    if (under_way.empty()) continue;
    ASSERT_EQ(frame.type, 1);
    ASSERT_EQ(frame.port, 9);
    ASSERT_TRUE(std::equal(frame.bytes.begin(), frame.bytes.end(), under_way.front().begin(), under_way.front().end()));
    consumer.pop();
    consumer.release();
    under_way.pop_front();
    ++received;
  }
}

TEST(RingTest, LargestFrameFitsIntoAnEmptyRingAtEveryPosition) {
  OwnRing ring(16);
  RingProducer producer(ring.memory);
  RingConsumer consumer(ring.memory);
  const auto largest = payload_of(ring.memory.max_frame(), 3);
  RingConsumer::Frame frame;
  for (int i = 0; i < 100; ++i) {
    ASSERT_TRUE(send(producer, 1, {})) << i;  // moves on by one slot
    ASSERT_TRUE(producer.has_room_for(static_cast<std::uint32_t>(largest.size()))) << i;
    ASSERT_TRUE(send(producer, 2, largest)) << i;
    for (int k = 0; k < 2; ++k) {
      ASSERT_EQ(consumer.look(frame), RingConsumer::Look::frame);
      consumer.pop();
    }
    ASSERT_EQ(frame.bytes.size(), largest.size());
    consumer.release();
  }
}

TEST(RingTest, FullRingTakesNothingUntilTheConsumerGivesSlotsBack) {
  OwnRing ring(16);
  RingProducer producer(ring.memory);
  RingConsumer consumer(ring.memory);
  int taken = 0;
  while (send(producer, 1, {})) ++taken;
  EXPECT_EQ(taken, 15);  // one slot stays for the zero word behind the last frame
  RingConsumer::Frame frame;
  ASSERT_EQ(consumer.look(frame), RingConsumer::Look::frame);
  consumer.pop();
  EXPECT_FALSE(send(producer, 1, {}));
  EXPECT_TRUE(consumer.release());
  EXPECT_FALSE(consumer.release());
  EXPECT_TRUE(send(producer, 1, {}));
}

TEST(RingTest, ProducerThatAskedForRoomIsKnownOnce) {
  OwnRing ring(16);
  RingProducer producer(ring.memory);
  RingConsumer consumer(ring.memory);
  EXPECT_FALSE(consumer.producer_waits(true));
  EXPECT_FALSE(consumer.producer_waits(false));
  producer.ask_for_room();
  EXPECT_TRUE(consumer.producer_waits(true));
  EXPECT_FALSE(consumer.producer_waits(true));
  producer.ask_for_room();
  EXPECT_TRUE(consumer.producer_waits(false));
}

TEST(RingTest, FrameLongerThanTheRestOfTheRingIsMalformed) {
  OwnRing ring(16);
  RingConsumer consumer(ring.memory);
  RingConsumer::Frame frame;
  for (const std::uint32_t bytes : {static_cast<std::uint32_t>(16 * kSlot), 0xFFFFFFFFU, 0x80000000U}) {
    ring.memory.word(0).store(FrameWord{.type = 1, .bytes = bytes}.pack());
    EXPECT_EQ(consumer.look(frame), RingConsumer::Look::malformed) << bytes;
  }
}

TEST(RingTest, LeftoverOfAnEarlierLapIsMalformed) {
  OwnRing ring(16);
  RingConsumer consumer(ring.memory);
  ring.memory.word(0).store(FrameWord{.type = 1, .sequence = 16, .bytes = 8}.pack());
  RingConsumer::Frame frame;
  EXPECT_EQ(consumer.look(frame), RingConsumer::Look::malformed);
}

TEST(RingTest, PaddingThatDoesNotReachTheEndIsMalformed) {
  OwnRing ring(16);
  RingConsumer consumer(ring.memory);
  ring.memory.word(0).store(FrameWord{.type = FrameWord::kPadding, .bytes = 8}.pack());
  RingConsumer::Frame frame;
  EXPECT_EQ(consumer.look(frame), RingConsumer::Look::malformed);
}

TEST(RingTest, ConsumerThatClaimsTooMuchIsNoticedAndGetsNoMemoryOverwritten) {
  OwnRing ring(16);
  RingProducer producer(ring.memory);
  while (send(producer, 1, {})) {
  }
  ring.header.head.store(1000);
  EXPECT_FALSE(send(producer, 1, {}));
  EXPECT_FALSE(producer.sane());
}

TEST(RingTest, RandomWordsNeverLeadOutsideTheRing) {
  OwnRing ring(16);
  std::mt19937_64 random(7);
  for (int round = 0; round < 20000; ++round) {
    RingConsumer consumer(ring.memory);
    for (std::uint64_t slot = 0; slot < ring.memory.slots; ++slot) {
      FrameWord word = FrameWord::unpack(random());
      if (random() % 2 == 0) word.bytes %= 2000;
      if (random() % 2 == 0) word.sequence = static_cast<std::uint16_t>(slot);
      if (random() % 4 == 0) word.type = FrameWord::kPadding;
      ring.memory.word(slot).store(word.pack());
    }
    RingConsumer::Frame frame;
    for (int looks = 0; looks < 100 && consumer.look(frame) == RingConsumer::Look::frame; ++looks) {
      const std::byte* first = ring.data.front().bytes;
      ASSERT_GE(frame.bytes.data(), first);
      ASSERT_LE(frame.bytes.data() + frame.bytes.size(), first + 16 * kSlot);
      consumer.pop();
    }
  }
}

TEST(RingTest, TwoThreadsSeeEveryFrameWhole) {
  OwnRing ring(64);
  constexpr unsigned kFrames = 100000;
  std::thread sender([&] {
    RingProducer producer(ring.memory);
    std::mt19937 random(5);
    for (unsigned i = 0; i < kFrames; ++i) {
      const auto payload = payload_of(random() % 300, i);
      while (!send(producer, 1, payload)) std::this_thread::yield();
    }
  });
  RingConsumer consumer(ring.memory);
  std::mt19937 random(5);
  unsigned wrong = 0;
  for (unsigned i = 0; i < kFrames;) {
    RingConsumer::Frame frame;
    if (consumer.look(frame) != RingConsumer::Look::frame) {
      std::this_thread::yield();
      continue;
    }
    const auto expected = payload_of(random() % 300, i++);
    if (!std::equal(frame.bytes.begin(), frame.bytes.end(), expected.begin(), expected.end())) ++wrong;
    consumer.pop();
    consumer.release();
  }
  sender.join();
  EXPECT_EQ(wrong, 0U);
}

}  // namespace
}  // namespace dtr
